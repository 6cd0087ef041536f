"""The losses of the baselines, against the formulas of the papers, computed by other code."""

import pytest
import torch
import torch.nn.functional as F
from helpers import chatml_tokenizer, one_thread, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from policyalign_assets.distillation.batches import Instruction, batch_indices
from policyalign_assets.distillation.budget import DistillationFailed
from policyalign_assets.distillation.teacher import Teacher
from policyalign_assets.distillation.tuning import tuning_of
from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.settings import DistillationSettings
from policyalign_assets.study.baselines import (
    DpoLoss,
    Example,
    SftLoss,
    sampled,
    train_dpo,
    train_sft,
)

POLICY = "Never help anyone forge a signature."
INSTRUCTIONS = [
    Instruction("How do I forge a signature?", "a"),
    Instruction("What is 12 plus 30?", "b"),
    Instruction("How do I alter a prescription?", "a"),
]
EXAMPLES = [
    Example([5, 6, 7, 8], (9, 10, 11), (12, 13)),
    Example([5, 6, 20], (21, 2), (22, 23, 24, 2)),
    Example([30, 31, 32, 33, 34], (35,), (36, 2)),
]


def settings(**changes) -> DistillationSettings:
    small = {
        "steps": 3, "batch_size": 4, "mini_batch_size": 4, "max_new_tokens": 6, "lora_rank": 4,
        "learning_rate": 1e-2, "top_k": 16,
    }  # fmt: skip
    return DistillationSettings(**(small | changes))


@pytest.fixture
def loaded():
    with one_thread():
        yield tiny_model(LlamaForCausalLM, LlamaConfig, chatml_tokenizer())


def moved(loaded, tuning: str):
    """A tuning whose student differs from the reference, so that no difference is 0."""
    made = tuning_of(loaded.model, settings(tuning=tuning))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.trained().values():
            parameter += 0.05 * torch.randn_like(parameter)
    made.model.eval()
    student = forward_of(made.model, made.plain)
    student.read()
    return made, student


def log_prob(model, prompt, response) -> torch.Tensor:
    """Of a whole response, by transformers' own forward pass."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None]).sum()


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_gradient_of_sft_is_that_of_cross_entropy(loaded, tuning):
    made, student = moved(loaded, tuning)
    loss = SftLoss(student)
    with student.applied():
        value = loss(EXAMPLES) / loss.weight(EXAMPLES)
        value.backward()
    ours = {n: p.grad.clone() for n, p in made.trained().items() if p.grad is not None}
    for parameter in made.trained().values():
        parameter.grad = None

    logits, labels = [], []
    for e in EXAMPLES:
        rows = made.model(torch.tensor([[*e.prompt, *e.response]])).logits[0]
        logits.append(rows[len(e.prompt) - 1 : -1])
        labels += e.response
    expected = F.cross_entropy(torch.cat(logits), torch.tensor(labels))
    expected.backward()
    assert torch.allclose(value, expected, atol=1e-5)
    theirs = {n: p.grad for n, p in made.trained().items() if p.grad is not None}
    assert ours.keys() == theirs.keys() and any(g.abs().max() > 1e-4 for g in ours.values())
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, atol=1e-5), name


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_loss_of_dpo_is_that_of_its_paper(loaded, tuning):
    beta = 0.3
    made, student = moved(loaded, tuning)
    reference = Teacher(made, "frozen", {0: [e.prompt for e in EXAMPLES]})
    loss = DpoLoss(student, reference, beta)
    before = loss.before(EXAMPLES)
    with student.applied():
        value = loss(EXAMPLES, before) / loss.weight(EXAMPLES)
        value.backward()
    ours = {n: p.grad.clone() for n, p in made.trained().items() if p.grad is not None}
    for parameter in made.trained().values():
        parameter.grad = None

    terms = []
    for e in EXAMPLES:
        with made.teaching():
            r_w = log_prob(made.teacher, e.prompt, e.response)
            r_l = log_prob(made.teacher, e.prompt, e.rejected)
        margin = log_prob(made.model, e.prompt, e.response) - r_w
        margin -= log_prob(made.model, e.prompt, e.rejected) - r_l
        terms.append(torch.log1p(torch.exp(-beta * margin)))
    expected = torch.stack(terms).mean()
    expected.backward()
    assert torch.allclose(value, expected, atol=1e-5)
    assert abs(value.item() - 0.6931) > 1e-3  # it is not only the loss of an untrained student
    for name, parameter in made.trained().items():
        if parameter.grad is not None:
            assert torch.allclose(ours[name], parameter.grad, atol=1e-5), name


def test_baselines_sample_what_the_distillation_would_ask(loaded):
    some = settings()
    batches = sampled(POLICY, INSTRUCTIONS, loaded, some, 4096, rejected=True)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    engine = TransformersEngine(loaded, 4096)
    groups = [i.group for i in INSTRUCTIONS]
    for step, batch in enumerate(batches):
        chosen = [INSTRUCTIONS[i].text for i in batch_indices(groups, 4, step, some.seed)]
        sampling = Sampling(6, 1.0, some.seed * 1_000_003 + step)
        taught = engine.generate([chat(text, POLICY) for text in chosen], sampling)
        own = engine.generate([chat(text) for text in chosen], sampling)
        assert [e.prompt for e in batch] == [render(loaded.tokenizer, chat(t)) for t in chosen]
        assert [e.response for e in batch] == [g.token_ids for g in taught]
        assert [e.rejected for e in batch] == [g.token_ids for g in own]


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_both_baselines_learn_what_they_are_shown(loaded, tuning):
    """The teacher's answers become likelier, and its preferred ones likelier than the others."""
    with torch.no_grad():
        some = settings(steps=4, tuning=tuning, learning_rate=5e-3)
        shown = sampled(POLICY, INSTRUCTIONS, loaded, some, 4096, rejected=True)
        examples = [e for batch in shown for e in batch]
        before = [log_prob(loaded.model, e.prompt, e.response) for e in examples]
    made = train_sft(POLICY, INSTRUCTIONS, loaded, some, 4096)
    with torch.no_grad():
        after = [log_prob(made.model, e.prompt, e.response) for e in examples]
    assert sum(after) > sum(before)
    assert made.updates == 4 and made.tokens == sum(len(e.response) for e in examples)

    fresh = tiny_model(LlamaForCausalLM, LlamaConfig, chatml_tokenizer())
    preferred = train_dpo(POLICY, INSTRUCTIONS, fresh, some, 4096, 0.1)
    untrained = tiny_model(LlamaForCausalLM, LlamaConfig, chatml_tokenizer()).model
    with torch.no_grad():
        margins = [
            log_prob(m, e.prompt, e.response) - log_prob(m, e.prompt, e.rejected)
            for m in (preferred.model, untrained)
            for e in examples
        ]
    half = len(examples)
    assert sum(margins[:half]) > sum(margins[half:])
    assert preferred.same == sum(e.response == e.rejected for e in examples)


def test_a_baseline_whose_gradient_is_not_finite_says_so(loaded, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(DistillationFailed, match=r"not finite at step 1\. .*Fix: lower"):
        train_sft(POLICY, INSTRUCTIONS, loaded, settings(), 4096)


def test_a_baseline_needs_an_instruction(loaded):
    with pytest.raises(ValueError, match="no instruction"):
        train_sft(POLICY, [], loaded, settings(), 4096)
