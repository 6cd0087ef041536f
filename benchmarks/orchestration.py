"""Times the orchestration alone: loading definitions, a sensor tick, starting a worker.

    python benchmarks/orchestration.py

Run it on a quiet machine. Times are medians. Loading is compared with `import dagster`, which every
Dagster project pays.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dagster as dg

from policyalign_assets.orchestration import assets
from policyalign_assets.orchestration.realign import desired_states, policy_changes
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.policy import SHIPPED_DOMAINS
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
    print("\n| partitions | tick, all up to date (s) | tick, nothing exists yet (s) |")
    print("| --- | --- | --- |")
    for policies in (50, 250):
        partitions, quiet, fresh = look(policies)
        print(f"| {partitions} | {quiet:.2f} | {fresh:.2f} |", flush=True)


if __name__ == "__main__":
    main()
