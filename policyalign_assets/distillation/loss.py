"""The distillation loss: reverse KL from student to teacher, plus a share of forward KL.

The reverse KL runs over the student's own k most likely tokens (paper section on distillation;
`kl_penalty` in the release's fork of verl):

    L = mean over tokens of  sum over v in top-k(student) of  p_s(v) (log p_s(v) - log p_t(v))

The probabilities are those over the whole vocabulary. They are not renormalised over the top k:
renormalising would lose the information that the teacher rejects these tokens. L is close to the
full KL only while the student's mass Q on its top k is near 1, so Q is returned and logged.
`tail=True` adds all other tokens as one bucket.

No tensor of all tokens times the vocabulary is ever made. The head runs over a chunk of tokens at
a time, and the gradient with respect to the logits z is written in closed form:

    dL/dz_u = [u in top k] p_s(u) (r_u + 1 + q)  -  p_s(u) (L + Q (1 + q))
    r_v     = log p_s(v) - log p_t(v)

Here q = -(log (1 - Q) - log (1 - T) + 1) with the tail, else 0; Q and T are the student's and the
teacher's mass on the top k, and L excludes the tail's own term. Only the gradient of the hidden
states is kept for the backward pass.

`forward_weight` adds that multiple of the forward KL over the same tokens:

    sum over v of p_t(v) (log p_t(v) - log p_s(v)),   with gradient   p_s(u) T - [u in top k] p_t(u)

The forward KL is our addition, not the release's. The gradient of the reverse KL is proportional to
p_s, so an answer that the student hardly ever gives is hardly ever learned. The forward KL does not
have this problem (docs/method.md has the measurement).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

# Logits of one side held at a time, by device (32 and 128 MiB in float32).
CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 25}
CACHED_ELEMENTS = 1 << 19  # logits that fit in a CPU's cache (2 MiB in float32)
BLOCK = 32  # vocabulary entries per block when searching for the top k
SMALLEST = 1e-12  # keeps the logarithm of the tail's mass finite

Head = Callable[[torch.Tensor], torch.Tensor]  # hidden_MD -> logits_MV


@dataclass(frozen=True)
class MixedKL:
    """Reverse KL plus `forward_weight` times the forward KL, in nats."""

    loss_sum: torch.Tensor  # scalar with gradient: sum over the M tokens
    student_mass_M: torch.Tensor  # Q, the student's mass on its top k
    teacher_mass_M: torch.Tensor  # T, the teacher's mass on the student's top k
    entropy_M: torch.Tensor  # the student's entropy over its top k


@dataclass(frozen=True)
class Divergence:
    """Which divergence of student and teacher is the loss."""

    k: int  # the student's most likely tokens that count; above the vocabulary's size: all of it
    tail: bool = False  # all other tokens as one bucket
    temperature: float = 1.0  # divides the logits of both
    forward_weight: float = 0.0  # multiple of the forward KL that is added
    chunk_elements: int | None = None  # logits of one side held at a time; None: by device


def mixed_kl_top_k(
    student_hidden_MD: torch.Tensor,
    teacher_hidden_MD: torch.Tensor,
    head: Head,
    divergence: Divergence,
    parameters: tuple[torch.Tensor, ...] = (),
    teacher_head: Head | None = None,
) -> MixedKL:
    """Computes the loss in float32, whatever the model's dtype.

    `head` maps hidden states to logits; it serves the teacher as well, unless a `teacher_head` is
    given. `parameters` are the head's trained parameters (none with LoRA on attention and MLP
    layers). The teacher gets no gradient.
    """
    out = _ChunkedMixedKL.apply(
        student_hidden_MD,
        teacher_hidden_MD.detach(),
        head,
        teacher_head or head,
        divergence,
        *parameters,
    )
    return MixedKL(*out)


class _ChunkedMixedKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student_MD, teacher_MD, head, teacher_head, divergence, *parameters):
        needed = student_MD.requires_grad or any(p.requires_grad for p in parameters)
        grads = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        grad_MD = torch.empty_like(student_MD)
        with torch.no_grad():
            vocabulary = teacher_head(teacher_MD[:1]).shape[-1]
        device, temperature = student_MD.device.type, divergence.temperature
        held = divergence.chunk_elements or CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cpu"])
        rows = max(1, held // vocabulary)
        # On a CPU, do elementwise work in blocks that fit in cache.
        few = max(1, CACHED_ELEMENTS // vocabulary) if device == "cpu" else rows
        parts = []
        for start in range(0, len(student_MD), rows):
            chosen = slice(start, start + rows)
            with torch.enable_grad():
                chunk = student_MD[chosen].detach().requires_grad_(needed)
                logits_MV = _tempered(head(chunk), temperature)
            with torch.no_grad():
                teacher_MV = _tempered(teacher_head(teacher_MD[chosen]), temperature)
                grad_logits_MV = torch.empty_like(teacher_MV if needed else teacher_MV[:0])
                for at in range(0, len(chunk), few):
                    some = slice(at, at + few)
                    values, grad_some = _closed_form(
                        logits_MV.detach()[some], teacher_MV[some], divergence, needed
                    )
                    parts.append(values)
                    if grad_some is not None:
                        grad_logits_MV[some] = grad_some
            if needed:
                grad_MD[chosen], *extra = torch.autograd.grad(
                    logits_MV, [chunk, *parameters], grad_logits_MV
                )
                for total, grad in zip(grads, extra, strict=True):
                    total += grad
        ctx.save_for_backward(grad_MD, *grads)
        ctx.dtypes = [p.dtype for p in parameters]
        loss_M, mass_M, teacher_mass_M, entropy_M = (torch.cat(p) for p in zip(*parts))
        ctx.mark_non_differentiable(mass_M, teacher_mass_M, entropy_M)
        return loss_M.sum(), mass_M, teacher_mass_M, entropy_M

    @staticmethod
    def backward(ctx, grad_loss, *_):
        grad_MD, *grads = ctx.saved_tensors
        return (
            grad_MD * grad_loss,
            *(None,) * 4,
            *((g * grad_loss).to(d) for g, d in zip(grads, ctx.dtypes)),
        )


def _tempered(logits_MV: torch.Tensor, temperature: float) -> torch.Tensor:
    logits_MV = logits_MV.float()
    return logits_MV if temperature == 1 else logits_MV / temperature


def top(values_MV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `topk`, but in any order: (values_MK, indices_MK).

    The k largest values lie in the k blocks with the largest maxima, so only those are searched.
    """
    tokens, vocabulary = values_MV.shape
    whole = vocabulary // BLOCK * BLOCK
    if vocabulary < 4 * k * BLOCK:
        return _selected(values_MV, k)
    _, blocks_MK = _selected(values_MV[:, :whole].unflatten(-1, (-1, BLOCK)).amax(-1), k)
    among_MC = (
        blocks_MK[..., None] * BLOCK + torch.arange(BLOCK, device=values_MV.device)
    ).flatten(1)
    if whole < vocabulary:
        among_MC = torch.cat(
            [among_MC, torch.arange(whole, vocabulary, device=values_MV.device).expand(tokens, -1)],
            -1,
        )
    best_MK, at_MK = _selected(values_MV.gather(-1, among_MC), k)
    return best_MK, among_MC.gather(-1, at_MK)


def _selected(values_MN: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    if values_MN.device.type != "cpu":
        best = values_MN.topk(k, -1, sorted=False)
        return best.values, best.indices
    # numpy's selection is twice as fast as that of torch.
    indices_MK = torch.from_numpy(np.argpartition(values_MN.numpy(), -k, -1)[:, -k:])
    return values_MN.gather(-1, indices_MK), indices_MK


def _closed_form(
    student_MV: torch.Tensor,
    teacher_MV: torch.Tensor,
    divergence: Divergence,
    gradient: bool,
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
    """Values and gradient of one block of logits.

    Returns (loss_M, student mass_M, teacher mass_M, entropy_M), and the gradient of the summed loss
    with respect to `student_MV` (None unless `gradient`).
    """
    k, forward_weight = divergence.k, divergence.forward_weight
    whole = k >= student_MV.shape[-1]
    log_s_MK, log_t_MK = log_s_MV, log_t_MV = student_MV.log_softmax(-1), teacher_MV.log_softmax(-1)
    if not whole:
        log_s_MK, indices_MK = top(log_s_MV, k)
        log_t_MK = log_t_MV.gather(-1, indices_MK)
    s_MK, ratio_MK = log_s_MK.exp(), log_s_MK - log_t_MK
    loss_M1, entropy_M1 = _dot(s_MK, ratio_MK), -_dot(s_MK, log_s_MK)
    # Over the whole vocabulary both masses are 1, so the teacher's probabilities are needed for the
    # forward KL alone.
    t_MK = log_t_MK.exp() if forward_weight or not whole else log_t_MK.new_zeros(())
    mass_M1, teacher_mass_M1 = (
        torch.ones_like(loss_M1) if whole else x.sum(-1, keepdim=True) for x in (s_MK, t_MK)
    )
    q_M1 = torch.zeros_like(loss_M1)
    total_M1 = loss_M1
    if divergence.tail and not whole:
        rest_s, rest_t = 1 - mass_M1, (1 - teacher_mass_M1).clamp_min(SMALLEST)
        log_ratio = rest_s.clamp_min(SMALLEST).log() - rest_t.log()
        total_M1 = loss_M1 + rest_s.clamp_min(SMALLEST) * log_ratio
        q_M1 = torch.where(rest_s > SMALLEST, -(log_ratio + 1), 0.0)
    if forward_weight:
        total_M1 = total_M1 - forward_weight * _dot(t_MK, ratio_MK)
    values = tuple(x.squeeze(-1) for x in (total_M1, mass_M1, teacher_mass_M1, entropy_M1))
    if not gradient:
        return values, None
    everywhere_M1 = loss_M1 + mass_M1 * (1 + q_M1) - forward_weight * teacher_mass_M1
    if whole:
        grad_MV = ratio_MK.add_(1 - everywhere_M1).mul_(s_MK)
        return values, grad_MV.sub_(t_MK, alpha=forward_weight) if forward_weight else grad_MV
    on_top_MK = s_MK * (ratio_MK + 1 + q_M1) - forward_weight * t_MK
    grad_MV = log_s_MV.exp_().mul_(-everywhere_M1)
    return values, grad_MV.scatter_add_(-1, indices_MK, on_top_MK)


def _dot(a_MK: torch.Tensor, b_MK: torch.Tensor) -> torch.Tensor:
    return (a_MK * b_MK).sum(-1, keepdim=True)
