"""Random choices that belong to a row, not to the batch that happens to contain it.

Each row has its own stream of uniform numbers, derived from (seed, row). A row therefore gets the
same answer whatever is generated beside it: in batches of any size, on one process or several.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from policyalign_assets.engine.base import Sampling

CODE_VERSION = 1  # raise it when new code changes how tokens are drawn

# A choice is sure if the logits' lead, or the distance from the next token's share, is above these.
SURE_LOGIT, SURE_SHARE = 1e-3, 1e-4

NO_TOKEN = -1  # returned instead of a token id where the logits are NaN


def uniforms(sampling: Sampling, rows: Sequence[int]) -> torch.Tensor:
    """Uniform numbers in [0, 1) for each row and new token: uniform_BT, on the CPU."""
    return torch.from_numpy(
        np.stack(
            [
                np.random.default_rng([sampling.seed, row]).random(
                    sampling.max_new_tokens, np.float32
                )
                for row in rows
            ]
        )
    )


def seed_of_row(sampling: Sampling, row: int) -> int:
    """The seed with which vLLM samples a row: another one for each row and each step."""
    return (sampling.seed * 1_000_003 + row) % 2**63


def choose(logits_BV: torch.Tensor, temperature: float, uniform_B: torch.Tensor) -> torch.Tensor:
    """Samples one token per row by inverting the cumulative distribution at `uniform_B`.

    At temperature 0 the most likely token is taken. A token of probability 0 is never chosen.
    Rows whose logits contain NaN give `NO_TOKEN`.
    """
    if temperature == 0:
        best = logits_BV.max(-1)
        return torch.where(best.values.isnan(), NO_TOKEN, best.indices)
    return _drawn(logits_BV, temperature, uniform_B)[0]


def choose_surely(
    logits_BV: torch.Tensor, temperature: float, uniform_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `choose` returns, and whether rounding cannot have decided it: (tokens_B, sure_B).

    Logits of the same token differ by rounding if they are computed in another batch.
    """
    if temperature == 0:
        best_B2, tokens_B2 = logits_BV.topk(2)
        tokens_B = torch.where(best_B2[:, 0].isnan(), NO_TOKEN, tokens_B2[:, 0])
        return tokens_B, best_B2[:, 0] - best_B2[:, 1] > SURE_LOGIT
    tokens_B, cumulative_BV, below_B1 = _drawn(logits_BV, temperature, uniform_B)
    end_B1 = tokens_B[:, None].clamp_min(0)
    above_B1 = cumulative_BV.gather(1, end_B1) - below_B1
    begin_B1 = torch.where(end_B1 > 0, cumulative_BV.gather(1, (end_B1 - 1).clamp_min(0)), -1.0)
    return tokens_B, (torch.minimum(above_B1, below_B1 - begin_B1) > SURE_SHARE)[:, 0]


def _drawn(
    logits_BV: torch.Tensor, temperature: float, uniform_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens_B, cumulative_BV, the points below_B1 of the distributions that chose them)."""
    logits_BV = logits_BV.float() if temperature == 1 else logits_BV.float() / temperature
    cumulative_BV = logits_BV.softmax(-1).cumsum(-1)
    total_B1 = cumulative_BV[:, -1:]  # 1, except for rounding
    # Stay strictly below the total, so that the search never runs past the last possible token.
    below_B1 = torch.minimum(
        uniform_B[:, None] * total_B1, total_B1.nextafter(torch.zeros_like(total_B1))
    )
    tokens_B1 = torch.searchsorted(cumulative_BV, below_B1, right=True)
    return (
        torch.where(total_B1.isnan(), NO_TOKEN, tokens_B1)[:, 0],
        cumulative_BV,
        below_B1,
    )
