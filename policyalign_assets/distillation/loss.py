"""Reverse KL from student to teacher on the student's own top tokens (method.md; verl fork `kl_penalty`).

    L = mean over response tokens of  sum over v in top-k(student) of  p_s(v) * (log p_s(v) - log p_t(v))

The probabilities are those over the whole vocabulary, *not* renormalised over the top k: renormalising drops "the teacher
rejects these tokens". That is close to the full KL only while the student's mass Q on its top k is near 1, so Q is returned
and logged; `tail=True` adds all other tokens as one bucket.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ReverseKL:
    loss_sum: torch.Tensor  # scalar with gradient: sum over the M tokens
    student_mass_M: torch.Tensor  # Q
    teacher_mass_M: torch.Tensor
    entropy_M: torch.Tensor  # student entropy over its top k


def reverse_kl_top_k(student_logits_MV: torch.Tensor, teacher_logits_MV: torch.Tensor, k: int, tail: bool = False) -> ReverseKL:
    """`k` above the vocabulary size means the full vocabulary. The teacher carries no gradient. float32 throughout."""
    student, teacher = student_logits_MV.float(), teacher_logits_MV.detach().float()
    k = min(k, student.shape[-1])
    top_MK = student.detach().topk(k, dim=-1).indices
    log_s_MK = student.gather(-1, top_MK) - student.logsumexp(-1, keepdim=True)
    log_t_MK = teacher.gather(-1, top_MK) - teacher.logsumexp(-1, keepdim=True)
    s_MK = log_s_MK.exp()
    loss_M = (s_MK * (log_s_MK - log_t_MK)).sum(-1)
    student_mass_M, teacher_mass_M = s_MK.sum(-1), log_t_MK.exp().sum(-1)
    if tail and k < student.shape[-1]:
        rest_s, rest_t = (1 - student_mass_M).clamp_min(1e-12), (1 - teacher_mass_M).clamp_min(1e-12)
        loss_M = loss_M + rest_s * (rest_s.log() - rest_t.log())
    return ReverseKL(loss_M.sum(), student_mass_M.detach(), teacher_mass_M, -(s_MK * log_s_MK).sum(-1).detach())
