"""A folded adapter computes, and learns, what the adapter beside the weights does."""

import pytest
import torch
from helpers import one_thread

from policyalign_assets.distillation.adapters import (
    add_adapters,
    student_parameters,
    teacher_weights,
)
from policyalign_assets.engine.forward.folded import fold, using
from policyalign_assets.engine.loading import load_model
from policyalign_assets.settings import DistillationSettings, ModelSettings

SETTINGS = DistillationSettings(lora_rank=4, lora_alpha=12, teacher="ema")
IDS = torch.arange(40, 80).view(2, 20)


@pytest.fixture(autouse=True)
def quick():
    with one_thread():
        yield


def moved(dtype=torch.float32):
    """A model whose adapter is no longer zero, and differs from the teacher's."""
    model = add_adapters(load_model(ModelSettings()).model.to(dtype), SETTINGS).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in student_parameters(model).values():
            p.add_(0.05 * torch.randn_like(p))
    return model


def learned(model, parameters):
    for p in parameters.values():
        p.grad = None
    logits = model(IDS).logits
    (logits.softmax(-1) * torch.linspace(-1, 1, logits.shape[-1])).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in parameters.items()}


def test_answers_and_gradients_are_those_of_the_adapter():
    model = moved()
    parameters = student_parameters(model)
    logits, gradients = learned(model, parameters)
    with using(model, fold(model)):
        folded_logits, folded_gradients = learned(model, parameters)
    with model.disable_adapter(), torch.no_grad():
        assert (model(IDS).logits - logits).abs().max() > 0.1  # the adapter matters
    torch.testing.assert_close(folded_logits, logits, atol=1e-3, rtol=1e-4)
    for name, expected in gradients.items():
        assert expected.norm() > 0
        assert (folded_gradients[name] - expected).norm() < 1e-3 * expected.norm(), name


def test_only_the_adapter_learns_and_everything_is_put_back_even_after_an_error():
    model = moved()
    names, weights = (
        [n for n, _ in model.named_modules()],
        {n: p.clone() for n, p in model.named_parameters()},
    )
    with pytest.raises(ZeroDivisionError), using(model, fold(model)):
        learned(model, {})
        raise ZeroDivisionError
    assert [n for n, _ in model.named_modules()] == names
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(
        student_parameters(model)
    )


def test_it_is_the_active_adapter_that_is_folded():
    model = moved()
    with teacher_weights(model, SETTINGS.teacher):
        expected = model(IDS).logits
        with using(model, fold(model)):
            torch.testing.assert_close(model(IDS).logits, expected, atol=1e-3, rtol=1e-4)


def test_nothing_is_folded_in_half_precision_or_with_the_adapter_off():
    assert fold(moved(torch.bfloat16)) == {}
    model = moved()
    with model.disable_adapter():
        assert fold(model) == {}
    assert len(fold(model)) > 0
