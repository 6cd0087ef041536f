"""The firewall between training and evaluation: no synthesized text may repeat an evaluation prompt, or come near one.

Three reasons, each counted for itself: `evaluation_copy` (the same text but for capitals, spacing and punctuation),
`near_evaluation` (Jaccard similarity at or above the threshold, over all words and pairs of neighbouring words) and
`contains_evaluation` (a long text around an evaluation prompt, which the Jaccard similarity alone would not see).
Candidates come from a MinHash index (datasketch); whether one is a hit is decided on the n-grams themselves.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from datasketch import MinHash, MinHashLSH

from policyalign_assets.settings import FirewallSettings

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
# Headers under which benchmarks keep what is asked, the more telling first (meli_query: a copy of StrongREJECT)
COLUMNS = (
    "forbidden_prompt",
    "harmful_prompt",
    "prompt",
    "instruction",
    "question",
    "problem",
    "query",
    "goal",
    "behavior",
    "adversarial",
    "meli_query",
    "text",
)
_PERMUTATIONS = 128
# 64 bands of 2 rows find a pair of Jaccard 0.5 all but once in 10^8, and one of 0.3 all but once in 400
_BANDS = (64, 2)
# Share of an evaluation prompt's word triples that a text may not hold; shorter prompts are too common to count as contained
_CONTAINED = 0.8
_MIN_TRIPLES = 4
_WORD = re.compile(r"\w+(?:'\w+)*")


class FirewallError(ValueError):
    """References that cannot be read. The message names the file and the mend."""


class Hit(NamedTuple):
    reason: str
    reference: str  # where the evaluation prompt comes from: "<file>:<row>"
    similarity: float


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("’", "'"))


def grams(tokens: list[str], sizes: tuple[int, ...] = (1, 2)) -> frozenset[str]:
    return frozenset(" ".join(tokens[i : i + n]) for n in sizes for i in range(len(tokens) - n + 1))


class Firewall:
    """Evaluation prompts by name; `check` tells whether a text comes near one of them."""

    def __init__(self, references: dict[str, str], threshold: float = 0.5):
        self.threshold = threshold
        tokens = {name: words(text) for name, text in references.items()}
        self._names = [name for name, t in tokens.items() if t]
        self._exact: dict[str, int] = {}
        for i, name in enumerate(self._names):
            self._exact.setdefault(" ".join(tokens[name]), i)
        self._grams = [grams(tokens[name]) for name in self._names]
        self._triples = [grams(tokens[name], (3,)) for name in self._names]

    def __len__(self) -> int:
        return len(self._names)

    @property
    def digest(self) -> str:
        """Changes when the references or the threshold do."""
        return hashlib.sha256(
            "\0".join([str(self.threshold), *sorted(self._exact)]).encode()
        ).hexdigest()

    def check(self, text: str) -> Hit | None:
        if not self._names:
            return None
        tokens = words(text)
        found = self._exact.get(" ".join(tokens))
        if found is not None:
            return Hit("evaluation_copy", self._names[found], 1.0)
        return self._near(grams(tokens)) or self._contained(grams(tokens, (3,)))

    def _near(self, own: frozenset[str]) -> Hit | None:
        best = max(
            (
                (len(own & self._grams[i]) / len(own | self._grams[i]), i)
                for i in self._index.query(_signature(own))
            ),
            default=None,
        )
        return (
            Hit("near_evaluation", self._names[best[1]], best[0])
            if best and best[0] >= self.threshold
            else None
        )

    def _contained(self, own: frozenset[str]) -> Hit | None:
        shared = Counter(i for triple in own for i in self._holders.get(triple, ()))
        best = max(((n / len(self._triples[i]), i) for i, n in shared.items()), default=None)
        return (
            Hit("contains_evaluation", self._names[best[1]], best[0])
            if best and best[0] >= _CONTAINED
            else None
        )

    @cached_property
    def _index(self) -> MinHashLSH:
        index = MinHashLSH(num_perm=_PERMUTATIONS, params=_BANDS)
        with index.insertion_session() as session:
            for i, own in enumerate(self._grams):
                session.insert(i, _signature(own))
        return index

    @cached_property
    def _holders(self) -> dict[str, list[int]]:
        holders: dict[str, list[int]] = defaultdict(list)
        for i, triples in enumerate(self._triples):
            if len(triples) >= _MIN_TRIPLES:
                for triple in triples:
                    holders[triple].append(i)
        return holders


def firewall_for(settings: FirewallSettings) -> Firewall:
    """Over the configured references; one without references lets everything pass. Raises FirewallError."""
    return Firewall(
        load_references(Path(settings.references), settings.column) if settings.references else {},
        settings.threshold,
    )


def _signature(own: Iterable[str]) -> MinHash:
    signature = MinHash(num_perm=_PERMUTATIONS, seed=1)
    signature.update_batch([g.encode() for g in own])
    return signature


def load_references(folder: Path, column: str | None = None) -> dict[str, str]:
    """{"<file>:<row>": prompt} from every CSV, JSON, JSON Lines and Parquet file in `folder` and its sub-folders.

    column: where the prompt stands; without it, the first of `COLUMNS` that a file has. Raises FirewallError.
    """
    if not folder.is_dir():
        raise FirewallError(
            f"firewall.references={str(folder)!r} is no folder. Mend: name the folder that holds the evaluation prompts."
        )
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if not files:
        raise FirewallError(
            f"firewall.references={str(folder)!r} holds no {', '.join(SUFFIXES)} file, so nothing would be kept out. "
            "Mend: put the evaluation prompts there, or unset firewall.references."
        )
    return {
        f"{file.relative_to(folder)}:{n}": text
        for file in files
        for n, text in enumerate(_prompts(file, column))
    }


def _prompts(file: Path, column: str | None) -> list[str]:
    try:
        table = _read(file)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        what = str(error).splitlines()[0][:200]
        raise FirewallError(
            f"{file.name} cannot be read as {file.suffix[1:]} ({what}). Mend: repair or remove it."
        ) from error
    names = {name.lower(): name for name in table.column_names}
    wanted = [column.lower()] if column else COLUMNS
    found = next((names[c] for c in wanted if c in names), None)
    if found is None:
        raise FirewallError(
            f"{file.name} has no column {' or '.join(wanted)}; it has {', '.join(table.column_names)}. "
            "Mend: set firewall.column, or move the file out of firewall.references."
        )
    return [str(v) for v in table[found].to_pylist() if v]


def _read(file: Path) -> pa.Table:
    match file.suffix.lower():
        case ".csv":
            from pyarrow import csv

            return csv.read_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True))
        case ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(file)
        case _:
            from pyarrow import json

            return json.read_json(file)
