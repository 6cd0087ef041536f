"""Parts that the comparisons of deployments and of warm starts share: tables, cases, results.

Every result is a JSON file in a work folder, named by what was tried. A trial whose file is there
is not run again, so a stopped comparison goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from distilling import right
from scipy.stats import t as student_t

from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.held_out import held_out_cases
from policyalign_assets.files import location, write_whole
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.runtime.execution import make
from policyalign_assets.settings import Settings, load_settings
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.statistics import wilson
from policyalign_assets.study.trials import data_tables

ROOT = Path(__file__).parents[1]
SUITES = ("violations", "violations_wrapped", "twins", "uncovered", "capability")
Result = dict[str, Any]


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seed", action="append", type=int, help="may be repeated; default 13")
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="share of the default training steps, rows of a rule and held-out cases",
    )
    parser.add_argument(
        "--steps", type=int, help="training steps, in place of a share of the default ones"
    )
    parser.add_argument("--show", action="store_true", help="print what is there, and run nothing")
    return parser


@dataclass(frozen=True)
class Size:
    """`share`: of the default rows and cases, and of the steps unless `steps` says their number."""

    share: float = 1.0
    steps: int | None = None

    @property
    def folder(self) -> str:
        return f"share-{self.share:g}" + (f"-steps-{self.steps}" if self.steps else "")

    def described(self, steps: int) -> str:
        return f"{self.share:.0%} of the default rows and cases, {steps} training steps"


def scaled(size: Size, seed: int = 13) -> Settings:
    """The default settings at that size. Probes are left out."""
    share = size.share
    default = load_settings(environ={})

    def some(value: int, least: int) -> int:
        return max(least, round(share * value))

    rows = some(default.synthesis.per_rule, 10)
    overrides: dict[str, dict[str, Any]] = {
        "synthesis": {"per_rule": rows},
        "filtering": {"per_rule": min(rows, default.filtering.per_rule)},
        "distillation": {
            "steps": size.steps or some(default.distillation.steps, 2),
            "seed": seed,
        },
        "evaluation": {
            "cases_per_suite": some(330, 40),
            "cases_per_rule": 2,
            "benign_cases": some(330, 40),
            "capability_cases": some(300, 40),
            "probe_cases": 0,
            "pressure_cases": 0,
        },
    }
    return load_settings(overrides=overrides, environ={})


def said(line: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {line}", flush=True)


def kept(work: Path, name: str, run: Callable[[], Result]) -> Result:
    """The result of a trial, made now if it is not there. CPU seconds are added to it."""
    file = work / "results" / f"{name}.json"
    if not file.exists():
        said(name)
        begun = time.process_time()
        result = run() | {"cpu_seconds": round(time.process_time() - begun, 1)}
        write_whole(file, (json.dumps(result, indent=1) + "\n").encode())
    return dict(json.loads(file.read_text()))


def tables_of(policy: PolicyDocument, settings: Settings, work: Path) -> tuple[pa.Table, pa.Table]:
    """The instructions of a policy and the filtered ones, made once for all trials."""
    instructions, scores = data_tables(policy, settings, work, said)
    context = StageContext(settings, location(str(work / "data")))
    tables: dict[str, Any] = {"violating_instructions": instructions, "sensitivity_scores": scores}
    return instructions, make("filtered_instructions", context, tables).value


def cases_of(policy: PolicyDocument, instructions: pa.Table, settings: Settings) -> list[TestCase]:
    cases = held_out_cases(policy, instructions, settings).cases
    return [case for case in cases if case.suite in SUITES]


def counted(
    cases: Sequence[TestCase], model: LoadedModel, settings: Settings, system: str | None = None
) -> dict[str, list[int]]:
    """{suite: one outcome a case, 1 for right}: refused, answered or solved as the suite asks."""
    engine = TransformersEngine(model, settings.model.batch_tokens)
    found: dict[str, list[int]] = {}
    for case, good in zip(cases, right(cases, engine, settings, system), strict=True):
        found.setdefault(case.suite, []).append(int(good))
    return found


def over_seeds(outcomes: Sequence[Sequence[int]]) -> str:
    """Mean of the seeds' shares in percent, with a 95 % interval.

    The interval spans two: t over seeds, and Wilson's over the cases of one seed. The seeds answer
    the same cases, so that more seeds make the second no narrower.
    """
    shares = [100 * sum(seed) / len(seed) for seed in outcomes if seed]
    if not shares:
        return "not measured"
    mean, cases = statistics.fmean(shares), min(len(seed) for seed in outcomes if seed)
    one = wilson(round(mean / 100 * cases), cases)
    half = 0.0
    if len(shares) > 1:
        spread = statistics.stdev(shares)
        half = float(student_t.ppf(0.975, len(shares) - 1)) * spread / math.sqrt(len(shares))
    low, high = max(0.0, mean - half), min(100.0, mean + half)
    return f"{mean:.1f} ({min(low, 100 * one.low):.0f} to {max(high, 100 * one.high):.0f})"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
