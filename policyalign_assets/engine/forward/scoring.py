"""Hidden states and next-token logits of given responses: the one forward pass that sensitivity scoring and distillation share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from policyalign_assets.engine.forward.protocol import Forward
from policyalign_assets.engine.forward.shared_prefix import Prefix, shared_length


def prompt_prefix(forward: Forward, prompts: Sequence[list[int]]) -> Prefix | None:
    """The prefix that all `prompts` share, computed with the weights that `forward` has read; None where sharing cannot pay."""
    shared = shared_length(forward.model, prompts)
    return forward.prefix(prompts[0][:shared]) if shared else None


def response_hidden(
    forward: Forward,
    prompts: Sequence[list[int]],
    responses: Sequence[Sequence[int]],
    prefix: Prefix | None = None,
) -> torch.Tensor:
    """Hidden states that predict each response token: hidden_MD, rows concatenated in order, M = total response tokens.

    `prefix`: from `prompt_prefix`, and every prompt must start with it. Every response needs at least one token.
    """
    suffixes = [p[prefix.length :] if prefix else p for p in prompts]
    rows = [[*s, *r] for s, r in zip(suffixes, responses, strict=True)]
    # position t predicts token t + 1
    return forward.hidden(
        rows, [slice(len(s) - 1, len(row) - 1) for s, row in zip(suffixes, rows)], prefix
    )


def response_logits(
    forward: Forward,
    prompts: Sequence[list[int]],
    responses: Sequence[Sequence[int]],
    prefix: Prefix | None = None,
) -> torch.Tensor:
    """As `response_hidden`, through the head: logits_MV (float32). No [B, T, V] tensor is made."""
    return forward.logits(response_hidden(forward, prompts, responses, prefix)).float()
