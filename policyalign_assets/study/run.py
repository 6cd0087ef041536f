"""Runs what is missing of a study, and says what is there.

Several processes may run one study in one work folder, on one machine or on a shared disk: each
takes the trials that no other one holds. A stopped study goes on where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from policyalign_assets.files import write_whole
from policyalign_assets.runtime.partition_lock import PartitionBusy, partition_lock
from policyalign_assets.study.analysis import compared
from policyalign_assets.study.page import Missing, missing_lines, page_of
from policyalign_assets.study.plot import study_plot
from policyalign_assets.study.results import TrialResult
from policyalign_assets.study.sweep import Sweep, SweepError
from policyalign_assets.study.trials import Trial, trials_of

Log = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """Results, and the trials that have none.

    earlier: how many of the results an earlier version of the code made. They answer what the
    sweep file asks, so they are shown, and `run_study` makes them anew.
    """

    results: list[TrialResult]
    missing: list[Missing]
    earlier: int = 0

    def missing_lines(self) -> list[str]:
        """A line for each arm under each policy and each reason, with its seeds."""
        return missing_lines(self.missing)


def state_of(sweep: Sweep, work: Path, policies: Path, arms: Sequence[str] = ()) -> State:
    """The state of all trials, or of some arms.

    Raises ResultError, and PolicyError where a partition of the sweep has no policy."""
    results, missing, earlier = [], [], 0
    for trial in trials_of(sweep, work, policies, tuple(arms)):
        result = trial.there()
        current = result is not None and result.fingerprint == trial.fingerprint()
        if result and (current or result.asked == trial.asked()):
            results.append(result)
            earlier += not current
        else:
            why = "out of date" if result else "not run"
            missing.append(Missing(trial.arm, trial.partition, trial.seed, why))
    return State(results, missing, earlier)


def run_study(
    sweep: Sweep,
    work: Path,
    policies: Path,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    log: Log = lambda _: None,
) -> None:
    """Runs the trials that have no result yet, or those among them of some arms and seeds.

    A trial that another process runs is left to it. Raises SweepError for an arm or a seed that
    the sweep does not have.
    """
    for what, asked, known in (("arm", arms, sweep.arms), ("seed", seeds, sweep.seeds)):
        if unknown := [str(a) for a in asked if a not in known]:
            raise SweepError(
                f"the sweep has no {what} {', '.join(unknown)}. "
                f"Fix: one of {', '.join(map(str, known))}."
            )
    for trial in trials_of(sweep, work, policies, tuple(arms), tuple(seeds)):
        try:
            with partition_lock(work, f"study {trial.name}", f"process {os.getpid()}", 0):
                if not trial.kept():
                    _run(trial, log)
        except PartitionBusy as busy:
            log(f"left out: {busy}")


def _run(trial: Trial, log: Log) -> None:
    begun = time.monotonic()
    log(trial.name)
    result = trial.run(lambda line: log(f"  {line}"))
    how = f"failed: {result.failed}" if result.failed else "done"
    log(f"{trial.name}: {how}, {time.monotonic() - begun:.0f} s")


def write_page(sweep: Sweep, state: State, page: Path) -> None:
    """Writes the page, and its plots beside it in `images/`."""
    text, plots = page_of(sweep, state.results, state.missing, state.earlier)
    for name, arms in plots.items():
        write_whole(page.parent / "images" / name, study_plot(arms))
    write_whole(page, text.encode())


def as_json(sweep: Sweep, state: State) -> dict[str, Any]:
    """All figures by policy and arm, and what is missing or failed."""
    figures: dict[str, dict[str, Any]] = {}
    for partition in sweep.partitions:
        for arm in compared(sweep, state.results, partition):
            figures.setdefault(partition, {})[arm.arm] = {
                "seeds": [r.seed for r in arm.results],
                "failed": {r.seed: r.failed for r in arm.failed},
                "against": arm.against,
                "shares": {name: asdict(share) for name, share in arm.shares.items()},
                "differences": {
                    name: asdict(d) | {"verdict": d.verdict} for name, d in arm.differences.items()
                },
            }
    return {
        "reference": sweep.reference,
        "results": len(state.results),
        "made by earlier code": state.earlier,
        "missing": [asdict(trial) for trial in state.missing],
        "figures": figures,
    }
