"""Exact and near duplicates among short texts: MinHash over character 5-grams (datasketch), and ROUGE-L over words (rapidfuzz)."""

from __future__ import annotations

from typing import Literal

from datasketch import MinHash
from rapidfuzz.distance import Indel


def normalize(text: str) -> str:
    return " ".join(text.lower().split())


def minhash(text: str, permutations: int = 128) -> MinHash:
    text = normalize(text)
    signature = MinHash(num_perm=permutations, seed=1)
    signature.update_batch({text[i : i + 5].encode() for i in range(max(1, len(text) - 4))})
    return signature


class DuplicateFilter:
    """Remembers texts; tells whether a new one repeats an old one."""

    def __init__(self, threshold: float, rouge_l: float = 1.0):
        """rouge_l: the ROUGE-L (F1 over words) from which on a text repeats another; 1 turns it off."""
        self._threshold, self._rouge_l = threshold, rouge_l
        self._signatures: dict[str, MinHash] = {}
        self._words: list[list[str]] = []

    def add(self, text: str) -> Literal["duplicate", "near_duplicate", "rouge_l"] | None:
        """None, and `text` is remembered; or the kind of duplicate that it is."""
        key = normalize(text)
        if key in self._signatures:
            return "duplicate"
        signature = minhash(key)
        # against every text of the rule (hundreds): an LSH index misses a quarter of the pairs just above the threshold
        if any(signature.jaccard(other) >= self._threshold for other in self._signatures.values()):
            return "near_duplicate"
        words = key.split()
        # 2 LCS / (m + n) is the normalized insertion-deletion similarity of the two lists of words
        if self._rouge_l < 1 and any(Indel.normalized_similarity(words, other) >= self._rouge_l for other in self._words):
            return "rouge_l"
        self._signatures[key] = signature
        self._words.append(words)
        return None

    def add_exact(self, text: str) -> Literal["duplicate"] | None:
        """As `add`, for a text that may resemble others: a wrapped request resembles what it wraps."""
        key = normalize(text)
        if key in self._signatures:
            return "duplicate"
        self._signatures[key] = minhash(key)
        return None
