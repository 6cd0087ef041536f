"""Shares one policy among many requests: its key/values are computed once for a whole batch.

Copying the prefix's cache into each row would cost memory traffic at every decoding step (a policy
has about 270 tokens, a request about 20). Here rows hold only their own suffix. A registered
attention function lets them attend to the single prefix as well, in one softmax, so results equal
full recomputation up to rounding (tested). Positions of suffix tokens start at the prefix's length:
starting at 0 would raise no error and give wrong results.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import eager_mask

from policyalign_assets.engine.forward.kv_cache import has_full_attention_only

NAME = "policyalign_shared_prefix"
# A group of rows has a prefix of its own if it has so many rows, and so many tokens more in common.
ALIKE, MUCH_SHARED = 8, 64
MIN_SHARED = 16  # a common prefix of fewer tokens is not worth sharing


class Prefix:
    """Key/values of one token prefix.

    `layers[i]` is (keys_HPD, values_HPD), with rotary positions 0..P-1 applied.
    """

    def __init__(self, length: int, layers: list[tuple[torch.Tensor, torch.Tensor]]):
        self.length, self.layers = length, layers


def can_share(model: Any) -> bool:
    """Whether every layer has full attention through transformers' attention interface.

    Sliding-window and linear-attention layers keep a bounded state that `Prefix` does not describe.
    """
    config = model.config
    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Models like Bloom and MPT would never call our attention function.
    if not backbone._supports_attention_backend:
        return False
    # The attention of a multimodal model reads another configuration than `model.config`.
    if config.get_text_config() is not config:
        return False
    if not has_full_attention_only(config):
        return False
    # Multi-head latent attention (DeepSeek, MiniCPM3): keys and values have different sizes.
    if getattr(config, "kv_lora_rank", None) or getattr(config, "v_head_dim", None):
        return False
    types = getattr(config, "layer_types", None)
    full = (
        all(t == "full_attention" for t in types)
        if types
        else getattr(config, "sliding_window", None) is None
    )
    return full and getattr(config, "attn_logit_softcapping", None) is None


def shared_length(model: Any, rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest common token prefix that leaves each row at least one token.

    Returns 0 where sharing is impossible or does not pay.
    """
    if len(rows) < 2:
        return 0
    if not can_share(model):
        _warn_once(model.config.model_type)
        return 0
    # The common prefix of all rows is that of the first and the last in lexicographic order.
    low, high = min(map(list, rows)), max(map(list, rows))
    common = min(_common(low, high), min(map(len, rows)) - 1)
    return common if common >= MIN_SHARED else 0


def alike(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Divides rows, by number, so that those which share a prefix of their own stand together.

    Some requests have the policy or a long text before them, where others do not. A group has at
    least ALIKE rows that share MUCH_SHARED tokens more than all rows do. The other rows are the
    last group.
    """
    order = sorted(range(len(rows)), key=lambda i: list(rows[i]))
    shared = [_common(rows[a], rows[b]) for a, b in itertools.pairwise(order)]
    least = min(shared, default=0) + MUCH_SHARED
    groups, others, run = list[list[int]](), list[int](), order[:1]
    for row, common in zip([*order[1:], -1], [*shared, 0]):
        if row >= 0 and common >= least:
            run.append(row)
            continue
        if len(run) >= ALIKE:
            groups.append(sorted(run))
        else:
            others += run
        run = [row]
    return [*groups, sorted(others)] if others else groups


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


@cache
def _warn_once(model_type: str) -> None:
    logging.getLogger(__name__).warning(
        "the attention of %s cannot share one policy among answers: the policy is computed again "
        "for each answer, which takes longer",
        model_type,
    )


@torch.no_grad()
def compute_prefix(model: Any, tokens: Sequence[int]) -> Prefix:
    """Runs `tokens` through `model` in its current state, active adapter included."""
    cache: Any = DynamicCache(config=model.config)
    model(
        input_ids=torch.tensor([list(tokens)], device=model.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return Prefix(len(tokens), [(layer.keys[0], layer.values[0]) for layer in cache.layers])


@contextmanager
def attending_to(model: Any, prefix: Prefix | None) -> Iterator[int]:
    """While active, every row of `model`'s input continues `prefix`.

    Yields the position of the first suffix token.
    """
    if prefix is None:
        yield 0
        return
    config = model.config
    before = config._attn_implementation
    config.policyalign_prefix = prefix
    config._attn_implementation = NAME
    try:
        yield prefix.length
    finally:
        config._attn_implementation = before
        del config.policyalign_prefix


def _attention(
    module: Any,
    query_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    prefix = module.config.policyalign_prefix.layers[module.layer_idx]
    out_BHTD = attend(query_BHTD, key_BGSD, value_BGSD, prefix, scaling, mask=attention_mask)
    return out_BHTD.transpose(1, 2).contiguous(), None


def attend(
    query_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    scaling: float,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Softmax attention over prefix and suffix together: out_BHTD.

    H query heads share G key heads (grouped-query attention). `mask` is the suffix's additive mask
    [B, 1, T, S]. Each part gets its own softmax and is weighted by its share of the total, because
    one softmax over both would need a copy of the prefix joined to every row.
    """
    batch, heads, length, dim = query_BHTD.shape
    # All rows attend to the one prefix in a single product.
    flat_1HND = query_BHTD.transpose(0, 1).reshape(1, heads, batch * length, dim)
    from_prefix, prefix_lse = _attended(flat_1HND, prefix[0][None], prefix[1][None], scaling)
    from_prefix, prefix_lse = (
        x.unflatten(2, (batch, length))[0].transpose(0, 1) for x in (from_prefix, prefix_lse)
    )
    from_suffix, suffix_lse = _attended(query_BHTD, key_BGSD, value_BGSD, scaling, mask, causal)
    return torch.lerp(
        from_suffix,
        from_prefix,
        torch.sigmoid(prefix_lse - suffix_lse)[..., None].to(from_suffix.dtype),
    )


def _attended(
    query_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention out_BHTD, and the log of each query's softmax denominator lse_BHT (float32)."""
    if query_BHTD.device.type == "cpu":
        # This is the kernel behind scaled_dot_product_attention, which hides the denominator.
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query_BHTD, key_BGSD, value_BGSD, 0.0, causal, attn_mask=mask, scale=scaling)
    batch, heads, length, dim = query_BHTD.shape
    groups = key_BGSD.shape[1]
    scores_BHTS = (
        query_BHTD.reshape(batch, groups, -1, dim) * scaling @ key_BGSD.transpose(2, 3)
    ).view(batch, heads, length, -1)
    if causal:
        hidden_TS = torch.ones(
            scores_BHTS.shape[2:], dtype=torch.bool, device=scores_BHTS.device
        ).triu(1)
        scores_BHTS.masked_fill_(hidden_TS, -torch.inf)
    if mask is not None:
        scores_BHTS += mask
    weights_BHTS = scores_BHTS.softmax(-1, dtype=torch.float32)
    # The largest weight equals exp(largest score - lse).
    lse_BHT = scores_BHTS.amax(-1).float() - weights_BHTS.amax(-1).log()
    out = (
        weights_BHTS.to(value_BGSD.dtype).view(batch, groups, -1, scores_BHTS.shape[-1])
        @ value_BGSD
    )
    return out.view(batch, heads, length, dim), lse_BHT


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)
