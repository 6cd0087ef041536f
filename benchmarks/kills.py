"""Kills parts of runs at random moments, and compares what is made in the end with an unkilled run.

    python benchmarks/kills.py [--rounds 40] [--seed 0] [--patience 600] [--keep folder]

Each round starts from the results of the stages before one stage, starts a run by hand or lets the
daemon start it, waits for a random moment of that stage, and sends SIGKILL to the worker, its
guard, the run or the daemon. A run that was started by hand is then started again if it failed; a
killed daemon is started again; everything else must happen by itself. A round is passed if the
tables and the checkpoint's id equal those of the unkilled run, nothing is left over (processes,
unfinished files, live runs, held pool slots) and nothing took longer than --patience seconds. A
machine that is busy with other work needs more patience than an idle one.

The script prints one line for each round and n/40 at the end. Its exit code is 1 if a round failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from throwaway import Hangs, Project  # noqa: E402

from policyalign_assets.stages.registry import DEPLOYMENT_STAGES, EVERY_STAGE, STAGES  # noqa: E402

PATIENCE = 600.0  # seconds for one round; more counts as hanging
TOO_LATE = "the stage was over before anything was killed"
HOW = (
    [("by hand", target) for target in ("worker", "guard", "run")]
    + [("by daemon", target) for target in ("worker", "guard", "run", "daemon")]
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Which process is killed, how its run was started, and when: a share of the stage's time."""

    how: str
    target: str
    stage: str
    moment: float


def plans(rounds: int, draw: random.Random) -> list[Plan]:
    """Each way of starting and each target about equally often, at random stages and moments."""
    in_workers = [name for name, stage in EVERY_STAGE.items() if stage.loads_model]
    made = []
    for number in range(rounds):
        how, target = HOW[number % len(HOW)]
        stages = in_workers if target in ("worker", "guard") else list(EVERY_STAGE)
        made.append(Plan(how, target, draw.choice(stages), draw.random()))
    return made


@dataclass(frozen=True)
class Unkilled:
    """Digests of the results before the deployment is made and in the end; seconds by stage."""

    before_deployment: list[str]
    results: list[str]
    seconds: dict[str, float]

    def expected(self, plan: Plan) -> list[str]:
        """A run by hand of a partition's stage does not make the deployment; the daemon does."""
        alone = plan.how == "by hand" and plan.stage in STAGES
        return self.before_deployment if alone else self.results


def unkilled(folder: Path) -> Unkilled:
    """Makes every stage once and keeps a snapshot before each."""
    known = folder / "unkilled.json"
    if known.exists():
        return Unkilled(**json.loads(known.read_text()))
    project = Project(folder / "unkilled")
    try:
        _by_hand(project, "policy_catalog")
        seconds: dict[str, float] = {}
        before_deployment: list[str] = []
        for stage in (*STAGES, *DEPLOYMENT_STAGES):
            if stage in DEPLOYMENT_STAGES and not before_deployment:
                before_deployment = project.results()
            project.keep(folder / f"before-{stage}")
            _by_hand(project, stage)
            seconds[stage] = project.seconds(stage)
        if left := project.leftovers():
            print(f"left by the unkilled run: {left}")
        made = Unkilled(before_deployment, project.results(), seconds)
        known.write_text(json.dumps(asdict(made)))
        return made
    finally:
        project.close()


def _by_hand(project: Project, asset: str) -> None:
    if project.by_hand(asset).wait(PATIENCE):
        sys.exit(f"the unkilled run failed: {(project.folder / 'by_hand.log').read_text()[-3000:]}")


def _onwards(stage: str) -> list[str]:
    """The stage and those after it that are made for the same partition."""
    chain = list(STAGES if stage in STAGES else DEPLOYMENT_STAGES)
    return chain[chain.index(stage) :]


def killed(project: Project, plan: Plan, wanted: Unkilled, patience: float) -> list[str]:
    """Carries out one plan, and returns what went wrong."""
    deployed = plan.how == "by daemon" or plan.stage in DEPLOYMENT_STAGES
    until = time.monotonic() + patience
    run = project.by_hand(*_onwards(plan.stage)) if plan.how == "by hand" else None
    if run is None:
        project.start_daemon()
    project.wait(lambda: project.step() == plan.stage, patience, f"{plan.stage} has not started")
    time.sleep(plan.moment * wanted.seconds[plan.stage])
    stage = None
    while stage is None:  # a worker has not started yet, or has just ended
        with contextlib.suppress(ProcessLookupError):
            if pid := project.find(plan.target):
                now = project.step() or "between stages"
                os.kill(pid, signal.SIGKILL)
                stage = now
        if stage is None and (time.monotonic() > until or project.as_wanted(deployed)):
            return [TOO_LATE]
    print(f"{plan.how}, {plan.target}, {stage}", end=", ", flush=True)

    if run is not None:
        # the killed run may end well, since a killed worker is started again
        if _ended(project, run, until) and _ended(
            project, project.by_hand(*_onwards(plan.stage)), until
        ):
            return ["the run that was started again failed"]
    elif plan.target == "daemon":
        assert project.daemon is not None
        project.daemon.wait(60)
        project.start_daemon()
    project.wait(
        lambda: project.as_wanted(deployed) and not project.runs(),
        until - time.monotonic(),
        "the results are not as wanted",
    )
    if run is None:
        project.wait(lambda: not project.live(), until - time.monotonic(), "a run is still live")
        project.stop_daemon()
    # A code server whose daemon was killed notices that after 20 to 45 seconds.
    with contextlib.suppress(Hangs):
        project.wait(lambda: not project.processes(), 60, "processes are still alive")
    problems = project.leftovers()
    expected = wanted.expected(plan)
    if (made := project.results()) != expected:
        problems += [f"differs: {line}" for line in sorted(set(made) ^ set(expected))]
    return problems


def _ended(project: Project, run: subprocess.Popen[bytes], until: float) -> int:
    """The exit code of a run by hand."""
    project.wait(lambda: run.poll() is not None, until - time.monotonic(), "the run has not ended")
    return run.returncode


def carried_out(plan: Plan, folder: Path, wanted: Unkilled, patience: float) -> list[str]:
    """As `killed`, in a new project."""
    shutil.rmtree(folder / "round", ignore_errors=True)
    project = Project(folder / "round", folder / f"before-{plan.stage}")
    try:
        return killed(project, plan, wanted, patience)
    except Hangs as error:
        return [f"hangs: {error}"]
    finally:
        project.close()


def measure(folder: Path, first: int, rounds: int, seed: int, patience: float) -> bool:
    begun = time.monotonic()
    wanted = unkilled(folder)
    shown = ", ".join(f"{stage} {value:.0f} s" for stage, value in wanted.seconds.items())
    print(f"unkilled: {time.monotonic() - begun:.0f} s ({shown})", flush=True)
    passed, tried = Counter[str](), Counter[str]()
    slowest = 0.0
    for number, plan in enumerate(plans(rounds, random.Random(seed))):
        if number + 1 < first:
            continue
        begun = time.monotonic()
        print(f"{number + 1}/{rounds}: ", end="", flush=True)
        problems = [TOO_LATE]
        while problems == [TOO_LATE]:  # the machine is faster now than in the unkilled run
            problems = carried_out(plan, folder, wanted, patience)
            plan = replace(plan, moment=plan.moment / 2)
        took = time.monotonic() - begun
        slowest = max(slowest, took)
        print(f"{took:.0f} s: {'; '.join(problems) or 'the same, nothing left'}", flush=True)
        for part in (plan.how, plan.target):
            tried[part] += 1
            passed[part] += not problems
    print("\n| | passed |\n| --- | --- |")
    for part in tried:
        print(f"| {part} | {passed[part]}/{tried[part]} |")
    total = passed["by hand"] + passed["by daemon"]
    planned = rounds - first + 1
    print(f"\n**{total}/{planned}**, slowest round {slowest:.0f} s")
    return total == planned


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--first", type=int, default=1, help="begin with this round")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds for one round; more is hanging"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the stages and moments")
    parser.add_argument(
        "--keep",
        type=Path,
        help="a folder to work in, which is kept; the unkilled run in it is used again",
    )
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="policyalign-kills-", ignore_cleanup_errors=True)
        if asked.keep is None
        else contextlib.nullcontext(asked.keep) as name
    ):
        folder = Path(name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        sys.exit(0 if measure(folder, asked.first, asked.rounds, asked.seed, asked.patience) else 1)


if __name__ == "__main__":
    main()
