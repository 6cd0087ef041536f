"""Edits a policy many times under the daemon, with random kills, and watches memory and disk.

    python benchmarks/soak.py [--edits 50] [--instant] [--seed 0] [--keep folder]

Each edit rewords a rule, and the daemon re-aligns the policy. A third of the edits come while the
run of the edit before is live. During a third of them the worker, its guard, the run or the daemon
is killed with SIGKILL. The script waits after each edit (except where the next one comes early)
until the daemon has nothing left to do. It checks that the results are those of the newest text,
and that nothing is left over. It measures the memory of the daemon's processes while they are idle,
and the disk that the project takes. With --instant, stages that load a model make small results at
once, so that only the orchestration is under load.

The exit code is 1 if an edit was lost, something was left over, or memory or disk grow without end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from throwaway import PARTITION, Hangs, Project  # noqa: E402

from policyalign_assets.policy import parse_policy  # noqa: E402

PATIENCE = 1200.0  # seconds until everything must be made after an edit
VERBS = ("fake", "forge", "alter", "copy", "sell", "hide", "steal", "invent")
NOUNS = ("test result", "prescription", "diagnosis", "receipt", "permit", "badge", "invoice")
WORDINGS = [f"{verb} a {noun}" for verb, noun in product(VERBS, NOUNS)]
GROWTH = 1.25  # of idle memory, from the first quarter of the edits to the last


@dataclass
class Measured:
    """Figures of one settled state."""

    edit: int
    seconds: float
    memory: float  # MiB of the daemon's processes, idle
    disk: dict[str, float]  # MiB of each folder of results, and of Dagster's history


@dataclass
class Soak:
    project: Project
    draw: random.Random
    kills: int = 0
    overtaken: int = 0  # edits that came while the run of the one before was live
    problems: list[str] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)

    def run(self, edits: int) -> None:
        project = self.project
        project.start_daemon()
        project.settle(PATIENCE)
        begun = time.monotonic()
        for number in range(edits):
            if self.draw.random() < 1 / 3 and number + 1 < edits:
                project.edit(WORDINGS[(2 * number) % len(WORDINGS)])
                self.overtaken += 1
                time.sleep(self.draw.uniform(1, 20))
                continue
            project.edit(WORDINGS[(2 * number + 1) % len(WORDINGS)])
            if self.draw.random() < 1 / 3:
                self.kill()
            try:
                project.settle(PATIENCE)
            except Hangs as error:
                self.problems.append(f"edit {number + 1}: {error}")
                return
            self.check(number + 1, time.monotonic() - begun)
            begun = time.monotonic()

    def kill(self) -> None:
        """Kills one process at a random moment of the run that the edit starts."""
        targets = (
            ["run", "daemon"] if self.project.instant else ["worker", "guard", "run", "daemon"]
        )
        target = self.draw.choice(targets)
        self.project.wait(lambda: self.project.find("run"), 120, "no run has started")
        time.sleep(self.draw.uniform(0, 3 if self.project.instant else 30))
        with contextlib.suppress(Hangs, ProcessLookupError):
            self.project.wait(lambda: self.project.find(target), 30, f"no {target} to kill")
            if pid := self.project.find(target):
                os.kill(pid, signal.SIGKILL)
                self.kills += 1
        if target == "daemon" and self.project.daemon is not None:
            self.project.daemon.wait(60)
            self.project.start_daemon()

    def check(self, edit: int, seconds: float) -> None:
        project = self.project
        if not project.as_wanted():
            self.problems.append(f"edit {edit} was lost: results are not those of the newest text")
        domain, policy = PARTITION.split("|")
        rules = [rule.text for rule in parse_policy(project.policies, policy, domain).rules]
        left = [item for item in project.leftovers() if not item.startswith("process ")]
        self.problems += [f"edit {edit} left {item}" for item in left]
        made = Measured(edit, seconds, project.memory(), project.disk())
        self.measured.append(made)
        print(
            f"edit {edit} ({rules[0]}): {seconds:.0f} s, daemon {made.memory:.0f} MiB, results "
            f"{sum(made.disk.values()):.1f} MiB, {len(left)} left over",
            flush=True,
        )

    def grows(self) -> list[str]:
        """What grows without end: idle memory, or results other than evidence."""
        quarter = max(1, len(self.measured) // 4)
        first, last = self.measured[:quarter], self.measured[-quarter:]
        before, after = (statistics.median(m.memory for m in part) for part in (first, last))
        print(f"\nidle memory of the daemon's processes: {before:.0f} MiB, then {after:.0f} MiB")
        edits = self.measured[-1].edit - self.measured[0].edit
        print("\n| folder | MiB after the first edit | after the last | for each edit |")
        print("| --- | --- | --- | --- |")
        for name, size in self.measured[-1].disk.items():
            start = self.measured[0].disk.get(name, 0.0)
            print(f"| {name} | {start:.2f} | {size:.2f} | {(size - start) / max(1, edits):.3f} |")
        return (
            [f"memory grew from {before:.0f} to {after:.0f} MiB"] if after > before * GROWTH else []
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edits", type=int, default=50)
    parser.add_argument("--instant", action="store_true", help="stages of the daemon's tests")
    parser.add_argument("--seed", type=int, default=0, help="of edits, kills and moments")
    parser.add_argument("--keep", type=Path, help="a new folder to work in, which is kept")
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="policyalign-soak-", ignore_cleanup_errors=True)
        if asked.keep is None
        else contextlib.nullcontext(asked.keep) as name
    ):
        project = Project(Path(name).resolve() / "project", instant=asked.instant)
        soak = Soak(project, random.Random(asked.seed))
        try:
            soak.run(asked.edits)
            project.stop_daemon()
            with contextlib.suppress(Hangs):
                project.wait(lambda: not project.processes(), 60, "processes are still alive")
            soak.problems += project.leftovers()
        finally:
            project.close()
        soak.problems += soak.grows()
        print(
            f"\n**{asked.edits} edits ({soak.overtaken} of them overtaken by the next), "
            f"{soak.kills} kills: {'; '.join(soak.problems) or 'nothing lost, nothing left over'}**"
        )
        sys.exit(1 if soak.problems else 0)


if __name__ == "__main__":
    main()
