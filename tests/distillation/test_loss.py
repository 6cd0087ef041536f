"""The divergence over the student's top k: values and gradients against the plain formula."""

import pytest
import torch

from policyalign_assets.distillation.loss import Divergence, mixed_kl_top_k, top

pytestmark = pytest.mark.slow


def plain(student_MV, teacher_MV, k, tail=False, forward_weight=0.0):
    """The formula as it stands in the docstring, for autograd to differentiate."""
    log_s, log_t = student_MV.log_softmax(-1), teacher_MV.detach().log_softmax(-1)
    top = student_MV.detach().topk(min(k, student_MV.shape[-1]), dim=-1).indices
    log_s, log_t = log_s.gather(-1, top), log_t.gather(-1, top)
    loss = (log_s.exp() * (log_s - log_t)).sum(-1) + forward_weight * (
        log_t.exp() * (log_t - log_s)
    ).sum(-1)
    if tail:
        rest_s, rest_t = 1 - log_s.exp().sum(-1), 1 - log_t.exp().sum(-1)
        loss = loss + rest_s * (rest_s.log() - rest_t.log())
    return loss.sum()


def hidden(vocab: int, tokens: int = 7, seed: int = 0):
    """Student's and teacher's hidden states, and the weights of a head."""
    rng = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(tokens, 16, generator=rng),
        torch.randn(tokens, 16, generator=rng),
    )
    return student.requires_grad_(), teacher, torch.randn(vocab, 16, generator=rng) / 2


@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
@pytest.mark.parametrize("forward_weight", [0.0, 0.3])
@pytest.mark.parametrize(
    "k, tail", [(50, False), (10_000, False), (50, True), (5, False), (5, True)]
)
def test_loss_and_gradient_are_those_of_the_plain_formula(k, tail, forward_weight, chunk):
    student, teacher, weight = hidden(50)
    expected = plain(student @ weight.T, teacher @ weight.T, k, tail and k < 50, forward_weight)
    (by_autograd,) = torch.autograd.grad(expected, student)
    out = mixed_kl_top_k(
        student,
        teacher,
        lambda h: h @ weight.T,
        Divergence(k, tail, forward_weight=forward_weight, chunk_elements=chunk),
    )
    assert out.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    (ours,) = torch.autograd.grad(out.loss_sum, student)
    torch.testing.assert_close(ours, by_autograd, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("vocabulary", [2_048, 151_936])
def test_the_loss_is_that_of_the_formula_in_float64(vocabulary, tail):
    """The release's `kl_penalty` (top k, not renormalised) without its rounding to bfloat16."""
    rng = torch.Generator().manual_seed(1)
    student = torch.randn(8, 16, generator=rng)
    teacher, weight = (
        student + 0.3 * torch.randn(8, 16, generator=rng),
        torch.randn(vocabulary, 16, generator=rng) / 2,
    )
    out = mixed_kl_top_k(student, teacher, lambda h: h @ weight.T, Divergence(256, tail))
    expected = plain((student @ weight.T).double(), (teacher @ weight.T).double(), 256, tail)
    assert out.loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("vocabulary", [100, 4 * 8 * 32, 4 * 8 * 32 + 17])
def test_the_top_of_a_large_vocabulary_is_that_of_topk(vocabulary):
    values = torch.randn(50, vocabulary, generator=torch.Generator().manual_seed(1))
    values[0, -1] = 9.0  # in the rest that fills no block
    best, indices = top(values, 8)
    assert torch.equal(best.sort(-1, descending=True).values, values.topk(8, -1).values)
    assert torch.equal(values.gather(-1, indices), best)
    assert all(len(set(row)) == 8 for row in indices.tolist())


def test_the_gradient_reaches_a_head_that_is_trained_and_never_the_teacher():
    student, teacher, weight = hidden(50)
    teacher.requires_grad_()
    weight.requires_grad_()
    # the teacher's logits are constants even where it shares the head
    expected = torch.autograd.grad(
        plain(student @ weight.T, teacher @ weight.T, 5), [student, weight]
    )
    out = mixed_kl_top_k(
        student, teacher, lambda h: h @ weight.T, Divergence(5, chunk_elements=100), (weight,)
    )
    (2 * out.loss_sum).backward()
    torch.testing.assert_close(student.grad, 2 * expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weight.grad, 2 * expected[1], atol=1e-5, rtol=1e-4)
    assert teacher.grad is None


def test_the_gradient_passes_through_what_a_model_does_to_its_logits():
    """Gemma 2 caps them; temperature divides them."""
    student, teacher, weight = hidden(50)

    def head(h):
        return 3 * torch.tanh(h @ weight.T / 3)

    (expected,) = torch.autograd.grad(plain(head(student) / 0.7, head(teacher) / 0.7, 5), student)
    (ours,) = torch.autograd.grad(
        mixed_kl_top_k(student, teacher, head, Divergence(5, temperature=0.7)).loss_sum, student
    )
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_at_a_vocabulary_of_152k_the_loss_is_that_of_the_plain_formula():
    student, teacher, weight = hidden(151_936)
    expected = plain(student @ weight.T, teacher @ weight.T, 256)
    out = mixed_kl_top_k(student, teacher, lambda h: h @ weight.T, Divergence(256))
    assert out.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    s = (student @ weight.T).softmax(-1)
    torch.testing.assert_close(out.student_mass_M, s.topk(256).values.sum(-1).detach())
    torch.testing.assert_close(
        out.teacher_mass_M, (teacher @ weight.T).softmax(-1).gather(-1, s.topk(256).indices).sum(-1)
    )
