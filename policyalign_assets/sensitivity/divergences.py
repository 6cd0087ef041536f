"""How far two next-token distributions lie apart, per response token, in nats."""

from __future__ import annotations

from typing import NamedTuple

import torch


class TokenDivergences(NamedTuple):
    reverse_M: torch.Tensor  # KL(student || teacher)
    forward_M: torch.Tensor  # KL(teacher || student)
    js_M: torch.Tensor  # Jensen-Shannon, at most log 2


def token_divergences(
    student_logits_MV: torch.Tensor, teacher_logits_MV: torch.Tensor
) -> TokenDivergences:
    """Divergences over the full vocabulary, in float32."""
    log_s_MV = student_logits_MV.float().log_softmax(-1)
    log_t_MV = teacher_logits_MV.float().log_softmax(-1)
    log_m_MV = torch.logaddexp(log_s_MV, log_t_MV) - torch.log(torch.tensor(2.0))
    s_MV, t_MV = log_s_MV.exp(), log_t_MV.exp()

    def kl(p_MV: torch.Tensor, log_p_MV: torch.Tensor, log_q_MV: torch.Tensor) -> torch.Tensor:
        return (p_MV * (log_p_MV - log_q_MV)).sum(-1).clamp_min(0)  # rounding can give -1e-8

    return TokenDivergences(
        kl(s_MV, log_s_MV, log_t_MV),
        kl(t_MV, log_t_MV, log_s_MV),
        0.5 * (kl(s_MV, log_s_MV, log_m_MV) + kl(t_MV, log_t_MV, log_m_MV)),
    )
