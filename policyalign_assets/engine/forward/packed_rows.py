"""Runs rows of different lengths through a model packed one after another, without padding.

The weights of a layer are applied to real tokens only. On GPUs, attention uses kernels that accept
rows of any length (`varlen_attention.py`). Elsewhere rows are padded on the right for attention
alone. Causal attention never looks to the right, so the padding needs no mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from policyalign_assets.engine.forward.causal_attention import causal_attention
from policyalign_assets.engine.forward.padding import Padding
from policyalign_assets.engine.forward.shared_prefix import Prefix, attend
from policyalign_assets.engine.forward.varlen_attention import KeyValues, serves, varlen_attention

# transformers builds no attention mask, because none is registered under this name.
NAME = "policyalign_packed_rows"
# Extra arguments of some models' attention that packed rows would ignore.
UNSUPPORTED = ("s_aux", "softcap", "position_bias", "sliding_window")


@dataclass(frozen=True)
class Rows:
    """How packed tokens are divided into rows, and the prefix that every row continues."""

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
        """Each token attends to the prefix, to earlier tokens of its row and to itself: out_MHD."""
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


def _padded_example(lengths: Sequence[int], q_MHD: torch.Tensor, *others: Any) -> torch.Tensor:
    return _padded(Padding(lengths, q_MHD.device), q_MHD, *others)


def packed_tokens(
    rows: Sequence[Sequence[int]], wanted: Sequence[slice], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids_M, and the positions of each row's `wanted` tokens among the M packed tokens."""
    starts = itertools.accumulate((len(row) for row in rows), initial=0)
    places = [at + t for at, row, w in zip(starts, rows, wanted) for t in range(len(row))[w]]
    return torch.tensor([t for row in rows for t in row], device=device), torch.tensor(
        places, device=device
    )


@contextmanager
def packed(model: Any, rows: Rows | None) -> Iterator[None]:
    """While active, `model` treats its input [1, M] as all `rows` packed together.

    With None it treats its input as usual.
    """
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


def recapture_packed(model: Any) -> AbstractContextManager[None]:
    """Captures the current rows and re-enters `packed()` later.

    Gradient checkpointing recomputes layers after the original context has exited.
    """
    return packed(model, getattr(model.config, "policyalign_rows", None))


def _attention(
    module: Any,
    query_1HMD: torch.Tensor,
    key_1GMD: torch.Tensor,
    value_1GMD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    if unsupported := [name for name in UNSUPPORTED if others.get(name) is not None]:
        raise NotImplementedError(
            f"the attention of {module.config.model_type} uses {unsupported[0]}, which packed rows "
            "do not support"
        )
    q_MHD, k_MGD, v_MGD = (x[0].transpose(0, 1) for x in (query_1HMD, key_1GMD, value_1GMD))
    return module.config.policyalign_rows.attention(module.layer_idx, q_MHD, k_MGD, v_MGD, scaling)[
        None
    ], None


AttentionInterface.register(NAME, _attention)
