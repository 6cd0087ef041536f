"""What a run and the worker process of one of its stages hand to each other: files in a folder, or in an object store.

task.json                the stage, its settings, where results are kept
in/<stage>.parquet|json  its inputs, exactly the data whose fingerprints the run records
out.parquet|json         what it made
facts.json               what to show of it: a plot is too long for a line of a log, which is all that a cluster passes on
problem.json             why it could not, in plain words
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from policyalign_assets.files import Location, location, write_whole
from policyalign_assets.settings import Settings
from policyalign_assets.stages.interface import RECORDS, StageContext, StageData, StageResult


@dataclass(frozen=True)
class Problem:
    """`may_pass`: another attempt, with nothing changed, may succeed."""

    message: str
    may_pass: bool


class Failed(RuntimeError):
    """What a process found wrong, passed on by the one that started it."""

    def __init__(self, problem: Problem):
        super().__init__(problem.message)
        self.problem = problem


def problem_of(error: Exception) -> Problem:
    """A full disk, a lost connection or memory that others hold may pass; a wrong input never does."""
    if isinstance(error, Failed):
        return error.problem
    may_pass = (
        isinstance(error, (OSError, MemoryError)) or type(error).__name__ == "OutOfMemoryError"
    )  # torch's
    ours = type(error).__module__.startswith(
        "policyalign_assets."
    )  # says what is wrong and the mend
    return Problem(str(error) if ours else f"{type(error).__name__}: {error}", may_pass)


def encode(value: StageData) -> bytes:
    """A table as Parquet, a record (frozen dataclass) as JSON."""
    if not isinstance(value, pa.Table):
        return TypeAdapter(type(value)).dump_json(value, indent=2)
    sink = pa.BufferOutputStream()
    pq.write_table(value, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def decode(data: bytes, kind: type) -> StageData:
    return (
        pq.read_table(pa.BufferReader(data))
        if kind is pa.Table
        else TypeAdapter(kind).validate_json(data)
    )


def _file(stage: str) -> str:
    return ".json" if stage in RECORDS else ".parquet"


class Exchange:
    def __init__(self, folder: Location):
        self.folder = folder

    # the run's side
    def give(self, stage: str, settings: Settings, data: str, inputs: dict[str, StageData]) -> None:
        for name, value in inputs.items():
            self._write(f"in/{name}{_file(name)}", encode(value))
        task = {
            "stage": stage,
            "settings": settings.model_dump(mode="json"),
            "data": data,
            "inputs": list(inputs),
        }
        self._write("task.json", json.dumps(task).encode())

    def made(self, stage: str) -> StageResult:
        return StageResult(
            self._read(f"out{_file(stage)}", stage),
            **json.loads((self.folder / "facts.json").read_bytes()),
        )

    def problem(self) -> Problem | None:
        file = self.folder / "problem.json"
        return Problem(**json.loads(file.read_bytes())) if file.exists() else None

    # the worker's side
    def take(self, report: Callable[[str], None]) -> tuple[str, StageContext, dict[str, StageData]]:
        task = json.loads((self.folder / "task.json").read_bytes())
        context = StageContext(
            Settings.model_validate(task["settings"]), location(task["data"]), report
        )
        return (
            task["stage"],
            context,
            {name: self._read(f"in/{name}{_file(name)}", name) for name in task["inputs"]},
        )

    def hand_over(self, stage: str, made: StageResult) -> None:
        self._write(f"out{_file(stage)}", encode(made.value))
        self._write(
            "facts.json", json.dumps({"version": made.version, "facts": made.facts}).encode()
        )

    def fail(self, problem: Problem) -> None:
        self._write("problem.json", json.dumps(asdict(problem)).encode())

    def _read(self, name: str, stage: str) -> StageData:
        return decode((self.folder / name).read_bytes(), RECORDS.get(stage, pa.Table))

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self.folder / name, data)
