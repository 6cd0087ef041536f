"""Content words of rules and requests, for comparisons without a model. The small words are
English; in other languages every word counts, which only makes the comparison coarser."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

from policyalign_assets.synthesis.firewall import split_words
from policyalign_assets.synthesis.texts import load_yaml

_SUFFIX = re.compile(r"(?:ies|ied|ing|ings|ed|es|er|ers|s|ly|e|y)$")
_MIN_STEM = 3


@cache
def small_words() -> frozenset[str]:
    return frozenset(load_yaml("small_words.yaml").split())


def content_words(text: str) -> frozenset[str]:
    """Stems of the words that carry meaning. Crude stems: "forging" and "forges" are the same."""
    return frozenset(
        _stem(word)
        for word in split_words(text)
        if word not in small_words() and not word.isdigit() and len(word) > 1
    )


def _stem(word: str) -> str:
    word = word.removesuffix("'s")
    stem = _SUFFIX.sub("", word)
    return stem if len(stem) >= _MIN_STEM else word


def word_weights(profiles: Sequence[frozenset[str]]) -> dict[str, float]:
    """Word -> log((1 + profiles) / profiles that hold it): common words weigh little."""
    holders = Counter(word for profile in profiles for word in profile)
    return {word: math.log((1 + len(profiles)) / n) for word, n in holders.items()}
