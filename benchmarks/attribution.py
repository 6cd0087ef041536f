"""Measures how well a model's own likelihoods tie requests to their rules.

    python benchmarks/attribution.py --model FOLDER --corpus FOLDER --rules 40

The corpus holds JSON Lines with `rule`, `violations`, `twins` and `neighbours`. Rules that
calibrate the bars are left out. In groups of four, each request is compared with its own rule and
with the three others. It prints Markdown tables: how often the right rule was found, and how many
requests pass as requests of their own rule, of another rule, and with their words shuffled.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path

from policyalign_assets.engine.loading import load_model
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.settings import ModelSettings
from policyalign_assets.statistics import wilson
from policyalign_assets.synthesis.attribution import Attribution, context
from policyalign_assets.synthesis.likelihood import LikelihoodScorer
from policyalign_assets.synthesis.texts import load_yaml

SIZE = 4  # rules in a group


def groups(corpus: Path, rules: int, seed: int) -> list[list[dict]]:
    calibrating = {r for group in load_yaml("attribution.yaml")["calibration"] for r, _ in group}
    files = sorted(corpus.glob("*.jsonl"))
    rows = [json.loads(line) for f in files for line in f.read_text("utf-8").splitlines()]
    rows = [row for row in rows if row["rule"] not in calibrating]
    random.Random(seed).shuffle(rows)
    return [rows[at : at + SIZE] for at in range(0, rules - SIZE + 1, SIZE)]


def policy_of(group: list[dict]) -> PolicyDocument:
    rules = tuple(
        Rule(f"R{n}", row["rule"], "prohibit", None, "shared", n, forbids=True)
        for n, row in enumerate(group)
    )
    return PolicyDocument("corpus", "general", "Corpus", "", None, (), "", rules, "")


def salad_of(text: str) -> str:
    """The words of `text` in another order."""
    words = text.split()
    random.Random(text).shuffle(words)
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model folder")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--rules", type=int, default=40)
    parser.add_argument("--violations", type=int, default=2, help="requests of each rule")
    parser.add_argument("--drafts", type=Path, help="JSON list of raw drafts: {rule, text}")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    settings = ModelSettings(id=args.model)
    scorer = LikelihoodScorer(load_model(settings), settings.batch_tokens)
    begun = time.monotonic()
    print(Attribution(policy_of(groups(args.corpus, SIZE, args.seed)[0]), scorer).note, flush=True)
    right: dict[str, list[bool]] = defaultdict(list)
    passed: dict[tuple[str, str], list[str | None]] = defaultdict(list)
    calibration = None
    for group in groups(args.corpus, args.rules, args.seed):
        policy = policy_of(group)
        attribution = Attribution(policy, scorer)
        attribution.__dict__["calibration"] = calibration or attribution.calibration
        calibration = attribution.calibration
        everything = [
            text
            for row in group
            for mine in [row["violations"][: args.violations]]
            for text in (*mine, *row["twins"][:1], *row["neighbours"][:1], *map(salad_of, mine))
        ]
        for rule in (None, *policy.rules):  # in one pass per context; the scorer remembers
            scorer.log_probs(context(rule, "violating"), everything)
        for n, row in enumerate(group):
            rule, other = policy.rules[n], policy.rules[(n + 1) % SIZE]
            asked = {
                "violation": row["violations"][: args.violations],
                "twin": row["twins"][:1],
                "neighbour": row["neighbours"][:1],
            }
            for kind, texts in asked.items():
                scores = [scorer.log_probs(context(r, "violating"), texts) for r in policy.rules]
                for i in range(len(texts)):
                    by_rule = [score[i].nats for score in scores]
                    right[kind].append(by_rule.index(max(by_rule)) == n)
            own, mine = attribution.of_rule(rule), asked["violation"]
            salad = [salad_of(text) for text in mine]
            passed["violations", "their own rule"] += own.faults("violating", mine)
            passed["violations", "another rule"] += attribution.of_rule(other).faults(
                "violating", mine
            )
            passed["violations, words shuffled", "their own rule"] += own.faults("violating", salad)
            passed["twins", "their own rule"] += own.faults("twin", asked["twin"], mine[:1])
    print("\n| requests | right rule of four | chance |\n| --- | --- | --- |")
    for kind, found in right.items():
        print(f"| {kind}s | {_share(sum(found), len(found))} | {len(found) / SIZE:.0f} |")
    if args.drafts:
        drafts = json.loads(args.drafts.read_text("utf-8"))
        texts = sorted({draft["rule"] for draft in drafts})
        policy = policy_of([{"rule": text} for text in texts])
        attribution = Attribution(policy, scorer)
        attribution.__dict__["calibration"] = calibration
        for rule in policy.rules:
            mine = [d["text"] for d in drafts if d["rule"] == rule.text]
            passed["raw drafts of the model", "the rule asked for"] += attribution.of_rule(
                rule
            ).faults("violating", mine)
    print("\n| requests | under | pass | dropped as |\n| --- | --- | --- | --- |")
    for (what, under), faults in passed.items():
        reasons = defaultdict(int)
        for fault in faults:
            reasons[fault] += 1
        kept = reasons.pop(None, 0)
        dropped = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))
        print(f"| {what} | {under} | {_share(kept, len(faults))} | {dropped} |")
    print(f"\n{time.monotonic() - begun:.0f} s")


def _share(k: int, n: int) -> str:
    found = wilson(k, n)
    return f"{k} of {n} ({100 * found.low:.0f}-{100 * found.high:.0f} %)"


if __name__ == "__main__":
    main()
