"""Times an edit of one addendum until the new report, with the real daemon, sensor and queue.

    python benchmarks/edit_to_report.py [--beside legal …] [--keep folder]     or: make realign
    python benchmarks/edit_to_report.py --cold     trains from the base model

The script works on copies in a temporary folder: one shipped policy with the medical domain and the
domains that --beside names. The daemon aligns all of them first. Then one rule of the medical
addendum is reworded, and the time until the new report is measured. With one domain beside it, the
whole script takes about three times as long as `make demo`. A folder given by --keep can be used
again, and the script starts from what it holds. Settings in environment variables apply as usual.

Training goes on from the first report's checkpoint if that was releasable (`warm_start.enabled`),
and the table says whether it did. Beside seconds, it shows the processor seconds of this machine's
runs and workers in each phase: on a machine that does other work too, they tell more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import psutil

from policyalign_assets.orchestration.realign import desired_states, live_runs, parents_of
from policyalign_assets.settings import load_settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.registry import STAGES

ROOT = Path(__file__).parents[1]
POLICY, EDITED = "general-conduct", "medical|general-conduct"
# The edit replaces the wording that the file has by the other one.
WORDINGS = ("fake a diagnosis", "fake a test result")
PATIENCE = 3600.0  # seconds to wait: first for the alignment of all domains, then for the edit


def prepare(folder: Path, domains: list[str]) -> None:
    """Fills a folder to start Dagster in: the instance's settings, and one policy for `domains`."""
    shutil.copy(ROOT / "dagster.yaml", folder)
    if not (folder / "policies").exists():
        shutil.copytree(ROOT / "policies" / POLICY, folder / "policies" / POLICY)
    for addendum in (folder / "policies" / POLICY).glob("*.md"):
        if addendum.stem not in (*domains, "policy"):
            addendum.unlink()
    # No deployments: a run of one would keep the edit's run waiting. Such files make none.
    (folder / "deployments").mkdir(exist_ok=True)
    for domain in domains:
        nothing = f"domain: {domain}\npolicies: []\n"
        (folder / "deployments" / f"none-{domain}.yaml").write_text(nothing)
    shared = folder / "policies" / POLICY / "policy.md"
    shared.write_text(
        re.sub(r"^domains: .*$", f"domains: [{', '.join(domains)}]", shared.read_text(), flags=re.M)
    )


@contextlib.contextmanager
def daemon(folder: Path, instance: dg.DagsterInstance) -> Iterator[None]:
    with open(folder / "daemon.log", "w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "dagster._daemon",
                "run",
                "-m",
                "policyalign_assets.definitions",
            ],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            for run in live_runs(instance):  # none, unless this was interrupted
                instance.run_launcher.terminate(run.run_id)
            process.send_signal(signal.SIGINT)
            process.wait(60)


def wait_for(what: Callable[[], object], instance: dg.DagsterInstance, folder: Path) -> None:
    until, begun = time.monotonic() + PATIENCE, datetime.now(UTC)
    while not what():
        failed = instance.get_runs(
            dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], created_after=begun)
        )
        if failed or time.monotonic() > until:
            sys.exit(
                f"{'a run failed' if failed else f'no result after {PATIENCE:.0f} s'}. "
                "The end of the daemon's log:\n"
                f"{(folder / 'daemon.log').read_text()[-3000:]}"
            )
        time.sleep(2)


def last(instance: dg.DagsterInstance, asset: str) -> float:
    """When the asset was last materialized, in any partition."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    return event.timestamp if event else 0.0


def made(instance: dg.DagsterInstance, partition: str) -> dict[str, str | None]:
    """The fingerprint of the stored result of each stage, or None where there is none."""
    found = {}
    for stage in STAGES:
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[partition]), limit=1
        ).records
        found[stage] = (
            records[0].asset_materialization.tags.get(fingerprints.TAG) if records else None
        )
    return found


class Processor(threading.Thread):
    """Processor seconds that the processes below this one have used, at any moment since start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._used: dict[tuple[int, float], float] = {}
        self.course: list[tuple[float, float]] = []  # (time, seconds used by then)
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    key = (process.pid, process.create_time())
                    self._used[key] = times.user + times.system
            self.course.append((time.time(), sum(self._used.values())))
            self._over.wait(0.25)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def between(self, begin: float, end: float) -> float:
        """What was used from `begin` to `end`. A process's last quarter of a second is missed."""

        def by(moment: float) -> float:
            return max((used for at, used in self.course if at <= moment), default=0.0)

        return by(end) - by(max(begin, self.course[0][0]))


def measure(folder: Path, domains: list[str], cold: bool) -> None:
    os.environ |= {
        "DAGSTER_HOME": str(folder),
        "POLICYALIGN_POLICIES_DIR": str(folder / "policies"),
        "POLICYALIGN_DATA_DIR": str(folder / "data"),
        "POLICYALIGN_DEPLOYMENTS_DIR": str(folder / "deployments"),
        "POLICYALIGN_AUTOMATION__ENABLED": "true",
        "POLICYALIGN_AUTOMATION__SENSOR_SECONDS": os.environ.get(
            "POLICYALIGN_AUTOMATION__SENSOR_SECONDS", "2"
        ),
        "POLICYALIGN_WARM_START__ENABLED": "false" if cold else "true",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    os.chdir(folder)  # paths in dagster.yaml are relative
    prepare(folder, domains)
    settings = load_settings()

    def settled() -> bool:
        """Whether the run that follows a report is over too: the edit is to find an idle daemon."""
        return as_wanted() and last(instance, "leaderboard") > last(instance, "benchmark_report")

    def as_wanted() -> bool:
        if live_runs(instance):  # the cheap question first: the rest reads every policy
            return False
        wanted = desired_states(folder / "policies", settings, parents=parents_of(instance))
        return all(made(instance, partition) == stages for partition, stages in wanted.items())

    with dg.DagsterInstance.from_config(str(folder)) as instance, daemon(folder, instance):
        begun, known = time.time(), {run.run_id for run in instance.get_runs()}
        print(
            f"the daemon aligns {', '.join(desired_states(folder / 'policies', settings))} …",
            flush=True,
        )
        wait_for(settled, instance, folder)
        before = {run.run_id for run in instance.get_runs()}
        print(f"{len(before - known)} runs, {time.time() - begun:.0f} s", flush=True)

        file = folder / "policies" / POLICY / "medical.md"
        old, new = WORDINGS if WORDINGS[0] in file.read_text() else WORDINGS[::-1]
        file.write_text(file.read_text().replace(old, new))
        processor = Processor()
        processor.start()
        edited = time.time()
        print(f"edit: {old!r} becomes {new!r} in {POLICY}/medical.md", flush=True)
        wait_for(as_wanted, instance, folder)
        processor.stop()
        # A run of no partition draws the leaderboard.
        records = [
            r
            for r in instance.get_run_records()
            if r.dagster_run.run_id not in before and "dagster/partition" in r.dagster_run.tags
        ]
        partitions = ", ".join(r.dagster_run.tags["dagster/partition"] for r in records)
        print(f"runs since the edit: {len(records)}, for {partitions}")
        # the oldest run comes last; a second one trains from base what was not accepted
        at = [("sensor and queue", records[-1].start_time)]
        events = []
        for stage in STAGES:
            made_now = instance.fetch_materializations(
                dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[EDITED]), limit=1
            ).records[0]
            events.append((stage, made_now.timestamp, made_now.asset_materialization))
        at += [(stage, when) for stage, when, _ in events]
        started = next(
            e.metadata["started from"].value
            for s, _, e in events
            if e and s == "distilled_checkpoint"
        )
        print(f"training started from {started}\n")
        print("| phase | seconds | processor seconds |\n| --- | --- | --- |")
        begin = edited
        for phase, end in sorted(at, key=lambda one: one[1]):
            used = processor.between(begin, end)
            print(f"| {phase} | {end - begin:.0f} | {used:.0f} |")
            begin = end
        print(f"| all | {begin - edited:.0f} | {processor.between(edited, begin):.0f} |\n")
        print(f"edit to report: {begin - edited:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--beside",
        nargs="*",
        choices=("legal", "financial", "general"),
        default=[],
        help="domains that the edit does not touch",
    )
    parser.add_argument(
        "--keep", type=Path, help="a folder to work in, which is kept; without it, a temporary one"
    )
    parser.add_argument(
        "--cold", action="store_true", help="train from the base model, without a warm start"
    )
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="policyalign.")
        if asked.keep is None
        else contextlib.nullcontext(asked.keep) as name
    ):
        folder = Path(name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            measure(folder, ["medical", *asked.beside], asked.cold)
        finally:
            os.chdir(ROOT)


if __name__ == "__main__":
    main()
