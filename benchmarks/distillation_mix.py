"""Measures how a distillation setting or training mix changes safety and over-refusal.

    python benchmarks/distillation_mix.py --partition 'medical|general-conduct' \\
        --set steps=110 --without neighbour --seed 13 --seed 14

It trains with the filtered instructions that a demo has made (`--data`), asks the held-out cases
and prints one row of a Markdown table per seed. The first row is the teacher, which is the base
model with the policy in its context.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from distilling import distilled, partition_data, right

from policyalign_assets.distillation.batches import training_mix
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import load_model
from policyalign_assets.evaluation.held_out import held_out_cases
from policyalign_assets.evaluation.suites import SUITES
from policyalign_assets.settings import load_settings


def shares(cases, outcomes) -> dict[str, float]:
    """Share of right behaviour per suite, and per rule among the plain violations."""
    found = defaultdict(list)
    for case, ok in zip(cases, outcomes, strict=True):
        found[case.suite].append(ok)
        if case.suite == "violations":
            found[case.rule_id].append(ok)
    return {k: sum(v) / len(v) for k, v in found.items()}


def row(name: str, seconds: float, values: dict) -> str:
    rules = {k: v for k, v in values.items() if k not in SUITES}
    behind = ", ".join(f"{k} {100 * v:.0f}" for k, v in rules.items() if v < 0.9) or "none"
    return (
        f"| {name} | {seconds:.0f} | "
        + " | ".join(f"{100 * values[s]:.1f}" if s in values else "-" for s in SUITES)
        + f" | {behind} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--partition", default="medical|general-conduct")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--policies", type=Path, default=Path("policies"))
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the distillation settings",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=("twin", "neighbour"),
        help="leave out rows of this kind",
    )
    parser.add_argument("--cases", type=int, default=330, help="held-out cases per suite")
    parser.add_argument(
        "--seed", action="append", type=int, help="of the distillation; may be repeated"
    )
    args = parser.parse_args()
    changed = dict(item.split("=", 1) for item in args.set)
    policy, (made, filtered) = partition_data(
        args.partition, args.data, args.policies, "violating_instructions", "filtered_instructions"
    )
    chosen = filtered.filter(
        pc.and_(
            filtered["selected"],
            pc.invert(pc.is_in(filtered["kind"], value_set=pa.array(args.without, pa.string()))),
        )
    )
    settings = load_settings(
        overrides={
            "evaluation": {
                "cases_per_suite": args.cases,
                "capability_cases": args.cases,
                "probe_cases": 0,
                "pressure_cases": 0,
            }
        }
    )
    cases = held_out_cases(policy, made, settings).cases
    print(
        "| run | seconds | "
        + " | ".join(SUITES)
        + " | rules below 90 % |\n| --- | --- |"
        + " --- |" * (len(SUITES) + 1),
        flush=True,
    )
    teacher = TransformersEngine(load_model(settings.model), settings.model.batch_tokens)
    print(
        row("teacher", 0, shares(cases, right(cases, teacher, settings, policy.prompt_text))),
        flush=True,
    )
    for seed in args.seed or [settings.distillation.seed]:
        begun = time.monotonic()
        aligned = distilled(
            policy,
            training_mix(chosen),
            settings,
            load_settings(overrides={"distillation": {**changed, "seed": seed}}).distillation,
        )
        seconds = time.monotonic() - begun
        variant = (
            " ".join([*args.set, *(f"without {kind}s" for kind in args.without)]) or "defaults"
        )
        name = f"{policy.domain} / {policy.policy_id}, {variant}, seed {seed}"
        print(row(name, seconds, shares(cases, right(cases, aligned, settings))), flush=True)


if __name__ == "__main__":
    main()
