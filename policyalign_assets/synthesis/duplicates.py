"""Exact and near duplicates among short texts, by MinHash over character 5-grams (datasketch)."""

from __future__ import annotations

from typing import Literal

from datasketch import MinHash


def normalize(text: str) -> str:
    return " ".join(text.lower().split())


def minhash(text: str, permutations: int = 128) -> MinHash:
    text = normalize(text)
    signature = MinHash(num_perm=permutations, seed=1)
    signature.update_batch({text[i : i + 5].encode() for i in range(max(1, len(text) - 4))})
    return signature


class DuplicateFilter:
    """Remembers texts; tells whether a new one repeats an old one."""

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._signatures: dict[str, MinHash] = {}

    def add(self, text: str) -> Literal["duplicate", "near_duplicate"] | None:
        """None, and `text` is remembered; or the kind of duplicate that it is."""
        key = normalize(text)
        if key in self._signatures:
            return "duplicate"
        signature = minhash(key)
        # against every text of the rule (hundreds): an LSH index misses a quarter of the pairs just above the threshold
        if any(signature.jaccard(other) >= self._threshold for other in self._signatures.values()):
            return "near_duplicate"
        self._signatures[key] = signature
        return None
