"""Cuts work into batches of similar length, and finds the token prefix that a batch shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PretrainedConfig


def by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yields index batches, longest first (memory trouble shows at once), each at most `batch_tokens` when padded.

    A row longer than `batch_tokens` gets a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest token prefix of all rows that leaves each row at least one token."""
    low, high = min(rows), max(rows)
    shared = next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))
    return min(shared, min(map(len, rows)) - 1)


def can_share_prefix(config: PretrainedConfig) -> bool:
    """Whether one cache of the prefix serves every row: full attention in every layer.

    Sliding-window and linear-attention layers keep a bounded state, which a repeated prefix cache does not describe.
    """
    types = getattr(config, "layer_types", None)
    return all(t == "full_attention" for t in types) if types else getattr(config, "sliding_window", None) is None
