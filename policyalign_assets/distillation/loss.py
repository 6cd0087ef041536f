"""Reverse KL from student to teacher on the student's own top tokens (method.md; verl fork `kl_penalty`).

    L = mean over response tokens of  sum over v in top-k(student) of  p_s(v) * (log p_s(v) - log p_t(v))

The probabilities are those over the whole vocabulary, *not* renormalised over the top k: renormalising drops "the teacher
rejects these tokens". That is close to the full KL only while the student's mass Q on its top k is near 1, so Q is returned
and logged; `tail=True` adds all other tokens as one bucket.

No tensor of all tokens times the vocabulary is ever made. The head runs over a chunk of tokens at a time, and the gradient
with respect to the logits z is written down instead of recorded:

    dL/dz_u = [u in top k] p_s(u) (r_u + 1 + q)  -  p_s(u) (L + Q (1 + q)),    r_v = log p_s(v) - log p_t(v)

where q = -(log (1 - Q) - log (1 - T) + 1) with the tail, else 0 (Q, T: student's and teacher's mass on the top k; the tail's
own term is left out of the L above). What is kept for the backward pass is the gradient of the hidden states.

`forward_weight` adds that much of the forward KL over the same tokens, sum of p_t(v) (log p_t(v) - log p_s(v)), with gradient
p_s(u) T - [u in top k] p_t(u). Ours, not the release's: the reverse KL's gradient is proportional to p_s, so an answer that the
student hardly ever gives is hardly ever learned; the forward KL's is not (docs/method.md has the measurement).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

CHUNK_ELEMENTS = {
    "cpu": 1 << 23,
    "cuda": 1 << 25,
}  # logits of one side at a time (32 and 128 MiB in float32)
CACHED_ELEMENTS = 1 << 19
BLOCK = 32
SMALLEST = 1e-12

Head = Callable[[torch.Tensor], torch.Tensor]  # hidden_MD -> logits_MV


@dataclass(frozen=True)
class ReverseKL:
    loss_sum: torch.Tensor  # scalar with gradient: sum over the M tokens
    student_mass_M: torch.Tensor  # Q
    teacher_mass_M: torch.Tensor
    entropy_M: torch.Tensor  # student entropy over its top k


def reverse_kl_top_k(
    student_hidden_MD: torch.Tensor,
    teacher_hidden_MD: torch.Tensor,
    head: Head,
    k: int,
    tail: bool = False,
    temperature: float = 1.0,
    forward_weight: float = 0.0,
    parameters: tuple[torch.Tensor, ...] = (),
    teacher_head: Head | None = None,
    chunk_elements: int | None = None,
) -> ReverseKL:
    """Float32 throughout, whatever the model's dtype. `k` above the vocabulary size means the full vocabulary.

    `head` maps hidden states to logits; it serves the teacher too, unless that has a `teacher_head` of its own. `parameters`: those
    of the head that are trained (none with LoRA on the attention and MLP layers). The teacher carries no gradient.
    """
    chunk_elements = chunk_elements or CHUNK_ELEMENTS.get(
        student_hidden_MD.device.type, CHUNK_ELEMENTS["cpu"]
    )
    out = _ChunkedReverseKL.apply(
        student_hidden_MD,
        teacher_hidden_MD.detach(),
        head,
        teacher_head or head,
        k,
        tail,
        temperature,
        forward_weight,
        chunk_elements,
        *parameters,
    )
    return ReverseKL(*out)


class _ChunkedReverseKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        student_MD,
        teacher_MD,
        head,
        teacher_head,
        k,
        tail,
        temperature,
        forward_weight,
        chunk_elements,
        *parameters,
    ):
        needed = student_MD.requires_grad or any(p.requires_grad for p in parameters)
        grads = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        grad_MD = torch.empty_like(student_MD)
        with torch.no_grad():
            vocabulary = teacher_head(teacher_MD[:1]).shape[-1]
        rows = max(1, chunk_elements // vocabulary)
        # what is done number by number is done while the numbers are in the processor's cache
        few = max(1, CACHED_ELEMENTS // vocabulary) if student_MD.device.type == "cpu" else rows
        parts = []
        for start in range(0, len(student_MD), rows):
            chosen = slice(start, start + rows)
            with torch.enable_grad():
                chunk = student_MD[chosen].detach().requires_grad_(needed)
                logits_MV = _tempered(head(chunk), temperature)
            with torch.no_grad():
                teacher_MV = _tempered(teacher_head(teacher_MD[chosen]), temperature)
                grad_logits_MV = torch.empty_like(teacher_MV) if needed else None
                for at in range(0, len(chunk), few):
                    some = slice(at, at + few)
                    values, grad_some = _closed_form(
                        logits_MV.detach()[some], teacher_MV[some], k, tail, forward_weight, needed
                    )
                    parts.append(values)
                    if needed:
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
            *(None,) * 8,
            *((g * grad_loss).to(d) for g, d in zip(grads, ctx.dtypes)),
        )


def _tempered(logits_MV: torch.Tensor, temperature: float) -> torch.Tensor:
    logits_MV = logits_MV.float()
    return logits_MV if temperature == 1 else logits_MV / temperature


def top(values_MV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `topk`, in any order: (values_MK, indices_MK). The k greatest lie in the k blocks with the greatest maxima, so few are sorted."""
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
    # numpy selects twice as fast as torch does
    indices_MK = torch.from_numpy(np.argpartition(values_MN.numpy(), -k, -1)[:, -k:])
    return values_MN.gather(-1, indices_MK), indices_MK


def _closed_form(
    student_MV: torch.Tensor,
    teacher_MV: torch.Tensor,
    k: int,
    tail: bool,
    forward_weight: float,
    gradient: bool,
):
    """(loss_M, Q_M, teacher's mass_M, entropy_M) and the gradient of the summed loss by `student_MV`."""
    whole = k >= student_MV.shape[-1]
    log_s_MK, log_t_MK = log_s_MV, log_t_MV = student_MV.log_softmax(-1), teacher_MV.log_softmax(-1)
    if not whole:
        log_s_MK, indices_MK = top(log_s_MV, k)
        log_t_MK = log_t_MV.gather(-1, indices_MK)
    s_MK, ratio_MK = log_s_MK.exp(), log_s_MK - log_t_MK
    loss_M1, entropy_M1 = _dot(s_MK, ratio_MK), -_dot(s_MK, log_s_MK)
    # over the whole vocabulary both masses are 1
    t_MK = log_t_MK.exp() if forward_weight or not whole else None
    mass_M1, teacher_mass_M1 = (
        torch.ones_like(loss_M1) if whole else x.sum(-1, keepdim=True) for x in (s_MK, t_MK)
    )
    q_M1 = torch.zeros_like(loss_M1)
    total_M1 = loss_M1
    if tail and not whole:
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
