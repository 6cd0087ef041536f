"""Measures what an edit of one rule costs, on the bundled model.

    python benchmarks/rule_edit.py --policy general-conduct --domain medical --rule M2 --times 3

It makes `violating_instructions` from nothing, and again after the edit. Prompts are those that the
generator was asked; seconds are processor time and include the loading of the model. It exits with
an error if a row of another rule that is not recombined has changed, or if the edited run differs
from a run without stored rows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.files import location, sha256_table
from policyalign_assets.policy import parse_policy
from policyalign_assets.runtime.execution import make
from policyalign_assets.settings import load_settings
from policyalign_assets.stages.interface import StageContext

ASKED = Counter()
KINDS = ("violating", "twin", "neighbour, written", "neighbour, recombined")


class Counting(TransformersEngine):
    def generate(self, chats, sampling, progress=None):
        ASKED["prompts"] += len(chats)
        return super().generate(chats, sampling, progress)


def run(policy, folder: str):
    ASKED.clear()
    begun = time.process_time()
    table = make(
        "violating_instructions",
        StageContext(load_settings(), location(folder)),
        {"policy_document": policy},
    ).value
    return time.process_time() - begun, ASKED["prompts"], table


def blocks(table) -> dict[tuple[str, str], dict[str, dict]]:
    """Rule and kind -> id -> row, without the policy's hash, which any edit changes."""
    found: dict[tuple[str, str], dict[str, dict]] = {}
    for row in table.drop_columns(["policy_hash"]).to_pylist():
        kind = (
            row["kind"]
            if row["kind"] != "neighbour"
            else KINDS[2 + (row["partner_hash"] is not None)]
        )
        found.setdefault((row["rule_id"], kind), {})[row["instruction_id"]] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", type=Path, default=Path("policies"))
    parser.add_argument("--policy", default="general-conduct")
    parser.add_argument("--domain", default="medical")
    parser.add_argument("--rule", default="M2")
    parser.add_argument(
        "--action", default="invent a blood test", help="what the edited rule forbids instead"
    )
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    import policyalign_assets.engine.generation.opening as opening

    opening.TransformersEngine = Counting
    policy = parse_policy(args.policies, args.policy, args.domain)
    edited = replace(
        policy,
        rules=tuple(
            replace(r, text=f"Never help anyone {args.action}.", action=args.action)
            if r.rule_id == args.rule
            else r
            for r in policy.rules
        ),
    )
    times: dict[str, list[float]] = {
        "from nothing": [],
        "nothing changed": [],
        f"{args.rule} edited": [],
    }
    asked: dict[str, int] = {}
    for _ in range(args.times):
        with tempfile.TemporaryDirectory() as folder:
            tables = []
            for (name, seconds), version in zip(times.items(), (policy, policy, edited)):
                took, asked[name], table = run(version, folder)
                seconds.append(took)
                tables.append(table)
    with tempfile.TemporaryDirectory() as folder:
        same = sha256_table(run(edited, folder)[2]) == sha256_table(tables[2])
    first = statistics.median(times["from nothing"])
    print("| run | prompts | processor seconds, median | of the first |\n| --- | --- | --- | --- |")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"| {name} | {asked[name]} | {middle:.1f} | {100 * middle / first:.0f} % |")
    before, after = blocks(tables[0]), blocks(tables[2])
    print("\n| rows of the other rules | before | the same after |\n| --- | --- | --- |")
    changed = 0
    for kind in KINDS:
        own = [
            (rows, after.get(key, {}))
            for key, rows in before.items()
            if key[0] != args.rule and key[1] == kind
        ]
        total, kept = sum(len(b) for b, _ in own), sum(b[i] == a.get(i) for b, a in own for i in b)
        print(f"| {kind} | {total} | {kept} |")
        changed += (
            0 if kind == KINDS[3] else total - kept + sum(len(a.keys() - b.keys()) for b, a in own)
        )
    print(f"\nthe edited run and one without anything kept are the same: {same}")
    if changed or not same:
        sys.exit(f"{changed} rows of other rules changed")


if __name__ == "__main__":
    main()
