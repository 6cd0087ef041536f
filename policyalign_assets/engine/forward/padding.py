"""Rows of different lengths: packed for all that is done token by token, padded on the right for attention alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Padding:
    """`packed` holds all rows' tokens one after another, [M, ...]; `padded` [B, T, ...] repeats the first token where a row has ended."""

    def __init__(self, lengths: Sequence[int], device: torch.device):
        self.shape = batch, width = len(lengths), max(lengths)
        self.needed = min(lengths) < width
        lengths_B1 = torch.tensor(lengths, device=device)[:, None]
        steps_T = torch.arange(width, device=device)
        self.real_BT = steps_T < lengths_B1
        ends_B1 = lengths_B1.cumsum(0)
        starts_B1 = ends_B1 - lengths_B1
        self.bounds_b = torch.cat([starts_B1[:1], ends_B1])[
            :, 0
        ].int()  # where each row starts, and the last one ends
        self.positions_M = steps_T.expand(batch, width)[self.real_BT]
        if self.needed:
            self._from_N = torch.where(self.real_BT, starts_B1 + steps_T, 0).flatten()
            self._to_M = self.real_BT.flatten().nonzero()[:, 0]

    def pad(self, packed: torch.Tensor) -> torch.Tensor:
        """The gradient of what comes out must be zero where a row has ended: after causal attention it is."""
        if self.needed:
            packed = _Taken.apply(packed, self._from_N, self._to_M, None)
        return packed.unflatten(0, self.shape)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        flat = padded.flatten(0, 1)
        return (
            _Taken.apply(flat, self._to_M, self._from_N, self.real_BT.flatten())
            if self.needed
            else flat
        )


class _Taken(torch.autograd.Function):
    """Rows `taken` of a tensor. Each goes back to where it came from: `given` says which of them each row of the input was."""

    @staticmethod
    def forward(ctx, x, taken, given, given_is_real):
        ctx.save_for_backward(given, given_is_real)
        return x.index_select(0, taken)

    @staticmethod
    def backward(ctx, grad):
        given, given_is_real = ctx.saved_tensors
        back = grad.index_select(0, given)
        if given_is_real is not None:
            back[~given_is_real] = 0
        return back, None, None, None
