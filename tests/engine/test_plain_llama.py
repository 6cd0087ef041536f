"""The fast passes for Llama-shaped models compute, and learn, what the model's own modules do."""

import pytest
import torch
from helpers import POLICY, PROMPTS, RESPONSES, chatml_tokenizer, one_thread, tiny_model
from peft import LoraConfig, get_peft_model
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from policyalign_assets.distillation.adapters import (
    add_adapters,
    student_parameters,
    teacher_weights,
)
from policyalign_assets.engine.base import NotFinite, Sampling
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.cpu.plain_llama import PlainLlama, is_plain
from policyalign_assets.engine.forward import causal_attention
from policyalign_assets.engine.forward.modules import ModelForward
from policyalign_assets.engine.forward.scoring import (
    prompt_prefix,
    response_hidden,
    response_logits,
)
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.settings import DistillationSettings

TOKENIZER = chatml_tokenizer()
EMA = DistillationSettings(lora_rank=4, lora_alpha=12, teacher="ema")

PLAIN = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2, tied": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"tie_word_embeddings": True, "rms_norm_eps": 0.1},
    ),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig,
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    ),
    "llama 3.2": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "yarn": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": (
        MistralForCausalLM,
        MistralConfig,
        {"sliding_window": None, "num_key_value_heads": 1},
    ),
}
OTHERS = {
    "gemma": (GemmaForCausalLM, GemmaConfig, {"head_dim": 8}),
    "sliding window": (MistralForCausalLM, MistralConfig, {"sliding_window": 16}),
    "another activation": (LlamaForCausalLM, LlamaConfig, {"hidden_act": "gelu"}),
    "angles that depend on the length": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}},
    ),
}


@pytest.fixture(autouse=True, scope="module")
def quick():
    with one_thread():
        yield


def make(family):
    model_class, config_class, extra = family
    return tiny_model(model_class, config_class, TOKENIZER, **extra)


def adapted(family, settings=EMA):
    """Biases and norms are no longer trivial, and neither are the adapters, which differ."""
    model = add_adapters(make(family).model, settings).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora" in name or "norm" in name or "bias" in name:
                p.add_(0.2 * torch.randn_like(p))
    return model


def learned(forward, model, weights):
    parameters = student_parameters(model)
    for p in parameters.values():
        p.grad = None
    forward.read()
    with forward.applied():
        hidden_MD = response_hidden(forward, PROMPTS, RESPONSES)
        (forward.logits(hidden_MD) * weights).sum().backward()
    return {n: p.grad.clone() for n, p in parameters.items()}


@pytest.mark.parametrize("family", PLAIN)
def test_log_probabilities_are_those_of_the_modules_whichever_adapter_is_active(
    family,
):
    model = adapted(PLAIN[family])
    plain, modules = forward_of(model), ModelForward(model)
    assert isinstance(plain, PlainLlama)
    given = {}
    for name, teacher in (("student", "student"), ("ema", "ema"), ("base", "frozen")):
        with teacher_weights(model, teacher):
            plain.read()
            expected = response_logits(modules, PROMPTS, RESPONSES).log_softmax(-1)
        prefix = prompt_prefix(plain, PROMPTS)
        assert prefix.length == len(POLICY)
        with torch.no_grad():  # and the weights stay those that were read
            given[name] = response_logits(plain, PROMPTS, RESPONSES, prefix).log_softmax(-1)
            torch.testing.assert_close(given[name], expected, atol=1e-4, rtol=0)
            torch.testing.assert_close(
                response_logits(plain, PROMPTS, RESPONSES).log_softmax(-1),
                expected,
                atol=1e-4,
                rtol=0,
            )
    assert (given["student"] - given["ema"]).abs().max() > 0.1 and (
        given["student"] - given["base"]
    ).abs().max() > 0.1


@pytest.mark.parametrize("family", PLAIN)
def test_answers_are_those_of_the_modules_with_and_without_a_prefix(family):
    model, loaded = adapted(PLAIN[family]), make(PLAIN[family])
    engines = [
        TransformersEngine(type(loaded)(model, TOKENIZER, "tiny", "random"), 10_000, f(model))
        for f in (PlainLlama, ModelForward)
    ]
    for prompts in (PROMPTS, [p[30 + i :] for i, p in enumerate(PROMPTS)]):
        for sampling in (Sampling(14), Sampling(14, 1.0, seed=3)):
            plain, modules = (e.generate_ids(prompts, sampling) for e in engines)
            assert plain == modules
            assert len({g.token_ids for g in plain}) > 1


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize(
    "short", [0, causal_attention.SHORT]
)  # attention by the fused kernel, and with its weights kept
def test_gradients_are_those_of_the_modules(family, short, monkeypatch):
    monkeypatch.setattr(causal_attention, "SHORT", short)
    model = adapted(PLAIN[family])
    weights = torch.randn(
        sum(map(len, RESPONSES)), len(TOKENIZER), generator=torch.Generator().manual_seed(2)
    )
    with torch.enable_grad():
        expected, given = (learned(f(model), model, weights) for f in (ModelForward, PlainLlama))
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (given[name] - gradient).norm() < 1e-4 * gradient.norm(), name
    assert all(p.grad is None for n, p in model.named_parameters() if n not in expected)


def test_a_table_of_the_first_layer_takes_no_gradients_away():
    """Rollouts may have computed enough tokens for it before the student reads its answers."""
    model = adapted(PLAIN["qwen2"])
    weights = torch.randn(
        sum(map(len, RESPONSES)), len(TOKENIZER), generator=torch.Generator().manual_seed(2)
    )
    expected = learned(ModelForward(model), model, weights)
    plain = forward_of(model)
    real = plain.read

    def read_and_answer():
        real()
        plain._computed = len(TOKENIZER)
        with torch.no_grad():
            response_hidden(plain, PROMPTS, RESPONSES)
        assert plain._first_VN is not None

    plain.read = read_and_answer
    given = learned(plain, model, weights)
    for name, gradient in expected.items():
        assert (given[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_generation_in_inference_mode_reads_weights_that_can_then_be_trained_on():
    model = adapted(PLAIN["qwen2"])
    plain = PlainLlama(model)
    TransformersEngine(
        type(make(PLAIN["qwen2"]))(model, TOKENIZER, "tiny", "random"), 10_000, plain
    ).generate_ids(PROMPTS, Sampling(2))
    plain.logits(response_hidden(plain, PROMPTS, RESPONSES)).sum().backward()
    assert all(p.grad is not None for p in student_parameters(model).values())


def test_logits_that_are_not_numbers_are_refused():
    loaded = make(PLAIN["qwen2"])
    with torch.no_grad():
        loaded.model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    engine = TransformersEngine(loaded, 10_000)
    assert isinstance(engine.forward, PlainLlama)
    for temperature in (0.0, 1.0):
        with pytest.raises(NotFinite):
            engine.generate_ids(PROMPTS, Sampling(2, temperature))


@pytest.mark.parametrize("family", OTHERS)
def test_any_other_architecture_is_left_to_its_modules(family):
    assert isinstance(forward_of(make(OTHERS[family]).model), ModelForward)


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
    ],
    ids=str,
)
def test_adapters_of_other_kinds_are_left_to_the_modules(lora):
    model = get_peft_model(
        make(PLAIN["llama"]).model,
        LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM"} | lora),
    )
    assert not is_plain(model.eval())


def test_half_precision_large_models_and_uneven_adapters_are_left_to_the_modules(
    monkeypatch,
):
    model = make(PLAIN["qwen2"]).model
    assert is_plain(model)
    assert not is_plain(make(PLAIN["qwen2"]).model.to(torch.bfloat16))
    several = get_peft_model(
        make(PLAIN["qwen2"]).model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    assert is_plain(several)
    several.add_adapter("other", LoraConfig(target_modules=["v_proj"], task_type="CAUSAL_LM"))
    assert not is_plain(several)
    monkeypatch.setattr(
        "policyalign_assets.engine.cpu.plain_llama.MOST_PARAMETERS",
        sum(p.numel() for p in model.parameters()) - 1,
    )
    assert not is_plain(model)


def test_the_caller_of_a_shared_forward_decides_when_weights_are_read():
    """The trainer reads the student once a step; the engine that borrows its forward does not."""
    model = adapted(PLAIN["qwen2"])
    plain, loaded = PlainLlama(model), make(PLAIN["qwen2"])
    engine = TransformersEngine(type(loaded)(model, TOKENIZER, "tiny", "random"), 10_000, plain)
    before = engine.generate_ids(PROMPTS, Sampling(6))
    with torch.no_grad():
        for p in student_parameters(model).values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    assert engine.generate_ids(PROMPTS, Sampling(6)) == before
    plain.read()
    assert engine.generate_ids(PROMPTS, Sampling(6)) != before
