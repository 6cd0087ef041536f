"""The public benchmarks: what they are (benchmarks.yaml), and their cases.

Cases are read from local files or from a pinned revision on the hub. A manifest of one's own in the
benchmarks folder (any *.yaml file) adds further benchmarks in the same form. A benchmark that
cannot be read raises `NotRun` with the reason, which the report shows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from policyalign_assets.evaluation.benchmark_files import READERS, NotRun, read_rows
from policyalign_assets.evaluation.choices import (
    LETTERS,
    AnswerForm,
    NoSingleAnswer,
    named_choices,
    right_choice,
)
from policyalign_assets.evaluation.conversation import Conversation, Turn
from policyalign_assets.files import parse_shipped_yaml
from policyalign_assets.policy import known_domains

__all__ = ["LETTERS", "Benchmark", "BenchmarkCase", "Loaded", "NotRun", "load", "manifest"]

MAX_MANIFEST = 2**20  # bytes
MANIFESTS = ("*.yaml", "*.yml")


class ManifestError(ValueError):
    """A manifest with a mistake. The message names the file and the entry."""


def _known_domain(name: str) -> str:
    if name not in known_domains():
        raise ValueError(
            f"domain {name!r} does not exist. Fix: one of {', '.join(known_domains())}"
        )
    return name


def _below_the_folder(pattern: str) -> str:
    path = PurePosixPath(pattern)
    if path.is_absolute() or ".." in path.parts or "\\" in pattern or not path.parts:
        raise ValueError(f"{pattern!r} leaves the benchmarks folder. Fix: name a path below it")
    return pattern


def _pattern_of_a_category(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
    if groups != 1:
        raise ValueError(f"{pattern!r} must have one group, which is the category")
    return pattern


def _counts(value: object) -> object:
    return (value,) if isinstance(value, int) else value


Kind = Literal["harmful", "benign", "question"]
Domain = Annotated[str, AfterValidator(_known_domain)]
FilePattern = Annotated[str, AfterValidator(_below_the_folder)]
Scoring = Literal["judge", "value", "likelihood", "correctness"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompts(_Entry):
    """Requests of one kind.

    column: where they stand, under any of these names. A value is a text, or a conversation: a list
        of texts (messages of the user) or of objects with `role` and `content`.
    where: only rows in which each named column has one of the values.
    """

    kind: Kind
    column: tuple[str, ...] = Field(min_length=1)
    where: dict[str, tuple[str, ...]] = {}


class Hub(_Entry):
    """Where the files are on the Hugging Face hub. `revision` is a commit, which never changes."""

    id: str
    files: tuple[str, ...] = Field(min_length=1)
    revision: str | None = Field(None, pattern="^[0-9a-f]{40}$")


class Benchmark(_Entry):
    """An entry of a manifest. The comments in benchmarks.yaml say what each field means."""

    id: str = Field(pattern="^[a-z0-9-]{1,60}$")
    title: str
    home: str = "a file of one's own"
    revision: str | None = Field(None, pattern="^[0-9a-f]{40}$")
    licence: str = "not stated"
    gate: str | None = None
    domains: tuple[Domain, ...] = Field(default_factory=known_domains, min_length=1)
    files: tuple[FilePattern, ...] = Field(min_length=1)
    or_files: tuple[tuple[FilePattern, ...], ...] = ()
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    hub: Hub | None = None
    rows: Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_counts)] = ()
    prompts: tuple[Prompts, ...] = Field(min_length=1)
    case_id: str | None = None
    category: str | None = None
    category_from_file: Annotated[str, AfterValidator(_pattern_of_a_category)] | None = None
    cluster: str | None = None
    answer: str | None = None
    answer_form: AnswerForm = "text"
    answer_also: dict[str, AnswerForm] = {}
    choices: tuple[str, ...] = ()
    scoring: Scoring = "judge"
    quotable: bool = True
    metric: str
    note: str = ""

    @model_validator(mode="after")
    def _questions_have_answers(self) -> Benchmark:
        if self.scoring != "judge" and self.answer is None:
            raise ValueError(f"scoring={self.scoring} needs `answer`, the column of the answer")
        if (self.scoring == "likelihood") != bool(self.choices):
            raise ValueError("`choices` and scoring=likelihood belong together")
        if self.choices and "answer_form" not in self.model_fields_set:
            raise ValueError(
                "`choices` need `answer_form`: whether `answer` holds an index (from 0), a letter, "
                "a text, or is a column of its own"
            )
        return self


@dataclass(frozen=True)
class BenchmarkCase:
    """One case. Cases of one `cluster` are variations of each other.

    answer: the reference of a question.
    right: for multiple choice, the place of the right one among `choices`.
    """

    case_id: str
    benchmark: str
    kind: Kind
    conversation: Conversation
    category: str | None
    cluster: str | None
    answer: str | None
    scoring: Scoring
    choices: tuple[str, ...] = ()
    right: int | None = None

    @property
    def prompt(self) -> str:
        """Everything that the case says, as one text."""
        return self.conversation.text


@dataclass(frozen=True)
class Loaded:
    """`version` changes when any byte of the files does. `source` says where they came from."""

    cases: list[BenchmarkCase]
    version: str
    source: str


def manifest(folder: Path | None = None) -> tuple[Benchmark, ...]:
    """The project's benchmarks, then those of the manifests in `folder`. Raises ManifestError."""
    benchmarks = list(shipped_benchmarks())
    for file in own_manifests(folder):
        benchmarks += _read_manifest(file.name, _text_of(file))
    ids = [b.id for b in benchmarks]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise ManifestError(
            f"the benchmark {twice[0]!r} is listed twice. Fix: give your own benchmark another id"
        )
    return tuple(benchmarks)


def own_manifests(folder: Path | None) -> list[Path]:
    """The manifests in the benchmarks folder."""
    if folder is None:
        return []
    return sorted(file for pattern in MANIFESTS for file in folder.glob(pattern) if file.is_file())


def files_of(benchmark: Benchmark, folder: Path) -> list[Path]:
    """Its files below `folder`, by the first set of patterns all of which match; else none."""
    for patterns in (benchmark.files, *benchmark.or_files):
        found = [sorted(f for f in folder.glob(p) if f.is_file()) for p in patterns]
        if all(found):
            return sorted({file for files in found for file in files})
    return []


@cache
def shipped_benchmarks() -> tuple[Benchmark, ...]:
    """The benchmarks of the project's own manifest."""
    text = resources.files(__package__).joinpath("benchmarks.yaml").read_text(encoding="utf-8")
    return tuple(_benchmarks("benchmarks.yaml", parse_shipped_yaml(text)))


def _text_of(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_MANIFEST:
            raise ManifestError(f"{file.name} is larger than {MAX_MANIFEST} bytes")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{file.name} cannot be read ({type(error).__name__})") from None


def _read_manifest(name: str, text: str) -> list[Benchmark]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        raise ManifestError(f"{name} is no YAML. Fix: see evaluation/benchmarks.yaml") from None
    return _benchmarks(name, content)


def _benchmarks(name: str, content: object) -> list[Benchmark]:
    if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), list):
        raise ManifestError(
            f"{name} has no list `benchmarks`. Fix: list the entries under `benchmarks:`, or move "
            "a file that is no manifest out of the benchmarks folder"
        )
    try:
        return TypeAdapter(list[Benchmark]).validate_python(content["benchmarks"])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ManifestError(f"{name}: entry {place}: {first['msg']}") from None


def load(benchmark: Benchmark, folder: Path | None, from_hub: bool = False) -> Loaded:
    """The cases of `benchmark` from its files below `folder`, else from the hub if that is allowed.

    Raises NotRun.
    """
    files, source = _files(benchmark, folder, from_hub)
    try:
        version = version_of(files)
        if source == "local" and benchmark.sha256 and version != benchmark.sha256:
            raise NotRun(
                f"its file is not the one that the manifest names (sha256 {version[:12]}…, "
                f"not {benchmark.sha256[:12]}…)"
            )
        rows = [row | _category(benchmark, file) for file in files for row in read_rows(file)]
        if benchmark.rows and len(rows) not in benchmark.rows:
            expected = " or ".join(map(str, benchmark.rows))
            raise NotRun(f"it has {len(rows)} rows where the manifest expects {expected}")
        return Loaded(list(_cases(benchmark, rows)), version, source)
    except OSError as error:
        raise NotRun(f"its file cannot be read ({type(error).__name__})") from None
    except (RecursionError, MemoryError):
        raise NotRun("its rows are nested too deeply or too large") from None


def version_of(files: Iterable[Path]) -> str:
    """sha256 of the only file, or of the listing '<sha256>  <folder>/<name>' of several, sorted."""
    sums = [(_sha256(file), f"{file.parent.name}/{file.name}") for file in sorted(files)]
    if len(sums) == 1:
        return sums[0][0]
    listing = "".join(f"{digest}  {name}\n" for digest, name in sums)
    return hashlib.sha256(listing.encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _files(benchmark: Benchmark, folder: Path | None, from_hub: bool) -> tuple[list[Path], str]:
    if folder and (found := files_of(benchmark, folder)):
        return found, "local"
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
    hub = benchmark.hub
    if hub is None or hub.revision is None:
        raise NotRun(
            f"{where}, and the manifest pins no hub revision of it (home: {benchmark.home}{gate})"
        )
    return _from_hub(hub, hub.revision), f"hub {hub.id}@{hub.revision}"


def _from_hub(hub: Hub, revision: str) -> list[Path]:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                hub.id, repo_type="dataset", revision=revision, allow_patterns=list(hub.files)
            )
        )
    except Exception as error:
        # Gated, offline or gone: the hub's errors share no class, and each is a reason not to run.
        raise NotRun(
            f"the hub did not give {hub.id} at {revision[:12]} ({type(error).__name__})"
        ) from None
    # The hub matches a glob against the whole path, so '*' crosses folders there.
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix.lower() in READERS)
    if not files:
        raise NotRun(f"{hub.id} at {revision[:12]} holds none of {', '.join(hub.files)}")
    return files


def _category(benchmark: Benchmark, file: Path) -> dict[str, str]:
    """The column that `category_from_file` adds, from the path of a file."""
    if benchmark.category_from_file is None:
        return {}
    found = re.search(benchmark.category_from_file, file.as_posix())
    if found is None or found[1] is None:
        raise NotRun(f"the name of {file.name} does not tell its category")
    return {"category_from_file": found[1]}


def _cases(benchmark: Benchmark, rows: list[dict[str, Any]]) -> Iterator[BenchmarkCase]:
    for names in _needed(benchmark):
        if not rows or not all(any(name in row for name in names) for row in rows):
            raise NotRun(f"column {' or '.join(names)} is missing")
    category = "category_from_file" if benchmark.category_from_file else benchmark.category
    ids: set[str] = set()
    for number, row in enumerate(rows):
        asked = [p for p in benchmark.prompts if _belongs(row, p)]
        if not asked:
            raise NotRun(f"row {number + 1} is of a kind that the manifest does not know")
        for prompts in asked:
            value = next(row[name] for name in prompts.column if name in row)
            own = row[benchmark.case_id] if benchmark.case_id else number
            case_id = f"{benchmark.id}-{prompts.kind}-{own}"
            if case_id in ids:
                raise NotRun(f"row {number + 1} has the {benchmark.case_id} of another row")
            ids.add(case_id)
            answer, choices, right = _answer(benchmark, row, number)
            yield BenchmarkCase(
                case_id,
                benchmark.id,
                prompts.kind,
                _conversation(value, number, prompts.column[0]),
                _text(row, category),
                _text(row, benchmark.cluster),
                answer,
                benchmark.scoring,
                choices,
                right,
            )


def _needed(benchmark: Benchmark) -> list[tuple[str, ...]]:
    """Columns that every row must have, each under one of some names."""
    single = (
        benchmark.case_id,
        benchmark.category,
        benchmark.cluster,
        benchmark.answer,
        *benchmark.choices,
    )
    needed: list[tuple[str, ...]] = [(name,) for name in single if name]
    needed += [p.column for p in benchmark.prompts]
    needed += [(name,) for p in benchmark.prompts for name in p.where]
    return needed


def _belongs(row: Mapping[str, Any], prompts: Prompts) -> bool:
    return all(str(row[column]) in values for column, values in prompts.where.items())


def _conversation(value: object, number: int, column: str) -> Conversation:
    """A text, a list of the user's messages, or a list of messages with `role` and `content`."""
    no_text = NotRun(f"row {number + 1} has no text in {column}")
    if isinstance(value, str):
        if not value.strip():
            raise no_text
        return Conversation.of(value)
    if not isinstance(value, (list, tuple)) or not value:
        raise no_text
    if all(isinstance(message, str) and message.strip() for message in value):
        return Conversation.of(*value)
    system, turns = None, list[Turn]()
    for message in value:
        role, content = _message(message, no_text)
        if role == "system" and not turns and system is None:
            system = content
        elif role == "user" and (not turns or turns[-1].reply is not None):
            turns.append(Turn(content))
        elif role == "assistant" and turns and turns[-1].reply is None:
            turns[-1] = Turn(turns[-1].text, content)
        else:
            raise NotRun(f"row {number + 1} has messages in {column} that do not take turns")
    if turns and turns[-1].reply is not None:  # the answer of some model, which is not asked for
        turns[-1] = Turn(turns[-1].text)
    if not turns:
        raise no_text
    return Conversation(tuple(turns), system=system)


def _message(message: object, otherwise: NotRun) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise otherwise
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str) or not content.strip():
        raise otherwise
    return role, content


def _answer(
    benchmark: Benchmark, row: Mapping[str, Any], number: int
) -> tuple[str | None, tuple[str, ...], int | None]:
    """The reference, the choices, and the place of the right one. Raises NotRun."""
    if not benchmark.choices:
        return _text(row, benchmark.answer), (), None
    assert benchmark.answer is not None  # the manifest's validator sees to it
    try:
        named = named_choices(row, benchmark.choices)
        right = right_choice(named, row[benchmark.answer], benchmark.answer_form)
        for column, form in benchmark.answer_also.items():
            also = row.get(column)
            if also is not None and right_choice(named, also, form) != right:
                raise NoSingleAnswer(f"{benchmark.answer} and {column} name different choices")
    except NoSingleAnswer as problem:
        raise NotRun(f"row {number + 1} has no single right choice: {problem}") from None
    texts = tuple(named.values())
    answer = texts[right]
    if benchmark.answer_form == "column":
        # The right choice has a column of its own, so its place must not give it away.
        texts = tuple(sorted(texts, key=lambda c: _shuffled(number, c)))
        right = texts.index(answer)
    return answer, texts, right


def _shuffled(number: int, choice: str) -> bytes:
    return hashlib.sha256(f"{number} {choice}".encode()).digest()


def _text(row: Mapping[str, Any], column: str | None) -> str | None:
    value = row[column] if column else None
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return None if value is None else str(value)
