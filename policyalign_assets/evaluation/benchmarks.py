"""The public benchmarks: what they are (benchmarks.yaml), and their cases, read from a local file or a pinned hub revision.

Nothing is dropped silently: a benchmark that cannot be read raises `NotRun` with the reason, and the report shows it.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from policyalign_assets.evaluation.conversation import Conversation
from policyalign_assets.policy import DOMAINS

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _known_domain(name: str) -> str:
    if name not in DOMAINS:
        raise ValueError(f"domain {name!r} does not exist. Fix: one of {', '.join(DOMAINS)}")
    return name


Kind = Literal["harmful", "benign", "question"]
Domain = Annotated[str, AfterValidator(_known_domain)]
Scoring = Literal["judge", "value", "likelihood", "correctness"]


class NotRun(Exception):
    """Why a benchmark, or a part of it, has no figures: one sentence for the report."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompts(_Entry):
    """Requests of one kind: the column (under any of these names) of the rows where each named column has one of the values."""

    kind: Kind
    column: tuple[str, ...] = Field(min_length=1)
    where: dict[str, tuple[str, ...]] = {}


class Hub(_Entry):
    id: str
    files: tuple[str, ...] = Field(min_length=1)
    revision: str | None = Field(
        None,
        pattern="^[0-9a-f]{40}$",
        description="commit; a branch name would be another benchmark tomorrow",
    )


class Benchmark(_Entry):
    id: str = Field(pattern="^[a-z0-9-]+$")
    title: str
    home: str
    revision: str | None = Field(
        None,
        pattern="^[0-9a-f]{40}$",
        description="commit of the home repository that the files are from",
    )
    licence: str
    gate: str | None = None
    domains: tuple[Domain, ...] = Field(min_length=1)
    files: tuple[str, ...] = Field(min_length=1)
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    hub: Hub | None = None
    rows: int | None = Field(None, gt=0)
    prompts: tuple[Prompts, ...] = Field(min_length=1)
    case_id: str | None = None
    category: str | None = None
    cluster: str | None = None
    answer: str | None = None
    choices: tuple[str, ...] = ()
    scoring: Scoring = "judge"
    quotable: bool = True
    metric: str
    note: str = ""


@dataclass(frozen=True)
class BenchmarkCase:
    """`answer` is the reference, for questions only; where there are `choices`, it is one of them. Cases of one `cluster` are
    variations of each other."""

    case_id: str
    benchmark: str
    kind: Kind
    prompt: str
    category: str | None
    cluster: str | None
    answer: str | None
    scoring: Scoring
    choices: tuple[str, ...] = ()

    @property
    def conversation(self) -> Conversation:
        return Conversation.of(self.prompt)


@dataclass(frozen=True)
class Loaded:
    """`version` changes when any byte of the files does; `source` says where they came from, for people."""

    cases: list[BenchmarkCase]
    version: str
    source: str


@cache
def manifest(path: Path | None = None) -> tuple[Benchmark, ...]:
    """All benchmarks, of the project's own manifest by default. Raises pydantic.ValidationError for a manifest with a mistake."""
    text = (path or resources.files(__package__).joinpath("benchmarks.yaml")).read_text(
        encoding="utf-8"
    )
    benchmarks = TypeAdapter(tuple[Benchmark, ...]).validate_python(
        yaml.safe_load(text)["benchmarks"]
    )
    ids = [b.id for b in benchmarks]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise ValueError(f"benchmarks.yaml lists {', '.join(twice)} twice")
    return benchmarks


def load(benchmark: Benchmark, folder: Path | None, from_hub: bool = False) -> Loaded:
    """The cases of `benchmark` from its files below `folder`, else from the hub where that is allowed. Raises NotRun."""
    files, source = _files(benchmark, folder, from_hub)
    version = version_of(files)
    if source == "local" and benchmark.sha256 and version != benchmark.sha256:
        raise NotRun(
            f"its file is not the one that the manifest names (sha256 {version[:12]}…, not {benchmark.sha256[:12]}…)"
        )
    try:
        rows = [row for file in files for row in _rows(file)]
    except (
        OSError,
        ValueError,
        csv.Error,
    ) as error:  # ArrowInvalid and JSONDecodeError are ValueErrors
        raise NotRun(f"its file cannot be read ({type(error).__name__})") from None
    if benchmark.rows and len(rows) != benchmark.rows:
        raise NotRun(f"it has {len(rows)} rows where the manifest expects {benchmark.rows}")
    return Loaded(list(_cases(benchmark, rows)), version, source)


def version_of(files: Iterable[Path]) -> str:
    """sha256 of the only file, or of the listing '<sha256>  <folder>/<name>' of several in the order of their paths."""
    sums = [
        (hashlib.sha256(file.read_bytes()).hexdigest(), f"{file.parent.name}/{file.name}")
        for file in sorted(files)
    ]
    return (
        sums[0][0]
        if len(sums) == 1
        else hashlib.sha256("".join(f"{s}  {name}\n" for s, name in sums).encode()).hexdigest()
    )


def _files(benchmark: Benchmark, folder: Path | None, from_hub: bool) -> tuple[list[Path], str]:
    found = [sorted(folder.glob(pattern)) for pattern in benchmark.files] if folder else [[]]
    if all(found):
        return sorted(file for files in found for file in files), "local"
    where = (
        f"no file {', '.join(benchmark.files)} in {folder.name}/"
        if folder
        else "evaluation.benchmarks_dir is not set"
    )
    gate = f"; {benchmark.gate}" if benchmark.gate else ""
    if not from_hub:
        raise NotRun(
            f"{where}, and evaluation.benchmarks_from_hub is off (home: {benchmark.home}{gate})"
        )
    if not (benchmark.hub and benchmark.hub.revision):
        raise NotRun(
            f"{where}, and the manifest pins no hub revision of it (home: {benchmark.home}{gate})"
        )
    return _from_hub(benchmark.hub), f"hub {benchmark.hub.id}@{benchmark.hub.revision}"


def _from_hub(hub: Hub) -> list[Path]:
    from huggingface_hub import snapshot_download

    assert hub.revision is not None  # `_files` asks only for a pinned revision
    try:
        folder = Path(
            snapshot_download(
                hub.id, repo_type="dataset", revision=hub.revision, allow_patterns=list(hub.files)
            )
        )
    except Exception as error:  # gated, offline, gone: the hub's errors share no class, and each of them is a reason not to run
        raise NotRun(
            f"the hub did not give {hub.id} at {hub.revision[:12]} ({type(error).__name__})"
        ) from None
    # a glob is matched to the whole path on the hub, and '*' there crosses folders
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix in READERS)
    if not files:
        raise NotRun(f"{hub.id} at {hub.revision[:12]} holds none of {', '.join(hub.files)}")
    return files


def _csv(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(
            lines, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True
        )


def _jsonl(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    yield from pq.read_table(file).to_pylist()


READERS = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.suffix not in READERS:
        raise NotRun(f"{file.suffix} files are not read. Fix: convert it to {', '.join(READERS)}")
    return ({"file": file.name, **row} for row in READERS[file.suffix](file))


def _cases(benchmark: Benchmark, rows: list[dict[str, Any]]) -> Iterator[BenchmarkCase]:
    needed: list[tuple[str, ...]] = [
        (name,)
        for name in (
            benchmark.case_id,
            benchmark.category,
            benchmark.cluster,
            benchmark.answer,
            *benchmark.choices,
        )
        if name
    ]
    needed += [p.column for p in benchmark.prompts] + [
        (name,) for p in benchmark.prompts for name in p.where
    ]
    for names in needed:
        if not all(any(name in row for name in names) for row in rows):
            raise NotRun(f"column {' or '.join(names)} is missing")
    for number, row in enumerate(rows):
        asked = [
            p
            for p in benchmark.prompts
            if all(str(row[column]) in values for column, values in p.where.items())
        ]
        if not asked:
            raise NotRun(f"row {number + 1} is of a kind that the manifest does not know")
        for prompts in asked:
            prompt = next(row[name] for name in prompts.column if name in row)
            if not isinstance(prompt, str) or not prompt.strip():
                raise NotRun(f"row {number + 1} has no text in {prompts.column[0]}")
            own = row[benchmark.case_id] if benchmark.case_id else number
            answer, choices = _answer(benchmark, row, number)
            yield BenchmarkCase(
                f"{benchmark.id}-{prompts.kind}-{own}",
                benchmark.id,
                prompts.kind,
                prompt,
                _text(row, benchmark.category),
                _text(row, benchmark.cluster),
                answer,
                benchmark.scoring,
                choices,
            )


def _answer(
    benchmark: Benchmark, row: Mapping[str, Any], number: int
) -> tuple[str | None, tuple[str, ...]]:
    """The right answer and the choices. Homes write the answer as the choice itself, its letter, or its place counted from 0."""
    said = _text(row, benchmark.answer)
    if not benchmark.choices:
        return said, ()
    listed = (
        row[benchmark.choices[0]]
        if len(benchmark.choices) == 1
        else [row[name] for name in benchmark.choices]
    )
    by_name = listed if isinstance(listed, Mapping) else dict(zip(LETTERS, listed))
    choices = tuple(str(v) for v in by_name.values())
    places = {
        **{str(i): c for i, c in enumerate(choices)},
        **{k: str(v) for k, v in by_name.items()},
        **{c: c for c in choices},
    }
    if (
        benchmark.answer in benchmark.choices
    ):  # the right one has a column of its own: its place must not give it away
        said = str(row[benchmark.answer])
        choices = tuple(
            sorted(choices, key=lambda c: hashlib.sha256(f"{number} {c}".encode()).digest())
        )
    elif said in places:
        said = places[said]
    if said not in choices or len(set(choices)) != len(choices):
        raise NotRun(f"row {number + 1} has no single right choice")
    return said, choices


def _text(row: Mapping[str, Any], column: str | None) -> str | None:
    value = row[column] if column else None
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else None
        if value is None
        else str(value)
    )
