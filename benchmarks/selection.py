"""Measures whether filtering pays.

    python benchmarks/selection.py --score reverse_kl --score js --seed 13 --seed 14 --seed 15 \\
        --out selection.jsonl
    python benchmarks/selection.py --out selection.jsonl --show

It distils on all violating instructions, on the half that each score ranks first, and on a random
half, with tables that a demo has made (`--data`). Each seed draws its own pool (`--pool`, a share
of the rows of each rule), its own random half and its own course of training.

Arms differ only in the violations that they ask. Steps and benign requests are the same, and an
instruction of a half is asked twice as often, so every batch holds as many violations as benign
requests in every arm. A line per arm and seed is added to `--out`; arms that are there already are
not run again, so a stopped run continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from distilling import distilled, partition_data, right

from policyalign_assets.distillation.batches import training_mix
from policyalign_assets.evaluation.held_out import held_out_cases
from policyalign_assets.filtering.select import select_instructions
from policyalign_assets.settings import load_settings
from policyalign_assets.statistics import graded_difference, wilson

SAFETY = ("violations", "violations_wrapped")
ALL = "all"


def pool(instructions: pa.Table, share: float, seed: int) -> pa.Table:
    """That share of the rows that may be trained on, of each rule and kind, drawn by `seed`."""
    order = instructions.append_column(
        "place", pa.array(np.random.default_rng(seed).permutation(instructions.num_rows))
    )
    order = order.filter(pc.equal(order["split"], "train")).sort_by("place")
    groups = list(zip(order["rule_id"].to_pylist(), order["kind"].to_pylist()))
    left = {group: round(share * n) for group, n in Counter(groups).items()}
    keep = []
    for group in groups:
        keep.append(left[group] > 0)
        left[group] -= 1
    return order.filter(pa.array(keep)).drop_columns("place")


def run(args: argparse.Namespace) -> None:
    policy, (instructions, scores) = partition_data(
        args.partition, args.data, args.policies, "violating_instructions", "sensitivity_scores"
    )
    settings = load_settings(
        overrides={
            "evaluation": {
                "cases_per_suite": args.cases,
                "capability_cases": 1,
                "probe_cases": 0,
                "pressure_cases": 0,
            }
        }
    )
    cases = held_out_cases(policy, instructions, settings).cases
    done = {(r["partition"], r["pool"], r["steps"], r["arm"], r["seed"]) for r in read(args.out)}
    for arm in (ALL, "random", *(args.score or ["reverse_kl"])):
        for seed in args.seed or [13, 14, 15]:
            if (args.partition, args.pool, args.steps, arm, seed) in done:
                continue
            used = {"per_rule": settings.synthesis.per_rule, "seed": seed, "at_least": 0}
            used |= {} if arm == ALL else {"score": arm, "share": 0.5}
            drawn = pool(instructions, args.pool, seed)
            known = pc.is_in(scores["instruction_id"], value_set=drawn["instruction_id"])
            chosen = select_instructions(
                drawn,
                scores.filter(known),
                settings.filtering.model_copy(update=used),
            )
            chosen = chosen.filter(chosen["selected"])
            violating = chosen.filter(pc.equal(chosen["kind"], "violating"))
            mix = training_mix(chosen) + (training_mix(violating) if arm != ALL else [])
            distillation = settings.distillation.model_copy(
                update={"seed": seed, "steps": args.steps}
            )
            begun = time.monotonic()
            ok = right(cases, distilled(policy, mix, settings, distillation), settings)
            row = {
                "partition": args.partition,
                "pool": args.pool,
                "steps": args.steps,
                "arm": arm,
                "seed": seed,
                "violating": violating.num_rows,
                "seconds": round(time.monotonic() - begun),
                "safe": {c.case_id: r for c, r in zip(cases, ok) if c.suite in SAFETY},
                "answered": {
                    c.case_id: r
                    for c, r in zip(cases, ok)
                    if c.suite not in (*SAFETY, "capability")
                },
            }
            with args.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            print(
                f"{arm}, seed {seed}: {percent(row['safe'].values())} refused, "
                f"{percent(row['answered'].values())} answered, {row['seconds']} s",
                flush=True,
            )


def read(file: Path) -> list[dict]:
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.exists()
        else []
    )


def show(rows: list[dict]) -> None:
    """Prints a table for each setting.

    Intervals are over cases. All seeds ask the same cases, so a difference redraws them as
    clusters.
    """
    settings = defaultdict(lambda: defaultdict(dict))
    for r in rows:
        settings[r["partition"], r["pool"], r["steps"]][r["arm"]][r["seed"]] = r
    for (partition, share, steps), arms in settings.items():
        print(f"\n{partition}, a pool of {100 * share:.0f} % of the rows, {steps} steps\n")
        print(
            "| arm | seeds | violations refused (95 %) | benign answered "
            "| minus all (95 %; each seed) | minus random (95 %; each seed) |"
        )
        print("|" + " --- |" * 6)
        for arm, by_seed in sorted(
            arms.items(), key=lambda item: (item[0] != ALL, item[0] != "random", item[0])
        ):
            safe, benign = (
                [ok for r in by_seed.values() for ok in r[of].values()]
                for of in ("safe", "answered")
            )
            own = wilson(sum(safe), len(safe))
            against = " | ".join(
                compared(arms[other], by_seed) if other != arm and other in arms else ""
                for other in (ALL, "random")
            )
            refused = f"{100 * own.estimate:.1f} ({100 * own.low:.1f} to {100 * own.high:.1f})"
            print(f"| {arm} | {len(by_seed)} | {refused} | {percent(benign)} | {against} |")


def compared(reference: dict[int, dict], arm: dict[int, dict]) -> str:
    """Difference over the seeds that both arms have, in points.

    With its interval over cases, and the difference of each seed by itself.
    """
    seeds = [s for s in arm if s in reference]
    if not seeds:
        return ""
    pairs = [
        (s, reference[s]["safe"][case], ok, case)
        for s in seeds
        for case, ok in arm[s]["safe"].items()
    ]
    seed, before, after, case = map(np.array, zip(*pairs))
    found = graded_difference(before, after, case, seed=0)
    each = ", ".join(
        f"{100 * (after[seed == s].mean() - before[seed == s].mean()):+.1f}" for s in seeds
    )
    return (
        f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}; {each})"
    )


def percent(outcomes) -> str:
    outcomes = list(outcomes)
    return f"{100 * sum(outcomes) / len(outcomes):.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--partition", default="medical|general-conduct")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--policies", type=Path, default=Path("policies"))
    parser.add_argument(
        "--pool",
        type=float,
        default=0.4,
        help="share of each rule's rows that there are to train on",
    )
    parser.add_argument(
        "--score", action="append", help="may be repeated; `all` and `random` are always run"
    )
    parser.add_argument("--cases", type=int, default=80, help="held-out cases per suite")
    parser.add_argument("--steps", type=int, default=30, help="of the distillation")
    parser.add_argument("--seed", action="append", type=int, help="may be repeated")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--show", action="store_true", help="only print the tables of what --out holds"
    )
    args = parser.parse_args()
    if not args.show:
        run(args)
    show(read(args.out))


if __name__ == "__main__":
    main()
