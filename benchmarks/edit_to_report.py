"""From an edit of one addendum to the new report, as an owner of a policy sees it: the real daemon, sensor, queue and bundled model.

    python benchmarks/edit_to_report.py [--keep folder]     or: make realign

It works on copies in a temporary folder: one shipped policy with two domains, which the daemon first aligns. Then one rule of
one addendum is reworded, and everything that happens until the new report is there is timed. Two partitions are aligned and
one is aligned again: with the vetted settings that is three times `make demo`. Settings of the environment hold as everywhere.
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg

from policyalign_assets.orchestration import fingerprints
from policyalign_assets.orchestration.realign import desired_states, live_runs
from policyalign_assets.settings import load_settings

ROOT = Path(__file__).parents[1]
POLICY, DOMAINS, EDITED = "general-conduct", ("medical", "legal"), "medical|general-conduct"
EDIT = ("fake a diagnosis", "fake a test result")
PATIENCE = 3600.0  # seconds, for either part


def prepare(folder: Path) -> None:
    """A folder to start Dagster in: the project's instance, and a policy of two partitions."""
    shutil.copy(ROOT / "dagster.yaml", folder)
    shutil.copytree(ROOT / "policies" / POLICY, folder / "policies" / POLICY)
    for addendum in (folder / "policies" / POLICY).glob("*.md"):
        if addendum.stem not in (*DOMAINS, "policy"):
            addendum.unlink()
    shared = folder / "policies" / POLICY / "policy.md"
    shared.write_text(re.sub(r"^domains: .*$", f"domains: [{', '.join(DOMAINS)}]", shared.read_text(), flags=re.M))


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[None]:
    with open(folder / "daemon.log", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", "dagster._daemon", "run", "-m", "policyalign_assets.definitions"], cwd=folder, stdout=log,
                                   stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def wait_for(what: Callable[[], object], instance: dg.DagsterInstance, folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        if failed or time.monotonic() > until:
            sys.exit(f"{'a run failed' if failed else f'nothing after {PATIENCE:.0f} s'}. The end of the daemon's log:\n"
                     f"{(folder / 'daemon.log').read_text()[-3000:]}")
        time.sleep(0.5)


def made(instance: dg.DagsterInstance, partition: str) -> dict[str, str | None]:
    """{stage: fingerprint} of what is there."""
    found = {}
    for stage in fingerprints.STAGES:
        records = instance.fetch_materializations(dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[partition]), limit=1).records
        found[stage] = records[0].asset_materialization.tags.get(fingerprints.TAG) if records else None
    return found


def measure(folder: Path) -> None:
    os.environ |= {"DAGSTER_HOME": str(folder), "POLICYALIGN_POLICIES_DIR": str(folder / "policies"), "POLICYALIGN_DATA_DIR": str(folder / "data"),
                   "POLICYALIGN_AUTOMATION__ENABLED": "true", "PYTHONWARNINGS": "ignore",
                   "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    os.chdir(folder)  # paths in dagster.yaml are relative
    prepare(folder)
    settings = load_settings()

    def as_wanted() -> bool:
        wanted = desired_states(folder / "policies", settings)
        return all(made(instance, partition) == stages for partition, stages in wanted.items()) and not live_runs(instance)

    with dg.DagsterInstance.from_config(str(folder)) as instance, daemon(folder):
        begun = time.time()
        print(f"the daemon aligns {' and '.join(f'{d}|{POLICY}' for d in DOMAINS)} …", flush=True)
        wait_for(as_wanted, instance, folder)
        before = [r.run_id for r in instance.get_runs()]
        print(f"{len(before)} runs, {time.time() - begun:.0f} s\nedit: {EDIT[0]!r} becomes {EDIT[1]!r} in {POLICY}/{DOMAINS[0]}.md", flush=True)

        file = folder / "policies" / POLICY / f"{DOMAINS[0]}.md"
        file.write_text(file.read_text().replace(*EDIT))
        edited = time.time()
        wait_for(as_wanted, instance, folder)
        records = [r for r in instance.get_run_records() if r.dagster_run.run_id not in before]
        print(f"runs since the edit: {len(records)}, for {', '.join(r.dagster_run.tags['dagster/partition'] for r in records)}\n")
        print("| from the edit until | seconds |\n| --- | --- |")
        print(f"| the sensor saw it and asked for a run | {records[-1].create_timestamp.timestamp() - edited:.0f} |")
        print(f"| the run began | {records[-1].start_time - edited:.0f} |")
        for stage in fingerprints.STAGES:
            event = instance.fetch_materializations(dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[EDITED]), limit=1).records[0]
            print(f"| {stage} | {event.timestamp - edited:.0f} |")
        print(f"\n**{event.timestamp - edited:.0f} seconds from the edit to the new report.**")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="an empty folder to work in, which is kept; without it, a temporary one")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory(prefix="policyalign.") if keep is None else contextlib.nullcontext(keep) as name:
        folder = Path(name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            measure(folder)
        finally:
            os.chdir(ROOT)


if __name__ == "__main__":
    main()
