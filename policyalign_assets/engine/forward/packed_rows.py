"""Rows of different lengths go through a model packed one after another, without padding.

All weights of a layer are applied to real tokens only. Attention is by kernels that take rows of any length, where a GPU has them
(`varlen_attention.py`). Elsewhere rows are padded for attention alone: it never looks to the right, where a row's padding stands,
so it needs no mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from transformers import AttentionInterface

from policyalign_assets.engine.cpu.plain_ops import causal_attention
from policyalign_assets.engine.forward.padding import Padding
from policyalign_assets.engine.forward.shared_prefix import Prefix, attend
from policyalign_assets.engine.forward.varlen_attention import KeyValues, serves, varlen_attention

NAME = "policyalign_packed_rows"  # no mask is registered under it, so transformers makes none
UNKNOWN = (
    "s_aux",
    "softcap",
    "position_bias",
    "sliding_window",
)  # what an attention may ask for besides, and would not get


@dataclass(frozen=True)
class Rows:
    """Which tokens are a row, and what every row continues."""

    padding: Padding
    prefix: Prefix | None = None

    def attention(
        self,
        layer: int,
        q_MHD: torch.Tensor,
        k_MGD: torch.Tensor,
        v_MGD: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Each token attends to the prefix, to those before it in its row, and to itself: out_MHD."""
        prefix = self.prefix.layers[layer] if self.prefix else None
        if serves(q_MHD.device, q_MHD.dtype, q_MHD.shape[1], *k_MGD.shape[1:], _padded_example):
            return varlen_attention(
                q_MHD, k_MGD, v_MGD, self.padding.bounds_b, self.padding.shape[1], scaling, prefix
            )
        return _padded(self.padding, q_MHD, k_MGD, v_MGD, prefix, scaling)


def _padded(
    padding: Padding,
    q_MHD: torch.Tensor,
    k_MGD: torch.Tensor,
    v_MGD: torch.Tensor,
    prefix: KeyValues | None,
    scaling: float,
) -> torch.Tensor:
    q_BHTD, k_BGTD, v_BGTD = (padding.pad(x).transpose(1, 2) for x in (q_MHD, k_MGD, v_MGD))
    out_BHTD = (
        attend(q_BHTD, k_BGTD, v_BGTD, prefix, scaling, causal=True)
        if prefix
        else causal_attention(q_BHTD, k_BGTD, v_BGTD, scaling)
    )
    return padding.pack(out_BHTD.transpose(1, 2))


def _padded_example(lengths: Sequence[int], q_MHD: torch.Tensor, *others) -> torch.Tensor:
    return _padded(Padding(lengths, q_MHD.device), q_MHD, *others)


def packed_tokens(
    rows: Sequence[Sequence[int]], wanted: Sequence[slice], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids_M, places of the `wanted` tokens of each row among the M)."""
    starts = itertools.accumulate((len(row) for row in rows), initial=0)
    places = [at + t for at, row, w in zip(starts, rows, wanted) for t in range(len(row))[w]]
    return torch.tensor([t for row in rows for t in row], device=device), torch.tensor(
        places, device=device
    )


@contextmanager
def packed(model, rows: Rows | None) -> Iterator[None]:
    """Inside, `model`'s input is one row, [1, M], that holds all `rows` packed. None: what it is without."""
    if rows is None:
        yield
        return
    config = model.config
    before = config._attn_implementation
    config.policyalign_rows, config._attn_implementation = rows, NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        del config.policyalign_rows


def packed_as_now(model) -> AbstractContextManager[None]:
    """`packed` with the rows of now, for a time when they no longer are."""
    return packed(model, getattr(model.config, "policyalign_rows", None))


def _attention(
    module,
    query_1HMD,
    key_1GMD,
    value_1GMD,
    attention_mask,
    scaling: float,
    dropout: float = 0.0,
    **others,
):
    if asked := [name for name in UNKNOWN if others.get(name) is not None]:
        raise NotImplementedError(
            f"the attention of {module.config.model_type} asks for {asked[0]}, which packed rows do not know"
        )
    q_MHD, k_MGD, v_MGD = (x[0].transpose(0, 1) for x in (query_1HMD, key_1GMD, value_1GMD))
    return module.config.policyalign_rows.attention(module.layer_idx, q_MHD, k_MGD, v_MGD, scaling)[
        None
    ], None


AttentionInterface.register(NAME, _attention)
