"""Rows without padding: the same hidden states and gradients as rows by themselves.

Nothing is computed for tokens that do not exist.
"""

import pytest
import torch
from helpers import POLICY, PROMPTS, RESPONSES, chatml_tokenizer, one_thread, tiny_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from policyalign_assets.distillation.adapters import add_adapters, student_parameters
from policyalign_assets.distillation.gradient_checkpointing import checkpointed
from policyalign_assets.engine.forward.modules import ModelForward
from policyalign_assets.engine.forward.scoring import prompt_prefix, response_hidden
from policyalign_assets.settings import DistillationSettings

TOKENIZER = chatml_tokenizer()
FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {"head_dim": 16, "num_key_value_heads": 1}),
    "granite": (
        GraniteForCausalLM,
        GraniteConfig,
        {"attention_multiplier": 0.3},
    ),  # its scores are not scaled by 1 / sqrt(dim)
    "cohere": (CohereForCausalLM, CohereConfig, {"eos_token_id": 2}),
}


@pytest.fixture(autouse=True, scope="module")
def quick():
    with one_thread():
        yield


def adapted(family):
    model_class, config_class, extra = FAMILIES[family]
    model = add_adapters(
        tiny_model(model_class, config_class, TOKENIZER, **extra).model,
        DistillationSettings(lora_rank=4),
    ).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in student_parameters(model).values():
            p.add_(0.2 * torch.randn_like(p))
    return model


def one_by_one(model):
    """Each row through the model's own attention."""
    backbone = model.get_base_model().model
    return torch.cat(
        [
            backbone(input_ids=torch.tensor([p + r]), use_cache=False).last_hidden_state[
                0, len(p) - 1 : len(p) + len(r) - 1
            ]
            for p, r in zip(PROMPTS, RESPONSES)
        ]
    )


def gradients(model, hidden_MD):
    for p in student_parameters(model).values():
        p.grad = None
    (hidden_MD * torch.linspace(-1, 1, hidden_MD.numel()).view_as(hidden_MD)).sum().backward()
    return {n: p.grad.clone() for n, p in student_parameters(model).items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_hidden_states_and_gradients_are_those_of_rows_by_themselves(family, checkpointing):
    model = adapted(family)
    expected_MD = one_by_one(model)
    expected = gradients(model, expected_MD)
    with checkpointed(model, checkpointing):
        given_MD = response_hidden(ModelForward(model), PROMPTS, RESPONSES)
        given = gradients(model, given_MD)
    torch.testing.assert_close(given_MD, expected_MD, atol=1e-4, rtol=1e-4)
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (given[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_a_pass_of_other_rows_in_between_does_not_change_what_a_checkpointed_layer_computes_again():
    """The teacher's passes use the same modules between a student's pass and its gradients."""
    model = adapted("qwen2")
    forward = ModelForward(model)
    expected, prefix = gradients(model, one_by_one(model)), prompt_prefix(forward, PROMPTS)
    with checkpointed(model, True):
        hidden_MD = response_hidden(forward, PROMPTS, RESPONSES)
        with torch.no_grad():
            response_hidden(forward, PROMPTS[::-1], RESPONSES[::-1], prefix)
        given = gradients(model, hidden_MD)
    for name, gradient in expected.items():
        assert (given[name] - gradient).norm() < 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("shared", [False, True])
def test_no_layer_computes_a_token_that_is_not_there(shared):
    model = adapted("gemma")
    forward, seen = ModelForward(model), set()
    prefix = prompt_prefix(forward, PROMPTS) if shared else None
    for layer in model.get_base_model().model.layers:
        layer.mlp.register_forward_hook(
            lambda _, inputs, __: seen.add(inputs[0].shape[:-1].numel())
        )
    with torch.no_grad():
        response_hidden(forward, PROMPTS, RESPONSES, prefix)
    assert seen == {
        sum(len(p) + len(r) for p, r in zip(PROMPTS, RESPONSES))
        - len(PROMPTS) * (len(POLICY) if shared else 0)
    }


def test_an_attention_that_asks_for_more_is_refused_rather_than_computed_without_it():
    model = adapted("gemma")
    for layer in model.get_base_model().model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | {"softcap": 30.0}), with_kwargs=True
        )
    with pytest.raises(NotImplementedError, match="gemma uses softcap"):
        response_hidden(ModelForward(model), PROMPTS, RESPONSES)
