"""How much of the red-team prompts that others wrote is near what was synthesized.

A prompt is covered if a synthesized instruction lies within its ball: no farther from it than its
fifth nearest neighbour among the prompts of the same set. Half of a set is measured. The other half
in the place of the instructions gives the ceiling, and harmless prompts give the control. Distances
are cosines of TF-IDF vectors of words and pairs of words, or of a sentence encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 5
LEAST_PROMPTS = 4 * NEIGHBOURS  # of a set; fewer leave no meaningful balls
MOST_PROMPTS = 2_000  # of a set, taken evenly, which bounds the memory of the distances

# Ceiling minus control; with less, harmless prompts cover the set too and nothing can be told
LEAST_ROOM = 0.2

Encoder = Callable[[Sequence[str]], np.ndarray]  # N texts to vectors_ND of length 1


@dataclass(frozen=True)
class RedTeamCoverage:
    """Coverage of one set of prompts by the instructions of one rule, or of all (`rule_id` None).

    coverage, ceiling, control: shares of the measured prompts. `control` is None without harmless
        prompts. `between` is (coverage - control) / (ceiling - control), or None where the ceiling
        is not clearly above the control.
    """

    benchmark: str
    rule_id: str | None
    prompts: int
    instructions: int
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

    by_rule: {rule id: instructions that break it}. Returns nothing for fewer than LEAST_PROMPTS.
    """
    distinct = list(dict.fromkeys(prompts))
    if len(distinct) < LEAST_PROMPTS:
        return []
    distinct = [distinct[i] for i in np.linspace(0, len(distinct) - 1, MOST_PROMPTS, dtype=int)]
    distinct = list(dict.fromkeys(distinct))
    order = np.random.default_rng(seed).permutation(len(distinct))
    half = len(distinct) // 2
    measured = [distinct[i] for i in order[:half]]
    others = [distinct[i] for i in order[half:]]
    encode = encoder or _tfidf(distinct)
    balls = _Balls(encode(measured))
    ceiling = balls.covered(encode(others))
    control = balls.covered(encode(harmless)) if harmless else None
    everything = [text for texts in by_rule.values() for text in texts]
    sets: list[tuple[str | None, Sequence[str]]] = [(None, everything), *by_rule.items()]
    found = []
    for rule_id, texts in sets:
        coverage = balls.covered(encode(texts)) if texts else 0.0
        found.append(
            RedTeamCoverage(
                benchmark,
                rule_id,
                len(measured),
                len(texts),
                coverage,
                ceiling,
                control,
                _between(coverage, ceiling, control),
                "encoder" if encoder else "TF-IDF",
            )
        )
    return found


def _between(coverage: float, ceiling: float, control: float | None) -> float | None:
    if control is None or ceiling - control < LEAST_ROOM:
        return None
    return (coverage - control) / (ceiling - control)


class _Balls:
    """Balls around N vectors of length 1: each reaches to its fifth nearest neighbour."""

    def __init__(self, centres_ND: np.ndarray):
        self.centres_ND = centres_ND
        similarity_NN = centres_ND @ centres_ND.T
        np.fill_diagonal(similarity_NN, -np.inf)
        self.least_N = np.partition(similarity_NN, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS]

    def covered(self, points_MD: np.ndarray) -> float:
        """The share of balls that hold a point. A point that shares nothing is in no ball."""
        nearest_N = (self.centres_ND @ points_MD.T).max(axis=1)
        return float(np.mean((nearest_N >= self.least_N) & (nearest_N > 0)))


def _tfidf(prompts: Sequence[str]) -> Encoder:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    vectorizer.fit(prompts)
    return lambda texts: vectorizer.transform(texts).toarray()


def transformer_encoder(path: str, batch: int = 64) -> Encoder:
    """Mean-pooled vectors of a transformers encoder, by folder or id. Runs no code of its own."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path, use_safetensors=True).eval()

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
