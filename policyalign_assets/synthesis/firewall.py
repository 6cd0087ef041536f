"""Keeps evaluation prompts out of training: no synthesized text may repeat one or come near one.

There are three reasons for dropping a text, each counted by itself:

* `evaluation_copy`: the same text, apart from capitals, spacing and punctuation
* `near_evaluation`: Jaccard similarity at or above the threshold, over all words and word pairs
* `contains_evaluation`: a long text around an evaluation prompt, which the Jaccard similarity alone
  would miss

A MinHash index (datasketch) finds candidates; the n-grams themselves decide.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from datasketch import MinHash, MinHashLSH

from policyalign_assets.settings import FirewallSettings
from policyalign_assets.synthesis.references import (
    FirewallError,
    ReferenceFile,
    References,
    read_references,
)

__all__ = ["Firewall", "FirewallError", "FirewallProbe", "Hit", "firewall_for", "probe"]

_PERMUTATIONS = 128
# 64 bands of 2 rows miss a pair of Jaccard 0.5 once in 10^8, and one of 0.3 once in 400.
_BANDS = (64, 2)
# The share of an evaluation prompt's word triples that a text may not hold. Prompts with fewer
# triples than the minimum are too common to count as contained.
_CONTAINED = 0.8
_MIN_TRIPLES = 4
# Chinese, Japanese and Korean text has no spaces: each of its characters counts as a word.
_IDEOGRAM = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_IDEOGRAM}]|[^\W{_IDEOGRAM}]+(?:'[^\W{_IDEOGRAM}]+)*")


class Hit(NamedTuple):
    """`reference`: the name of the evaluation prompt, "<file>:<row>"."""

    reason: str
    reference: str
    similarity: float


def split_words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text.replace("’", "'")).lower()
    return _WORD.findall(text)


def n_grams(tokens: list[str], sizes: tuple[int, ...] = (1, 2)) -> frozenset[str]:
    return frozenset(" ".join(tokens[i : i + n]) for n in sizes for i in range(len(tokens) - n + 1))


class Firewall:
    """Evaluation prompts by name. `check` tells whether a text comes near one of them."""

    def __init__(self, references: dict[str, str], threshold: float = 0.5):
        """threshold: the Jaccard similarity from which a text is too near."""
        self.threshold = threshold
        tokens = {name: split_words(text) for name, text in references.items()}
        self._names = [name for name, t in tokens.items() if t]
        self._exact: dict[str, int] = {}
        for i, name in enumerate(self._names):
            self._exact.setdefault(" ".join(tokens[name]), i)
        self._grams = [n_grams(tokens[name]) for name in self._names]
        self._triples = [n_grams(tokens[name], (3,)) for name in self._names]

    def __len__(self) -> int:
        return len(self._names)

    @property
    def digest(self) -> str:
        """Changes when the references or the threshold do."""
        content = "\0".join([str(self.threshold), *sorted(self._exact)])
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def check(self, text: str) -> Hit | None:
        if not self._names:
            return None
        tokens = split_words(text)
        found = self._exact.get(" ".join(tokens))
        if found is not None:
            return Hit("evaluation_copy", self._names[found], 1.0)
        return self._near(n_grams(tokens)) or self._contained(n_grams(tokens, (3,)))

    def _near(self, grams: frozenset[str]) -> Hit | None:
        candidates = self._index.query(_signature(grams))
        best = max(
            ((len(grams & self._grams[i]) / len(grams | self._grams[i]), i) for i in candidates),
            default=None,
        )
        if best is None or best[0] < self.threshold:
            return None
        return Hit("near_evaluation", self._names[best[1]], best[0])

    def _contained(self, triples: frozenset[str]) -> Hit | None:
        shared = Counter(i for triple in triples for i in self._holders.get(triple, ()))
        best = max(((n / len(self._triples[i]), i) for i, n in shared.items()), default=None)
        if best is None or best[0] < _CONTAINED:
            return None
        return Hit("contains_evaluation", self._names[best[1]], best[0])

    @cached_property
    def _index(self) -> MinHashLSH:
        index = MinHashLSH(num_perm=_PERMUTATIONS, params=_BANDS)
        with index.insertion_session() as session:
            for i, grams in enumerate(self._grams):
                session.insert(i, _signature(grams))
        return index

    @cached_property
    def _holders(self) -> dict[str, list[int]]:
        """Word triple -> the places of the evaluation prompts that hold it."""
        holders: dict[str, list[int]] = defaultdict(list)
        for i, triples in enumerate(self._triples):
            if len(triples) >= _MIN_TRIPLES:
                for triple in triples:
                    holders[triple].append(i)
        return holders


def _signature(grams: Iterable[str]) -> MinHash:
    signature = MinHash(num_perm=_PERMUTATIONS, seed=1)
    signature.update_batch([g.encode("utf-8", "surrogatepass") for g in grams])
    return signature


def firewall_for(settings: FirewallSettings) -> tuple[Firewall, References | None]:
    """The firewall over the configured references, and what was read of them.

    Without references, every text passes. Raises FirewallError.
    """
    found = configured_references(settings)
    return Firewall(found.prompts if found else {}, settings.threshold), found


def configured_references(settings: FirewallSettings) -> References | None:
    """Raises FirewallError."""
    folder = settings.references
    return read_references(Path(folder), settings.column) if folder else None


@dataclass(frozen=True)
class FirewallProbe:
    """What a firewall would do, checked before a run.

    checked, stopped: how many exact copies of its own references were tried and stopped.
    """

    files: tuple[ReferenceFile, ...]
    ignored: tuple[str, ...]
    checked: int
    stopped: int


def probe(settings: FirewallSettings, samples: int = 30) -> FirewallProbe | None:
    """Reads the references and tries whether copies of them are stopped. None without references.

    Raises FirewallError where a file cannot be used, or where a copy passes.
    """
    firewall, found = firewall_for(settings)
    if found is None:
        return None
    copies = [text for file in found.files for _, text in file.prompts[:samples]]
    with_words = [text for text in copies if split_words(text)]
    stopped = sum(firewall.check(text) is not None for text in with_words)
    if not with_words or stopped < len(with_words):
        raise FirewallError(
            f"only {stopped} of {len(with_words)} copies of the references are stopped. "
            "Fix: check that firewall.references holds evaluation prompts."
        )
    return FirewallProbe(found.files, found.ignored, len(with_words), stopped)
