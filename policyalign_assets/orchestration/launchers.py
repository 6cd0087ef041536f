"""Where the stages that load a model run. A launcher is the resource `launcher`; assets do not know
which one they have.

`Subprocess` (default) starts a worker process through Dagster Pipes and ends its whole tree with
the run, however the run ends. Where a fork is safe, the workers of one run are forks of one process
(see `forked_workers`). `InProcess` is for tests and notebooks: no process to start, none to end.
"""

import contextlib
import os
import signal
import sys
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click
import dagster as dg
from pydantic import PrivateAttr

import policyalign_assets
from policyalign_assets.files import Location, temporary_folder
from policyalign_assets.orchestration.partitions import domain_and_policy
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.runtime.exchange import Exchange, Problem, problem_of
from policyalign_assets.runtime.execution import make
from policyalign_assets.runtime.forked_workers import ForkedWorkers, can_fork
from policyalign_assets.runtime.guard import guarded
from policyalign_assets.stages.interface import StageContext, StageInput, StageResult
from policyalign_assets.stages.registry import DEPLOYMENT_STAGES, EVERY_STAGE

WORKER = ("-m", "policyalign_assets.runtime.worker")  # arguments of Python, before the folder
SOURCES = str(Path(policyalign_assets.__file__).parents[1])


class Launcher(dg.ConfigurableResource):
    @abstractmethod
    def make(
        self,
        context: dg.AssetExecutionContext,
        pipeline: Pipeline,
        stage: str,
        inputs: dict[str, StageInput],
    ) -> StageResult:
        """Makes a stage that loads a model.

        Raises dg.Failure in plain words, or dg.RetryRequested where another attempt may help.
        """

    def make_here(
        self,
        context: dg.AssetExecutionContext,
        pipeline: Pipeline,
        stage: str,
        inputs: dict[str, StageInput],
    ) -> StageResult:
        """Makes a stage in the process of the run itself, as those that load no model are.

        Raises as `make`.
        """
        try:
            return make(
                stage,
                StageContext(
                    pipeline.settings,
                    pipeline.data,
                    context.log.info,
                    pipeline.policies,
                    domain_and_policy(context.partition_key),
                    pipeline.experiment,
                    _deployment(context, stage),
                ),
                inputs,
            )
        except Exception as error:
            fail(stage, problem_of(error))


def _deployment(context: dg.AssetExecutionContext, stage: str) -> str | None:
    return context.partition_key if stage in DEPLOYMENT_STAGES else None


class InProcess(Launcher):
    """Everything in the process of the run itself."""

    def make(
        self,
        context: dg.AssetExecutionContext,
        pipeline: Pipeline,
        stage: str,
        inputs: dict[str, StageInput],
    ) -> StageResult:
        return self.make_here(context, pipeline, stage, inputs)


class OutOfProcess(Launcher):
    """In a worker process; inputs and results travel as files."""

    def make(
        self,
        context: dg.AssetExecutionContext,
        pipeline: Pipeline,
        stage: str,
        inputs: dict[str, StageInput],
    ) -> StageResult:
        with self.folder(context) as folder:
            exchange = Exchange(folder)
            exchange.give(
                stage,
                pipeline.settings,
                pipeline.data_dir,
                inputs,
                pipeline.experiment,
                _deployment(context, stage),
            )
            try:
                code = self.run_worker(context, str(folder))
            except Exception as error:  # of a cluster's client: what it says is the reason
                fail(stage, exchange.problem() or problem_of(error))
            if code:
                fail(stage, exchange.problem() or _died(code))
            return exchange.made(stage)

    @abstractmethod
    def folder(self, context: dg.AssetExecutionContext) -> AbstractContextManager[Location]:
        """A place that both sides reach; what is in it is removed afterwards."""

    @abstractmethod
    def run_worker(self, context: dg.AssetExecutionContext, folder: str) -> int:
        """Runs the worker of the exchange folder through Dagster Pipes until it ends.

        Returns its exit code: 128 + n for signal n. Raises what a cluster's client raises where the
        worker could not be run, or failed.
        """


class Subprocess(OutOfProcess):
    """A child process of the run, which never outlives it (see `guard`)."""

    grace_seconds: float = 5.0  # between SIGTERM and SIGKILL
    _workers: ForkedWorkers | None = PrivateAttr(default=None)

    @contextlib.contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["Subprocess"]:
        if not can_fork():
            yield self
            return
        with contextlib.closing(ForkedWorkers(self.grace_seconds)) as self._workers:
            if context.run and _loads_a_model(context.run):
                self._workers.begin(_with_sources(os.environ))
            yield self

    @contextlib.contextmanager
    def folder(self, context: dg.AssetExecutionContext) -> Iterator[Location]:
        with temporary_folder() as folder:
            yield folder

    def run_worker(self, context: dg.AssetExecutionContext, folder: str) -> int:
        # In a folder that is swept after a killed run; Dagster's own temporary files would stay.
        with (
            temporary_folder() as pipes,
            dg.open_pipes_session(
                context,
                dg.PipesFileContextInjector(str(pipes / "context")),
                dg.PipesFileMessageReader(str(pipes / "messages")),
            ) as session,
        ):
            environ = {**_with_sources(os.environ), **session.get_bootstrap_env_vars()}
            if self._workers is not None:
                _load_ahead()
                return self._workers.run(folder, environ)
            return run_guarded([sys.executable, *WORKER, folder], self.grace_seconds, environ)


@cache
def _load_ahead() -> None:
    """Loads what this process's own stages need later, such as plots, while it waits for a worker.

    Where that fails, the stage itself says why.
    """

    def load() -> None:
        for stage in EVERY_STAGE.values():
            if not stage.loads_model:
                with contextlib.suppress(Exception):
                    import_module(stage.module)

    threading.Thread(target=load, daemon=True).start()


def _with_sources(environ: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (SOURCES, environ.get("PYTHONPATH"))))
    return {**environ, "PYTHONPATH": path}


def _loads_a_model(run: dg.DagsterRun) -> bool:
    """Whether a stage of the run needs a worker. A run that names no steps makes all of its job."""
    steps = run.step_keys_to_execute
    return steps is None or any(s.loads_model for n, s in EVERY_STAGE.items() if n in steps)


def run_guarded(command: list[str], grace: float, environment: dict[str, str]) -> int:
    """Exit code of `command`.

    When this is interrupted, or this process dies, every process below `command` is ended.
    """
    with guarded(command, grace, environment) as process:
        return process.wait()


# Signals that come from outside; the others say that the process itself did something wrong
_FROM_OUTSIDE = {signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM}


def _died(code: int) -> Problem:
    number = code - 128 if code > 128 else -code if code < 0 else 0
    if not number:
        return Problem(
            f"its process ended with exit code {code} and gave no reason. "
            "Its output is under stderr of this step.",
            False,
        )
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    hint = (
        " The memory of the machine may be full. Fix: lower model.batch_tokens."
        if number == signal.SIGKILL
        else ""
    )
    return Problem(f"its process was ended by {name}.{hint}", number in _FROM_OUTSIDE)


def fail(stage: str, problem: Problem) -> NoReturn:
    """Fails the stage, after another attempt if that may help. (With a RetryPolicy, Dagster
    tries a *terminated* step again.)"""
    failure = dg.Failure(f"{stage}: {problem.message}", allow_retries=False)
    if problem.may_pass:
        raise dg.RetryRequested(max_retries=1, seconds_to_wait=5) from failure
    raise failure


def launcher_from_environment(environ: Mapping[str, str] = os.environ) -> Launcher:
    """POLICYALIGN_LAUNCHER: subprocess (default), in_process, ray or kubernetes."""
    from policyalign_assets.orchestration.clusters import Kubernetes, RayJobs

    known = {
        "subprocess": Subprocess,
        "in_process": InProcess,
        "ray": RayJobs,
        "kubernetes": Kubernetes,
    }
    name = environ.get("POLICYALIGN_LAUNCHER", "subprocess")
    if name not in known:
        raise click.ClickException(
            f"POLICYALIGN_LAUNCHER={name!r} names no launcher. Fix: one of {', '.join(known)}."
        )
    return known[name]()
