"""Where the stages that load a model run. A launcher is the resource `launcher`; assets do not know which one they have.

`Subprocess` (default) starts a worker process through Dagster Pipes and ends its whole tree with the run, however the run
ends. `InProcess` is for tests and notebooks: no process to start, none to end.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import NoReturn

import dagster as dg

import policyalign_assets
from policyalign_assets.files import location
from policyalign_assets.orchestration import guard
from policyalign_assets.orchestration.metadata import shown
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.stages import Data, Work, make
from policyalign_assets.stages.exchange import Exchange, Problem, problem_of

SOURCES = str(Path(policyalign_assets.__file__).parents[1])


class Launcher(dg.ConfigurableResource):
    """Makes one stage: its value, its facts as metadata, its data version."""

    @abstractmethod
    def make(self, context: dg.AssetExecutionContext, pipeline: Pipeline, stage: str, inputs: dict[str, Data]) -> dg.MaterializeResult: ...


class InProcess(Launcher):
    """In the process of the run itself."""

    def make(self, context: dg.AssetExecutionContext, pipeline: Pipeline, stage: str, inputs: dict[str, Data]) -> dg.MaterializeResult:
        try:
            made = make(stage, Work(pipeline.settings, pipeline.data, context.log.info), inputs)
        except Exception as error:
            _fail(stage, problem_of(error))
        return dg.MaterializeResult(value=made.value, data_version=dg.DataVersion(made.version), metadata=shown(made.facts))


class Subprocess(Launcher):
    """A child process of the run, which never outlives it (see `guard`)."""

    grace_seconds: float = 5.0  # between SIGTERM and SIGKILL

    def make(self, context: dg.AssetExecutionContext, pipeline: Pipeline, stage: str, inputs: dict[str, Data]) -> dg.MaterializeResult:
        with tempfile.TemporaryDirectory(prefix="policyalign.") as folder:
            exchange = Exchange(location(folder))
            exchange.give(stage, pipeline.settings, pipeline.data_dir, inputs)
            with dg.open_pipes_session(context, dg.PipesTempFileContextInjector(), dg.PipesTempFileMessageReader()) as session:
                path = os.pathsep.join(filter(None, (SOURCES, os.environ.get("PYTHONPATH"))))
                code = run_guarded([sys.executable, "-m", "policyalign_assets.worker", folder], self.grace_seconds,
                                   {**os.environ, "PYTHONPATH": path, **session.get_bootstrap_env_vars()})
            if code:
                _fail(stage, exchange.problem() or _died(code))
            (result,) = session.get_results()
            return dg.MaterializeResult(value=exchange.made(stage), data_version=result.data_version, metadata=result.metadata)


def run_guarded(command: list[str], grace: float, environment: dict[str, str]) -> int:
    """Exit code of `command`. When this is interrupted, or this process dies, every process below `command` is ended."""
    process = subprocess.Popen([sys.executable, "-I", "-S", guard.__file__, str(grace), *command], env=environment, stdin=subprocess.PIPE,
                               start_new_session=True)
    try:
        return process.wait()
    finally:
        process.stdin.close()  # the guard takes it as the end
        try:
            process.wait(grace + 3)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # if the guard itself was killed, its group is still there
            process.wait()


def _died(code: int) -> Problem:
    number = code - 128 if code > 128 else -code if code < 0 else 0
    if not number:
        return Problem(f"its process ended with exit code {code} and gave no reason; its output is under stderr of this step", False)
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    hint = " Often the machine's memory is full: lower model.batch_tokens." if number == signal.SIGKILL else ""
    return Problem(f"its process was ended by {name}.{hint}", True)


def _fail(stage: str, problem: Problem) -> NoReturn:
    """Fails the stage, after another attempt if that may help. (With a RetryPolicy, Dagster tries a *terminated* step again.)"""
    failure = dg.Failure(f"{stage}: {problem.message}", allow_retries=False)
    if problem.may_pass:
        raise dg.RetryRequested(max_retries=1, seconds_to_wait=5) from failure
    raise failure


def launcher_from_environment(environ: dict[str, str] | None = None) -> Launcher:
    """POLICYALIGN_LAUNCHER: subprocess (default) or in_process."""
    name = (os.environ if environ is None else environ).get("POLICYALIGN_LAUNCHER", "subprocess")
    known = {"subprocess": Subprocess, "in_process": InProcess}
    if name not in known:
        raise ValueError(f"POLICYALIGN_LAUNCHER={name!r} names no launcher. Mend: one of {', '.join(known)}.")
    return known[name]()
