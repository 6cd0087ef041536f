"""Refuses models that would load with wrong weights, or that the engine cannot compute.

The errors are ValueErrors; `loading.py` adds the model's name and the fix.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PretrainedConfig

SHOWN = 3  # names listed in an error


def check_folder(model_id: str) -> None:
    """Refuses a path that is no folder, and a folder that holds an adapter instead of a model."""
    path = Path(model_id)
    looks_like_a_path = model_id.startswith(("/", "./", "../", "~", "\\")) or (
        model_id.count("/") > 1 or "\\" in model_id
    )
    if looks_like_a_path and not path.exists():
        raise ValueError(f"there is no folder {model_id!r}")
    if (path / "adapter_config.json").is_file():
        raise ValueError(
            "its folder holds adapter_config.json, so transformers would load another base model "
            "and put this adapter on it. Merge the adapter into its base model and save the result"
        )


def check_loadable(config: PretrainedConfig) -> None:
    """Refuses quantized weights, and architectures that decode without key/values."""
    quantization = getattr(config.get_text_config(), "quantization_config", None) or getattr(
        config, "quantization_config", None
    )
    if quantization:
        method = (
            quantization.get("quant_method")
            if isinstance(quantization, dict)
            else getattr(quantization, "quant_method", None)
        )
        raise ValueError(
            f"its weights are quantized ({getattr(method, 'value', method) or 'unknown method'}), "
            "and training needs them in full precision. Use the original model"
        )
    name = type(config)
    if name not in AutoModelForCausalLM._model_mapping:  # transformers says what it supports
        return
    model_class: Any = AutoModelForCausalLM._model_mapping[name]
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    if "past_key_values" not in inspect.signature(model_class.forward).parameters:
        raise ValueError(
            f"{config.model_type} models keep a recurrent state instead of key/values, and the "
            "engine would generate without memory of the text so far. Use a transformer model, or "
            "a hybrid one such as Qwen3-Next or Granite 4"
        )


def check_weights(report: dict[str, Any]) -> None:
    """Refuses weights that do not match the architecture, from transformers' loading report.

    transformers replaces missing weights by random ones. Tied weights do not count as missing.
    """
    for key, problem in (
        ("missing_keys", "lack weights of the architecture"),
        ("unexpected_keys", "hold weights that the architecture does not have"),
        ("mismatched_keys", "hold weights of the wrong shape"),
    ):
        if names := report.get(key):
            raise ValueError(
                f"its safetensors files {problem}: {_listed(names)}. The model would not be the "
                "one that was trained. Save it again with save_pretrained"
            )


def check_adapter(saved: Collection[str], expected: Collection[str]) -> None:
    """Refuses an adapter file whose tensors are not those of the adapted model."""
    for names, problem in (
        (set(expected) - set(saved), "lacks"),
        (set(saved) - set(expected), "holds unexpected"),
    ):
        if names:
            raise ValueError(
                f"the adapter {problem} tensors: {_listed(names)}. It was made for another model. "
                "Fix: use the base model that its adapter_config.json names."
            )


def _listed(names: Collection[Any]) -> str:
    texts = sorted(str(n[0] if isinstance(n, tuple) else n) for n in names)
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
