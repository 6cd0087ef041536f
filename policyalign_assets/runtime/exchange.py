"""The files that a run and the worker process of one of its stages exchange.

They are stored in a local folder or in an object store.

task.json                the stage, its settings, and where results are kept
in/<stage>.parquet|json  its inputs: exactly the data whose fingerprints the run records
in/<stage>/<n>.parquet|json  the same of a deployment, for its n-th policy
out.parquet|json         its result
facts.json               what to show about the result
problem.json             why the stage failed, in plain words

The facts are a file because a cluster passes on only the lines of a log, and a plot is too long for
one line.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from policyalign_assets.files import Location, location, parquet_bytes, write_whole
from policyalign_assets.settings import Settings
from policyalign_assets.stages.interface import StageContext, StageData, StageInput, StageResult
from policyalign_assets.stages.registry import EVERY_STAGE

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Why a stage failed. `may_pass`: another attempt may succeed, although nothing was changed."""

    message: str
    may_pass: bool


class Failed(RuntimeError):
    """A process that this one started has failed, for the reason that it gave."""

    def __init__(self, problem: Problem):
        super().__init__(problem.message)
        self.problem = problem


# Errors that another attempt may not meet: a full disk, too many open files, a lost connection.
_MAY_PASS = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EDQUOT", "EHOSTDOWN",
        "EHOSTUNREACH", "EINTR", "EIO", "EMFILE", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENFILE",
        "ENOBUFS", "ENOMEM", "ENOSPC", "EPIPE", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
}  # fmt: skip


def problem_of(error: Exception) -> Problem:
    """Return the message for an error, and whether another attempt may succeed.

    Another attempt may succeed after a shortage or a fault outside the inputs: memory, disk, file
    handles, the network, or a server that answers 429 or 5xx. It never does after a missing file,
    a missing permission or a wrong value, whichever library reports it.
    """
    if isinstance(error, Failed):
        return error.problem
    # The messages of the package's own errors already name the fault and the fix.
    ours = type(error).__module__.startswith("policyalign_assets.")
    message = str(error) if ours else f"{type(error).__name__}: {error}"
    causes: list[BaseException] = [error]
    while ours and (cause := causes[-1].__cause__):  # for example, the hub was unreachable
        causes.append(cause)
    return Problem(message, any(map(_may_pass, causes)))


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, ConnectionError, TimeoutError)):
        return True
    # Errors of torch and of HTTP libraries are recognized by name, since their import is slow.
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"OutOfMemoryError", "ConnectionError", "TransportError", "Timeout"}:
        return True
    answered = getattr(error, "response", None)
    status = getattr(answered, "status_code", None) or getattr(error, "status", None)
    if isinstance(status, int):
        return status in (408, 425, 429) or status >= 500
    return isinstance(error, OSError) and error.errno in _MAY_PASS


def encode(value: StageData) -> bytes:
    """Encode a table as Parquet, or a record (a frozen dataclass) as JSON."""
    if not isinstance(value, pa.Table):
        return TypeAdapter(type(value)).dump_json(value, indent=2)
    return parquet_bytes(value)


def decode(data: bytes, kind: type[T]) -> T:
    """What `encode` made, of the type that the caller knows."""
    if kind is pa.Table:
        return cast(T, pq.read_table(pa.BufferReader(data)))
    return TypeAdapter(kind).validate_json(data)


def _file(stage: str) -> str:
    return ".parquet" if EVERY_STAGE[stage].result is pa.Table else ".json"


class Exchange:
    def __init__(self, folder: Location):
        self.folder = folder

    # Methods for the run.
    def give(
        self,
        stage: str,
        settings: Settings,
        data: str,
        inputs: dict[str, StageInput],
        experiment: str | None = None,
        deployment: str | None = None,
    ) -> None:
        members: dict[str, list[str]] = {}
        for name, value in inputs.items():
            if isinstance(value, dict):
                members[name] = list(value)
                for n, one in enumerate(value.values()):
                    self._write(f"in/{name}/{n}{_file(name)}", encode(one))
            else:
                self._write(f"in/{name}{_file(name)}", encode(value))
        task = {
            "stage": stage,
            "settings": settings.model_dump(mode="json"),
            "data": data,
            "inputs": [name for name in inputs if name not in members],
            "members": members,
            "experiment": experiment,
            "deployment": deployment,
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

    # Methods for the worker.
    def take(
        self, report: Callable[[str], None]
    ) -> tuple[str, StageContext, dict[str, StageInput]]:
        task = json.loads((self.folder / "task.json").read_bytes())
        context = StageContext(
            Settings.model_validate(task["settings"]),
            location(task["data"]),
            report,
            experiment=task["experiment"],
            deployment=task["deployment"],
        )
        inputs: dict[str, StageInput] = {
            name: self._read(f"in/{name}{_file(name)}", name) for name in task["inputs"]
        }
        for name, partitions in task["members"].items():
            inputs[name] = {
                partition: self._read(f"in/{name}/{n}{_file(name)}", name)
                for n, partition in enumerate(partitions)
            }
        return task["stage"], context, inputs

    def hand_over(self, stage: str, made: StageResult) -> None:
        self._write(f"out{_file(stage)}", encode(made.value))
        self._write(
            "facts.json", json.dumps({"version": made.version, "facts": made.facts}).encode()
        )

    def fail(self, problem: Problem) -> None:
        self._write("problem.json", json.dumps(asdict(problem)).encode())

    def _read(self, name: str, stage: str) -> StageData:
        return decode((self.folder / name).read_bytes(), EVERY_STAGE[stage].result)

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self.folder / name, data)
