"""Sensitivity scores of a model whose weights are at servers alone (`model.weights=servers`).

A server lists the likeliest tokens of each place, not the whole vocabulary, so the divergences are
estimates:

* a token that both sides list has its own place in both distributions,
* a token that only one side lists gets, on the other side, the probability of the least likely of
  its likeliest tokens, or an even share of what is left, if that is less. It cannot be likelier
  than the first. A response's own token is always listed, however unlikely: it sets no such bound,
* all other tokens are one.

With as many tokens as the vocabulary has, nothing is estimated. With fewer, a shift onto tokens
that the other side does not list is underestimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch

from policyalign_assets.engine.base import Progress, Sampling, chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.generation.vllm_server_engine import VllmServerEngine
from policyalign_assets.engine.responses import check_lengths
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.sensitivity.divergences import TokenDivergences
from policyalign_assets.sensitivity.partial_scores import PartialScores
from policyalign_assets.sensitivity.score import rows_of
from policyalign_assets.settings import SensitivitySettings
from policyalign_assets.tables import SENSITIVITY

LEAST = 1e-9  # probability of all other tokens, where rounding leaves none


def score_by_servers(
    policy: PolicyDocument,
    instructions: pa.Table,
    engine: VllmServerEngine,
    settings: SensitivitySettings,
    progress: Progress | None = None,
    parts: PartialScores | None = None,
) -> pa.Table:
    """Like `score_instructions`, without weights in this process.

    Both sides' responses are sampled with their log-probabilities; then each side reads the
    other's response. Raises PromptTooLong, ServersDown, ServerRefuses and NotFinite.
    """
    parts = parts or PartialScores()
    longest = max(instructions["text"].to_pylist(), key=len, default="")
    # One token more than the response, which a server adds to what it reads.
    check_lengths(
        [render(engine.tokenizer, chat(longest, policy.prompt_text))],
        settings.max_new_tokens + 1,
        engine.context,
    )
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.seed)
    top = settings.top_logprobs
    for start, part in parts.remaining(instructions):
        texts = part["text"].to_pylist()
        numbers = range(start, start + part.num_rows)
        without = [render(engine.tokenizer, chat(t)) for t in texts]
        within = [render(engine.tokenizer, chat(t, policy.prompt_text)) for t in texts]
        students, of_students = engine.with_top_log_probs(without, sampling, top, rows=numbers)
        teachers, of_teachers = engine.with_top_log_probs(within, sampling, top, rows=numbers)
        by_teachers = engine.read_responses(within, [g.token_ids for g in students], top, numbers)
        by_students = engine.read_responses(without, [g.token_ids for g in teachers], top, numbers)
        on_students = [estimated(s, t, top) for s, t in zip(of_students, by_teachers, strict=True)]
        on_teachers = [estimated(s, t, top) for s, t in zip(by_students, of_teachers, strict=True)]
        rows = rows_of(
            part,
            (students, teachers),
            (on_students, on_teachers),
            {"seed": settings.seed, "model_id": engine.model_id, "model_revision": engine.revision},
        )
        parts.save(start, pa.Table.from_pylist(rows, schema=SENSITIVITY))
        if progress:
            progress(start + part.num_rows, instructions.num_rows)
    return parts.table(SENSITIVITY)


def estimated(
    student: Sequence[Mapping[int, float]], teacher: Sequence[Mapping[int, float]], top: int
) -> TokenDivergences | None:
    """The divergences on a response from what both sides list; None for an empty response.

    Each place lists the log-probabilities of its `top` likeliest tokens and of the response's own.
    """
    if not student:
        return None
    per_token = [_of_token(s, t, top) for s, t in zip(student, teacher, strict=True)]
    return TokenDivergences(*map(torch.tensor, zip(*per_token, strict=True)))


def _of_token(
    student: Mapping[int, float], teacher: Mapping[int, float], top: int
) -> tuple[float, float, float]:
    tokens = sorted({*student, *teacher})
    p, q = _filled(student, tokens, top), _filled(teacher, tokens, top)
    middle = (p + q) / 2

    def kl(one: np.ndarray, other: np.ndarray) -> float:
        return max(0.0, float((one * np.log(one / other)).sum()))

    return kl(p, q), kl(q, p), (kl(p, middle) + kl(q, middle)) / 2


def _filled(listed: Mapping[int, float], tokens: Sequence[int], top: int) -> np.ndarray:
    """Probabilities of the tokens and, last, of all others together."""
    known = {token: float(np.exp(p)) for token, p in listed.items()}
    left, missing = max(1.0 - sum(known.values()), LEAST), len(tokens) - len(known)
    last = sorted(known.values(), reverse=True)[:top][-1]
    each = min(last, left / (missing + 1)) if missing else 0.0
    p = np.array([known.get(token, each) for token in tokens] + [left - missing * each])
    p = np.maximum(p, LEAST / (len(p) + 1))
    return np.asarray(p / p.sum())
