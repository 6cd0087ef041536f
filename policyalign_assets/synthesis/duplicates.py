"""Finds exact and near duplicates among short texts.

Near duplicates are found by MinHash over character 5-grams (datasketch) and, optionally, by ROUGE-L
over words (rapidfuzz).
"""

from __future__ import annotations

from functools import cache
from typing import Literal

from datasketch import LeanMinHash, MinHash, MinHashLSH
from rapidfuzz.distance import Indel

_PERMUTATIONS = 128


@cache
def _empty(permutations: int) -> MinHash:
    """To draw its random permutations again for every text takes longer than to use them."""
    return MinHash(num_perm=permutations, seed=1)


def normalize(text: str) -> str:
    return " ".join(text.lower().split())


def minhash(text: str, permutations: int = _PERMUTATIONS) -> MinHash:
    text = normalize(text)
    signature = _empty(permutations).copy()
    signature.update_batch({text[i : i + 5].encode() for i in range(max(1, len(text) - 4))})
    return signature


class DuplicateFilter:
    """Remembers texts and tells whether a new one repeats an old one. About 7 KB per text."""

    def __init__(self, threshold: float, rouge_l: float = 1.0):
        """threshold: the MinHash Jaccard similarity from which a text is a near duplicate.

        rouge_l: the same for ROUGE-L (F1 over words); 1 turns that check off.
        """
        self._threshold, self._rouge_l = threshold, rouge_l
        self._signatures: dict[str, LeanMinHash] = {}
        self._index = MinHashLSH(num_perm=_PERMUTATIONS, params=_lossless_bands(threshold))
        self._words: list[list[str]] = []

    def add(self, text: str) -> Literal["duplicate", "near_duplicate", "rouge_l"] | None:
        """None for a new text, which is remembered; otherwise the kind of duplicate."""
        key = normalize(text)
        if key in self._signatures:
            return "duplicate"
        signature = LeanMinHash(minhash(key))
        if any(
            signature.jaccard(self._signatures[other]) >= self._threshold
            for other in self._index.query(signature)
        ):
            return "near_duplicate"
        if self._rouge_l < 1:
            words = key.split()
            # 2 LCS / (m + n) is the normalized insertion-deletion similarity of the word lists.
            if any(
                Indel.normalized_similarity(words, other) >= self._rouge_l for other in self._words
            ):
                return "rouge_l"
            self._words.append(words)
        self._remember(key, signature)
        return None

    def add_exact(self, text: str) -> Literal["duplicate"] | None:
        """As `add`, but finds exact repeats only: a wrapped request resembles what it wraps."""
        key = normalize(text)
        if key in self._signatures:
            return "duplicate"
        self._remember(key, LeanMinHash(minhash(key)))
        return None

    def _remember(self, key: str, signature: LeanMinHash) -> None:
        self._signatures[key] = signature
        self._index.insert(key, signature, check_duplication=False)


def _lossless_bands(threshold: float) -> tuple[int, int]:
    """(bands, rows) with which the index misses no pair at the threshold.

    With more bands than values that may differ, at least one band is the same. The choice that
    datasketch makes weighs misses against speed: it misses a quarter of the pairs just above the
    threshold.
    """
    differing = int((1 - threshold) * _PERMUTATIONS + 1e-9)
    rows = max(1, _PERMUTATIONS // (differing + 1))
    rows = min(rows, _PERMUTATIONS // 2)  # datasketch needs at least two bands
    return _PERMUTATIONS // rows, rows
