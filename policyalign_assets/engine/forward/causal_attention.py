"""Causal attention of padded rows, with a faster backward pass for short rows on a CPU."""

from __future__ import annotations

from typing import Any

import torch

SHORT = 256  # up to this many tokens a row, the attention weights are kept for the backward pass


def causal_attention(
    q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Softmax attention of each token to itself and to earlier tokens: out_BHTD.

    H query heads share G key heads (grouped-query attention).
    """
    if torch.is_grad_enabled() and q_BHTD.device.type == "cpu" and q_BHTD.shape[2] <= SHORT:
        return _ShortAttention.apply(q_BHTD, k_BGTD, v_BGTD, scaling)
    return torch.nn.functional.scaled_dot_product_attention(
        q_BHTD,
        k_BGTD,
        v_BGTD,
        is_causal=True,
        scale=scaling,
        enable_gqa=q_BHTD.shape[1] != k_BGTD.shape[1],
    )


class _ShortAttention(torch.autograd.Function):
    """Keeps the attention weights for the backward pass.

    For short rows that is cheaper than the fused kernel, which computes them twice.
    Suffixes: C = B * G, and N = H/G * T (all queries that share one key head).
    """

    @staticmethod
    def forward(ctx: Any, q_BHTD, k_BGTD, v_BGTD, scaling: float) -> torch.Tensor:
        batch, heads, length, dim = q_BHTD.shape
        groups = k_BGTD.shape[1]
        q_CND = q_BHTD.reshape(batch * groups, -1, dim)
        k_CTD, v_CTD = k_BGTD.reshape(-1, length, dim), v_BGTD.reshape(-1, length, dim)
        later_1NT = (
            q_CND.new_full((length, length), -torch.inf).triu(1).repeat(heads // groups, 1)[None]
        )
        weights_CNT = torch.baddbmm(later_1NT, q_CND, k_CTD.transpose(1, 2), alpha=scaling).softmax(
            -1
        )
        ctx.save_for_backward(q_CND, k_CTD, v_CTD, weights_CNT)
        ctx.shapes, ctx.scaling = (q_BHTD.shape, k_BGTD.shape), scaling
        return torch.bmm(weights_CNT, v_CTD).view(q_BHTD.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_BHTD,) = grads
        q_CND, k_CTD, v_CTD, weights_CNT = ctx.saved_tensors
        query_shape, key_shape = ctx.shapes
        grad_CND = grad_BHTD.reshape(q_CND.shape)
        grad_weights_CNT = torch.bmm(grad_CND, v_CTD.transpose(1, 2))
        grad_scores_CNT = torch._softmax_backward_data(
            grad_weights_CNT, weights_CNT, -1, weights_CNT.dtype
        ).mul_(ctx.scaling)
        return (
            torch.bmm(grad_scores_CNT, k_CTD).view(query_shape),
            torch.bmm(grad_scores_CNT.transpose(1, 2), q_CND).view(key_shape),
            torch.bmm(weights_CNT.transpose(1, 2), grad_CND).view(key_shape),
            None,
        )
