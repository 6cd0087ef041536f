"""Times the orchestration alone: loading definitions, a sensor tick, starting a worker.

    python benchmarks/orchestration.py

Run it on a quiet machine. Times are medians. Loading is compared with `import dagster`, which every
Dagster project pays.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from policyalign_assets.orchestration import assets
from policyalign_assets.orchestration.realign import desired_states, policy_changes
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.policy import SHIPPED_DOMAINS
from policyalign_assets.runtime.forked_workers import ForkedWorkers, can_fork
from policyalign_assets.stages import fingerprints

POLICY = """---
title: P{0}
owner: Someone
domains: [medical, legal, financial, general]
---

This assistant helps.

## Rules

- A1: Never help anyone forge signature {0}.

## Declining

Decline.
"""
VALIDATE = ["-m", "dagster", "definitions", "validate", "-m"]
EMPTY = "import dagster as dg\ndefs = dg.Definitions()\n"
WORKER = ["-c", "import policyalign_assets.runtime.worker, policyalign_assets.stages.{0}"]


def seconds(*args: str, times: int = 5) -> float:
    def once() -> float:
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, *args],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        return time.perf_counter() - begun

    once()  # fills the file system's cache
    return statistics.median(once() for _ in range(times))


def forked(times: int = 5) -> tuple[float, float]:
    """Seconds of a run's first worker and of a later one, with nothing to do: their start alone."""

    def once() -> float:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "task.json").write_text("{}")  # no task: the worker fails at once
            begun = time.perf_counter()
            workers.run(folder, dict(os.environ))
            return time.perf_counter() - begun

    with contextlib.closing(ForkedWorkers(5.0)) as workers, silent():
        first = once()
        return first, statistics.median(once() for _ in range(times))


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing that this process or a worker says on standard error is shown."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def look(policies: int) -> tuple[int, float, float]:
    """Partitions, seconds of a tick when all is up to date, and of one when nothing exists yet."""
    with tempfile.TemporaryDirectory() as name, dg.instance_for_test() as instance:
        folder = Path(name)
        for n in range(policies):
            (folder / f"p{n}").mkdir()
            (folder / f"p{n}/policy.md").write_text(POLICY.format(n))
        wanted = desired_states(folder, assets.DEPLOYED)
        instance.add_dynamic_partitions(
            "policies", [f"{d}|p{n}" for n in range(policies) for d in SHIPPED_DOMAINS]
        )

        def tick() -> float:
            begun = time.perf_counter()
            with dg.build_sensor_context(
                instance=instance, resources={"pipeline": Pipeline(policies_dir=name)}
            ) as context:
                policy_changes(context)
            return time.perf_counter() - begun

        fresh = tick()
        for partition, stages in wanted.items():
            for stage, fingerprint in stages.items():
                instance.report_runless_asset_event(
                    dg.AssetMaterialization(
                        stage, partition=partition, tags={fingerprints.TAG: fingerprint}
                    )
                )
        return len(wanted), statistics.median(tick() for _ in range(3)), fresh


def main() -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".py") as empty:
        empty.write(EMPTY)
        empty.flush()
        rows = (
            ("`import dagster`", ["-c", "import dagster"]),
            (
                "`import policyalign_assets.definitions`",
                ["-c", "import policyalign_assets.definitions"],
            ),
            ("`definitions validate`, empty project", [*VALIDATE[:-1], "-f", empty.name]),
            ("`definitions validate`", [*VALIDATE, "policyalign_assets.definitions"]),
        )
        print("| what | seconds | against `import dagster` |\n| --- | --- | --- |")
        floor = None
        for name, command in rows:
            value = seconds(*command)
            floor = floor or value
            print(f"| {name} | {value:.2f} | {value / floor:.2f} |", flush=True)
    print("\n| a worker process, until its stage's code is loaded | seconds |\n| --- | --- |")
    for stage in ("sensitivity_scores", "distilled_checkpoint", "generations"):
        print(
            f"| {stage} | {seconds(*(a.format(stage) for a in WORKER), times=3):.2f} |", flush=True
        )
    if can_fork():
        first, later = forked()
        print(f"| the first one of a run that forks its workers | {first:.2f} |")
        print(f"| each later one of the run | {later:.2f} |", flush=True)
    print("\n| partitions | tick, all up to date (s) | tick, nothing exists yet (s) |")
    print("| --- | --- | --- |")
    for policies in (50, 250):
        partitions, quiet, fresh = look(policies)
        print(f"| {partitions} | {quiet:.2f} | {fresh:.2f} |", flush=True)


if __name__ == "__main__":
    main()
