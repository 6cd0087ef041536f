"""Does filtering pay? Distils on all violating instructions, on the top share by each score, and on a random share.

    python benchmarks/selection.py --partition 'medical|general-conduct' --share 0.5 --score reverse_kl --score js --seed 13 --seed 14 --seed 15

Works on tables that a demo has made (`--data`): twins and neighbours are the same in every arm, and every arm trains for the same
steps. The random share is drawn anew with each seed. Prints one row per arm and seed, then per arm the share of held-out
violations refused over all seeds with Wilson's interval, and the difference to training on all, case by case (paired). The same
cases come back with each seed, so these intervals are somewhat too narrow.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq

from policyalign_assets.distillation.anchors import anchors
from policyalign_assets.distillation.batches import training_mix
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.engine.transformers_engine import TransformersEngine
from policyalign_assets.evaluation.cases import build_cases
from policyalign_assets.evaluation.judge import judge_for
from policyalign_assets.evaluation.statistics import paired_difference, wilson
from policyalign_assets.filtering.select import select_instructions
from policyalign_assets.policy import parse_policy
from policyalign_assets.settings import load_settings

SAFETY = ("violations", "violations_wrapped")
ALL = "all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partition", default="medical|general-conduct")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--policies", type=Path, default=Path("policies"))
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--score", action="append", help="may be repeated; `random` is always run")
    parser.add_argument("--cases", type=int, default=120, help="held-out cases per suite")
    parser.add_argument("--steps", type=int, help="of the distillation; the setting's own by default")
    parser.add_argument("--seed", action="append", type=int, help="of the distillation and of the random share; may be repeated")
    args = parser.parse_args()
    domain, _, policy_id = args.partition.partition("|")
    policy = parse_policy(args.policies, policy_id, domain)
    instructions, scores = (pq.read_table(args.data / "assets" / name / domain / f"{policy_id}.parquet")
                            for name in ("violating_instructions", "sensitivity_scores"))
    settings = load_settings(overrides={"evaluation": {"cases_per_suite": args.cases, "capability_cases": args.cases}})
    cases, judge = build_cases(policy, settings.evaluation, instructions["text"].to_pylist()), judge_for(settings.model.id)
    right: dict[str, list[bool]] = defaultdict(list)  # arm -> each violating case, seed after seed: refused?
    print("| arm | seed | instructions | seconds | violations refused | benign answered |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    for seed in args.seed or [13, 14, 15]:
        for arm in (ALL, *(args.score or ["reverse_kl"]), "random"):
            used = {"per_rule": settings.synthesis.per_rule, "seed": seed}
            used |= {} if arm == ALL else {"score": arm, "share": args.share, "at_least": 0}
            chosen = select_instructions(instructions, scores, settings.filtering.model_copy(update=used))
            chosen = chosen.filter(chosen["selected"])
            distillation = settings.distillation.model_copy(update={"seed": seed} | ({"steps": args.steps} if args.steps else {}))
            loaded, begun = load_model(settings.model), time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                mix = training_mix(chosen) + anchors(distillation, settings.model.id)
                model, _ = distill(policy, mix, loaded, distillation, Path(folder), settings.model.batch_tokens)
            aligned = TransformersEngine(LoadedModel(model, loaded.tokenizer, loaded.model_id, loaded.revision), settings.model.batch_tokens)
            answers = aligned.generate([chat(c.prompt) for c in cases], Sampling(settings.evaluation.max_new_tokens, 0.0))
            refused = [judge.judge(g.text).refused is True for g in answers]
            safe = [r for c, r in zip(cases, refused) if c.suite in SAFETY]
            benign = [not r for c, r in zip(cases, refused) if c.suite not in (*SAFETY, "capability")]
            right[arm] += safe
            violating = sum(kind == "violating" for kind in chosen["kind"].to_pylist())
            print(f"| {arm} | {seed} | {violating} | {time.monotonic() - begun:.0f} | {_percent(safe)} | {_percent(benign)} |", flush=True)
    print("\n| arm | violations refused, all seeds | 95 % interval | minus training on all | 95 % interval |\n| --- | --- | --- | --- | --- |")
    for arm, safe in right.items():
        own, against = wilson(sum(safe), len(safe)), paired_difference(right[ALL], safe)
        print(f"| {arm} | {100 * own.estimate:.1f} % | {100 * own.low:.1f} to {100 * own.high:.1f} | {100 * against.difference:+.1f} | "
              f"{100 * against.low:+.1f} to {100 * against.high:+.1f} |")


def _percent(cases: list[bool]) -> str:
    return f"{100 * sum(cases) / len(cases):.1f} %"


if __name__ == "__main__":
    main()
