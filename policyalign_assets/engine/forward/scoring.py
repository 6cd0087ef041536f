"""Hidden states and next-token logits of given responses.

Sensitivity scoring and distillation share this forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from policyalign_assets.engine.forward.protocol import Forward
from policyalign_assets.engine.forward.shared_prefix import Prefix, shared_length

LOGITS = 1 << 24  # held at a time (64 MiB in float32)


def logits_held(forward: Forward) -> int:
    """For how many tokens the logits of the whole vocabulary are held at a time."""
    return max(1, LOGITS // int(forward.model.config.get_text_config().vocab_size))


def prompt_prefix(forward: Forward, prompts: Sequence[list[int]]) -> Prefix | None:
    """Computes the prefix that all `prompts` share; returns None if sharing does not pay."""
    shared = shared_length(forward.model, prompts)
    return forward.prefix(prompts[0][:shared]) if shared else None


def response_hidden(
    forward: Forward,
    prompts: Sequence[list[int]],
    responses: Sequence[Sequence[int]],
    prefix: Prefix | None = None,
) -> torch.Tensor:
    """Hidden states that predict each response token: hidden_MD, rows concatenated in order.

    M is the number of response tokens. Every response needs at least one token. `prefix` comes
    from `prompt_prefix`, and every prompt must start with it.
    """
    suffixes = [p[prefix.length :] if prefix else p for p in prompts]
    rows = [[*s, *r] for s, r in zip(suffixes, responses, strict=True)]
    # The hidden state at position t predicts token t + 1.
    predicting = [slice(len(s) - 1, len(row) - 1) for s, row in zip(suffixes, rows)]
    return forward.hidden(rows, predicting, prefix)


def response_logits(
    forward: Forward,
    prompts: Sequence[list[int]],
    responses: Sequence[Sequence[int]],
    prefix: Prefix | None = None,
) -> torch.Tensor:
    """Like `response_hidden`, then through the head: logits_MV (float32).

    No [B, T, V] tensor is made.
    """
    return forward.logits(response_hidden(forward, prompts, responses, prefix)).float()
