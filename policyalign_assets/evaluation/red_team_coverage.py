"""How much of the red-team prompts that others wrote is near what was synthesized for training.

Half of a set of prompts is measured. Around each of its prompts lies a ball that reaches to the
fifth nearest of the same half. A prompt is covered if its ball holds an instruction. Two
other sources of texts, equal in number to the instructions, say what a share of covered prompts is
worth. The other half of the set gives the ceiling, and harmless prompts give the control.

Nearness is the cosine of TF-IDF vectors of words and pairs of words, or of a sentence encoder's.
TF-IDF is fitted on all texts together. If it were fitted on the prompts alone, words that they do
not use would vanish from the other texts: "How can I kill a Python process?" would shrink to "how
can I", which is near every prompt that begins so, and harmless prompts would cover the set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NEIGHBOURS = 5
LEAST_PROMPTS = 4 * NEIGHBOURS  # of a set; fewer leave no meaningful balls
MOST_PROMPTS = 2_000  # of a set, taken evenly: bounds the memory of the similarities
MOST_TEXTS = 10_000  # of one rule, of all rules, of the harmless prompts; likewise
DRAWS = 50  # of texts equal in number, whose shares are averaged

# Ceiling minus control; with less, harmless prompts cover the set too and nothing can be told
LEAST_ROOM = 0.2

# N texts to N vectors of length 1: a NumPy array or a SciPy matrix, of shape (N, D)
Encoder = Callable[[Sequence[str]], Any]


@dataclass(frozen=True)
class RedTeamCoverage:
    """Coverage of one set of prompts by the instructions of one rule, or of all (`rule_id` None).

    prompts: how many were measured. instructions: distinct ones. compared: how many texts of each
        source were taken at a time, over many draws.
    coverage, ceiling, control: shares of the measured prompts. `control` is None without harmless
        prompts, and `coverage` is then that of as many instructions as the other half has prompts.
    between: (coverage - control) / (ceiling - control), which is 0 for texts no nearer than
        harmless ones and 1 for texts like the set's own. None where the ceiling is not clearly
        above the control.
    """

    benchmark: str
    rule_id: str | None
    prompts: int
    instructions: int
    compared: int
    coverage: float
    ceiling: float
    control: float | None
    between: float | None
    method: str


def red_team_coverage(
    benchmark: str,
    prompts: Sequence[str],
    by_rule: Mapping[str, Sequence[str]],
    harmless: Sequence[str],
    seed: int,
    encoder: Encoder | None = None,
) -> list[RedTeamCoverage]:
    """Coverage of `prompts` by all instructions, then by those of each rule.

    by_rule: {rule id: instructions that break it}. A rule without instructions is left out.
    Returns nothing for fewer than LEAST_PROMPTS prompts, or without instructions.
    """
    rng = np.random.default_rng(seed)
    distinct = _some(prompts, MOST_PROMPTS)
    everything = [text for texts in by_rule.values() for text in texts]
    sources = {None: _some(everything, MOST_TEXTS)} | {
        rule_id: _some(texts, MOST_TEXTS) for rule_id, texts in by_rule.items() if texts
    }
    if len(distinct) < LEAST_PROMPTS or not everything:
        return []
    benign = _some(harmless, MOST_TEXTS)
    order = rng.permutation(len(distinct))
    half = len(distinct) // 2
    measured = [distinct[i] for i in order[:half]]
    others = [distinct[i] for i in order[half:]]
    encode = encoder or _tfidf([*distinct, *sources[None], *benign])
    balls = _Balls(encode(measured))
    of_others = balls.holding(encode(others))
    of_benign = balls.holding(encode(benign)) if benign else None
    found = []
    for rule_id, texts in sources.items():
        compared = min(len(texts), len(others), len(benign) or len(texts))
        coverage = _share(balls.holding(encode(texts)), compared, rng)
        ceiling = _share(of_others, compared, rng)
        control = None if of_benign is None else _share(of_benign, compared, rng)
        found.append(
            RedTeamCoverage(
                benchmark,
                rule_id,
                len(measured),
                len(texts),
                compared,
                coverage,
                ceiling,
                control,
                _between(coverage, ceiling, control),
                "encoder" if encoder else "TF-IDF",
            )
        )
    return found


def _some(texts: Sequence[str], most: int) -> list[str]:
    """The distinct texts, or `most` of them taken evenly."""
    distinct = list(dict.fromkeys(texts))
    if len(distinct) <= most:
        return distinct
    return [distinct[i] for i in np.linspace(0, len(distinct) - 1, most, dtype=int)]


def _between(coverage: float, ceiling: float, control: float | None) -> float | None:
    if control is None or ceiling - control < LEAST_ROOM:
        return None
    return (coverage - control) / (ceiling - control)


def _share(holds_NM: np.ndarray, compared: int, rng: np.random.Generator) -> float:
    """The share of N balls that hold one of `compared` texts, as the mean over draws of the M."""
    texts = holds_NM.shape[1]
    if compared == texts:
        return float(holds_NM.any(axis=1).mean())
    draws = (rng.choice(texts, compared, replace=False) for _ in range(DRAWS))
    return float(np.mean([holds_NM[:, drawn].any(axis=1).mean() for drawn in draws]))


class _Balls:
    """Balls around N vectors of length 1: each reaches to its fifth nearest neighbour."""

    def __init__(self, centres_ND: Any):
        self.centres_ND = centres_ND
        similarity_NN = _similarity(centres_ND, centres_ND)
        np.fill_diagonal(similarity_NN, -np.inf)
        self.least_N = np.partition(similarity_NN, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS]

    def holding(self, points_MD: Any) -> np.ndarray:
        """Which of N balls hold which of M points. A point that shares nothing is in no ball."""
        similarity_NM = _similarity(self.centres_ND, points_MD)
        return (similarity_NM >= self.least_N[:, None]) & (similarity_NM > 0)


def _similarity(a_ND: Any, b_MD: Any) -> np.ndarray:
    """Cosines, as an array of shape (N, M)."""
    product_NM = a_ND @ b_MD.T
    return product_NM if isinstance(product_NM, np.ndarray) else product_NM.toarray()


def _tfidf(texts: Sequence[str]) -> Encoder:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    vectorizer.fit(texts)
    return vectorizer.transform


def transformer_encoder(path: str, batch: int = 64) -> Encoder:
    """Mean-pooled vectors of a transformers encoder, by folder or hub id. Runs no code of its own.

    Raises ValueError if it cannot be loaded.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModel.from_pretrained(path, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"evaluation.coverage_encoder={path!r} cannot be loaded: {str(error).splitlines()[0]} "
            "Fix: name a folder or hub id of a transformers encoder with safetensors, or leave the "
            "setting out, which compares by TF-IDF."
        ) from None

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(texts), batch):
            some = list(texts[start : start + batch])
            inputs = tokenizer(some, padding=True, truncation=True, return_tensors="pt")
            hidden_BTD = model(**inputs).last_hidden_state
            mask_BT1 = inputs["attention_mask"].unsqueeze(-1).to(hidden_BTD.dtype)
            mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
            parts.append(torch.nn.functional.normalize(mean_BD, dim=1).float().numpy())
        return np.concatenate(parts)

    return encode
