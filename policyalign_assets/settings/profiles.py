"""Named sets of values for one kind of model each."""

from __future__ import annotations

from typing import Any

from policyalign_assets.settings.base import BUNDLED, ENGLISH, LOCAL

PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    # The defaults above are the vetted settings of the bundled model.
    BUNDLED: {},
    # SmolLM2-135M with the shipped adapter: a real model, small enough for two CPU cores.
    ENGLISH: {
        "model": {"id": ENGLISH, "batch_tokens": 4_096},
        "synthesis": {
            "per_rule": 14,
            "twin_ratio": 0.6,
            "neighbour_ratio": 0.4,
            "oversample": 1.5,
            "rounds": 2,
            "temperature": 0.5,  # at 1.0, a model of this size drafts mostly gibberish
            "max_new_tokens": 48,
            "rouge_l": 0.8,
            "teacher_check": True,
        },
        "sensitivity": {"max_new_tokens": 24},
        "filtering": {"per_rule": 11, "at_least": 4},
        "distillation": {
            "lora_rank": 16,
            "lora_alpha": 32,
            "learning_rate": 5e-4,
            "steps": 72,
            "batch_size": 16,
            "mini_batch_size": 8,
            "top_k": 64,
            "max_new_tokens": 24,
            "anchors": 100,
        },
        "evaluation": {
            "cases_per_suite": 60,
            "benign_cases": 150,
            "capability_cases": 118,
            "with_policy_cases": 20,
            "max_new_tokens": 32,
        },
    },
    # Any instruct model of 0.1 to 8 billion parameters. This profile is used if model.id is set and
    # no profile is named. The bundled profile's reduced grid, short answers and high learning rate
    # would ruin such a model.
    LOCAL: {
        "model": {"batch_tokens": 16_384},
        "synthesis": {
            "per_rule": 60,
            "recombined_ratio": 0.5,
            "max_new_tokens": 128,
            "grid": "full",
            "rouge_l": 0.7,
            "teacher_check": True,
        },
        "firewall": {"own_cases": True},
        "sensitivity": {"max_new_tokens": 128},
        "filtering": {"per_rule": 40},
        "distillation": {
            "top_k": 128,
            "learning_rate": 2e-4,
            "lora_rank": 16,
            "lora_alpha": 32,
            "steps": 60,
            "batch_size": 32,
            "mini_batch_size": 16,
            "max_new_tokens": 192,
        },
        "evaluation": {"max_new_tokens": 192},
    },
    # The paper's run (README of its code release). LoRA needs about ten times the learning rate of
    # full fine-tuning (5e-6).
    "qwen2.5-7b": {
        "model": {
            "id": "Qwen/Qwen2.5-7B-Instruct",
            "dtype": "bfloat16",
            "device": "cuda",
            "engine": "vllm",
            "batch_tokens": 262_144,
        },
        "synthesis": {
            "per_rule": 400,
            "twin_ratio": 0.4,
            "recombined_ratio": 0.5,
            "max_new_tokens": 256,
            "grid": "full",
            "rouge_l": 0.7,
            "teacher_check": True,
        },
        "firewall": {"own_cases": True},
        "sensitivity": {"max_new_tokens": 512},
        "filtering": {"per_rule": 200},
        "distillation": {
            "teacher": "ema",
            "forward_weight": 0.0,
            "ema_decay": 0.99,
            "top_k": 256,
            "learning_rate": 5e-5,
            "lr_decay": 0.0,
            "lora_rank": 32,
            "lora_alpha": 64,
            "steps": 100,
            "batch_size": 128,
            "mini_batch_size": 64,
            "gradient_checkpointing": True,
            "max_new_tokens": 1024,
            "save_every": 10,
        },
        "evaluation": {"max_new_tokens": 1024},
    },
}
