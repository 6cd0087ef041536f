"""Converts rows of different lengths between a packed and a padded layout.

Everything that is computed token by token uses the packed layout. Only attention needs padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Padding:
    """The two layouts of one batch of rows.

    Packed [M, ...] holds all rows' tokens one after another. Padded [B, T, ...] is filled on the
    right, where it repeats the first token of the batch.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device):
        self.shape = batch, width = len(lengths), max(lengths)
        self.needed = min(lengths) < width
        lengths_B1 = torch.tensor(lengths, device=device)[:, None]
        steps_T = torch.arange(width, device=device)
        self.real_BT = steps_T < lengths_B1
        ends_B1 = lengths_B1.cumsum(0)
        starts_B1 = ends_B1 - lengths_B1
        # The start of each row, then the end of the last one.
        self.bounds_b = torch.cat([starts_B1[:1], ends_B1])[:, 0].int()
        self.positions_M = steps_T.expand(batch, width)[self.real_BT]
        if self.needed:
            self._packed_index_N = torch.where(self.real_BT, starts_B1 + steps_T, 0).flatten()
            self._padded_index_M = self.real_BT.flatten().nonzero()[:, 0]

    def pad(self, packed: torch.Tensor) -> torch.Tensor:
        """Packed to padded.

        The gradient of the result must be zero at padded places; after causal attention it is.
        """
        if self.needed:
            packed = _SelectRows.apply(packed, self._packed_index_N, self._padded_index_M, None)
        return packed.unflatten(0, self.shape)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """Padded to packed."""
        flat = padded.flatten(0, 1)
        if not self.needed:
            return flat
        return _SelectRows.apply(
            flat, self._padded_index_M, self._packed_index_N, self.real_BT.flatten()
        )


class _SelectRows(torch.autograd.Function):
    """Selects rows of a tensor by index, with a backward pass that is a selection as well.

    `inverse` holds, for each input row, the output row whose gradient it receives. Input rows for
    which `is_selected` is false receive zero.
    """

    @staticmethod
    def forward(ctx: Any, x, index, inverse, is_selected) -> torch.Tensor:
        ctx.save_for_backward(inverse, is_selected)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        inverse, is_selected = ctx.saved_tensors
        back = grad.index_select(0, inverse)
        if is_selected is not None:
            back[~is_selected] = 0
        return back, None, None, None
