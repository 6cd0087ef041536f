"""Tiny random models of many architectures: the engine computes what the model does, or says so.

Each row is a model type that a public report named, or one that must keep working.
"""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from helpers import chatml_tokenizer, one_thread, tiny_model

from policyalign_assets.distillation.batches import Instruction
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.doctor.compute import decoding_check, logits_check
from policyalign_assets.doctor.lora_share import lora_check
from policyalign_assets.engine.base import Sampling
from policyalign_assets.engine.forward import modules
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.settings import DistillationSettings

MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WORKING = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Phi3": {"pad_token_id": 0},
    "Olmo2": {},
    "Starcoder2": {},
    "Cohere": {"logit_scale": 0.3},
    "Granite": {"logits_scaling": 8.0},
    "HyperCLOVAX": {"logits_scaling": 8.0},  # multiplies where Granite divides
    "FalconH1": {"mamba_d_ssm": 64, "lm_head_multiplier": 0.3, **MAMBA},
    "Gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 16},
    "Bamba": {"attn_layer_indices": [1], **MAMBA},
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
    "Qwen3Next": {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
        **EXPERTS,
    },
    "GraniteMoeHybrid": {
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 16,
        **MAMBA,
    },
    "Jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "NemotronH": {
        "head_dim": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 8,
        "chunk_size": 8,
        "layers_block_type": ["mamba", "attention"],
    },
    "DeepseekV3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        **LATENT,
    },
    "Qwen3Moe": {"head_dim": 8, **EXPERTS},
    "Mixtral": {"num_local_experts": 8},
    "GptOss": {"head_dim": 8, "num_local_experts": 8, "sliding_window": 16},
    "Llama4Text": {
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
        "attention_chunk_size": 64,
        "interleave_moe_layer_step": 1,
    },
}
HYBRID = ["FalconH1", "Bamba", "Lfm2", "Qwen3Next", "GraniteMoeHybrid", "Jamba", "NemotronH"]


@pytest.fixture(autouse=True)
def one():
    with one_thread():
        yield


def make(name: str, **changes):
    model_class = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")
    config_class = getattr(transformers, f"{name}Config")
    return tiny_model(model_class, config_class, chatml_tokenizer(), **WORKING[name], **changes)


@pytest.mark.parametrize("name", WORKING)
def test_the_engine_computes_what_the_model_computes(name):
    loaded = make(name)
    for finding in (logits_check(loaded), decoding_check(loaded)):
        assert finding.level == "ok", finding


@pytest.mark.parametrize("name", WORKING)
def test_lora_can_be_put_on_it_before_any_work(name):
    finding = lora_check(make(name).model, DistillationSettings())
    assert finding.level in ("ok", "note"), finding
    assert "%" in finding.detail


@pytest.mark.parametrize("name", HYBRID)
def test_hybrid_models_answer_as_one_prompt_at_a_time_does(name):
    """Rows of different lengths that end at different times."""
    loaded = make(name, end_ids=tuple(range(2, 60)))
    prompts = [[70 + i + 3 * j for j in range(length)] for i, length in enumerate((9, 4, 9, 6))]
    engine = TransformersEngine(loaded, 10_000)
    together = engine.generate_ids(prompts, Sampling(12))
    assert len({len(g.token_ids) for g in together}) > 1
    for prompt, answer in zip(prompts, together):
        expected = loaded.model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, use_cache=True
        )[0, len(prompt) :]
        assert list(answer.token_ids) == expected.tolist()


def test_logits_that_the_engine_does_not_know_are_found(monkeypatch):
    loaded = make("Granite")
    monkeypatch.setattr(modules, "logit_scale_and_cap", lambda config: (1, None))
    finding = logits_check(loaded)
    assert finding.level == "error" and "granite" in finding.detail and finding.fix


def test_a_model_with_a_memory_of_its_own_is_refused():
    """RecurrentGemma keeps its state in its modules, where finished rows cannot leave."""
    loaded = tiny_model(
        transformers.RecurrentGemmaForCausalLM,
        transformers.RecurrentGemmaConfig,
        chatml_tokenizer(),
        lru_width=32,
        head_dim=8,
        attention_window_size=64,
        num_hidden_layers=3,
    )
    finding = decoding_check(loaded)
    assert finding.level == "error" and "Fix: use a model of another architecture" in str(finding)


TEXT_PART = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
VISION_PART = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SEEING = ["Gemma3", "Mistral3"]


def seeing(name: str) -> LoadedModel:
    """A model that also sees. Only the text part of its configuration has a `vocab_size`."""
    config_class = getattr(transformers, f"{name}Config")
    text = {**TEXT_PART, **({"model_type": "mistral"} if name == "Mistral3" else {})}
    vision = {**VISION_PART, **({"model_type": "pixtral"} if name == "Mistral3" else {})}
    torch.manual_seed(0)
    config = config_class(text_config=text, vision_config=vision)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).float().eval()
    model.generation_config = transformers.GenerationConfig(eos_token_id=[2], pad_token_id=0)
    return LoadedModel(model, chatml_tokenizer(), name, "random")


@pytest.mark.parametrize("name", SEEING)
def test_a_model_that_also_sees_is_scored_answers_and_trains_by_its_text_part(name, tmp_path):
    loaded = seeing(name)
    for finding in (logits_check(loaded), decoding_check(loaded)):
        assert finding.level == "ok", finding
    assert lora_check(loaded.model, DistillationSettings()).level in ("ok", "note")
    settings = DistillationSettings(
        steps=1, batch_size=2, mini_batch_size=2, max_new_tokens=4, anchors=0
    )
    asked = [Instruction("Forge a signature."), Instruction("Forge a seal.")]
    _, training = distill(["Never forge."], asked, loaded, settings, tmp_path, 4_096)
    (loss,) = training["loss"].to_pylist()
    assert loss > 0 and math.isfinite(loss)


def test_a_mixture_whose_experts_stay_as_they_are_is_said():
    finding = lora_check(make("GptOss").model, DistillationSettings())
    assert finding.level == "note" and "experts" in finding.detail


def test_full_fine_tuning_needs_no_adapter():
    settings = DistillationSettings(tuning="full", learning_rate=1e-5)
    assert lora_check(make("Llama").model, settings).level == "not checked"
