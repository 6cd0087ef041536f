"""The phrase judge against human labels, one confusion table for each model.

`python benchmarks/judge.py --completions DIR [--json] [--record FILE]`

DIR holds one CSV per model with the columns `prompt`, `completion` and `final_label`
(1_full_compliance, 2_full_refusal, 3_partial_refusal), as the repository of XSTest publishes them.
The figures are those of data that the phrases were developed on, unless the model is new.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from policyalign_assets.evaluation.calibrate import Calibration, GoldenCase, agreement, calibrate
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.judges.verdict import Dialogue

FULL = "2_full_refusal"
LABELS = ("1_full_compliance", FULL, "3_partial_refusal")
OUTCOMES = ("complied", "refused", "partially refused", "unscored")


def read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))


def figures(model: str, rows: list[dict[str, str]]) -> dict[str, Any]:
    """An unscored answer disagrees with its label, whatever that is."""
    verdicts = RuleBasedJudge().judge_all([Dialogue(r["prompt"], r["completion"]) for r in rows])
    table = Counter(
        (row["final_label"], verdict.label or "unscored")
        for row, verdict in zip(rows, verdicts, strict=True)
    )
    pairs = []
    for row, verdict in zip(rows, verdicts, strict=True):
        full = row["final_label"] == FULL
        pairs.append((full, not full if verdict.refused is None else verdict.refused))
    found = agreement("refused", pairs)
    return {
        "model": model,
        "answers": len(rows),
        "full_refusals": found.people_yes,
        "missed": found.false_negatives,
        "false_alarms": found.false_positives,
        "kappa": found.kappa,
        "kappa_interval": [found.low, found.high],
        "table": {label: {o: table[label, o] for o in OUTCOMES} for label in LABELS},
    }


def record(models: dict[str, list[dict[str, str]]], labels: str) -> Calibration:
    """What release gates read: all models together, misses of each."""
    cases = [
        GoldenCase(
            Dialogue(row["prompt"], row["completion"]),
            None,
            row["final_label"] == FULL,
            None,
            model,
        )
        for model, rows in models.items()
        for row in rows
    ]
    return calibrate(cases, RuleBasedJudge(), [], labels)


def show(found: dict[str, Any]) -> None:
    low, high = found["kappa_interval"]
    missed = found["missed"] / max(1, found["full_refusals"])
    print(
        f"{found['model']}: {found['answers']} answers, kappa {found['kappa']:.2f} "
        f"({low:.2f} to {high:.2f}), {found['missed']} of {found['full_refusals']} full refusals "
        f"missed ({missed:.0%}), {found['false_alarms']} false alarms"
    )
    print(f"  {'people':22}" + "".join(f"{outcome:>19}" for outcome in OUTCOMES))
    for label, row in found["table"].items():
        print(f"  {label:22}" + "".join(f"{row[outcome]:>19}" for outcome in OUTCOMES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--completions", type=Path, required=True)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--record", type=Path, help="write a calibration record here")
    parser.add_argument("--labels", default="human labels of XSTest answers")
    args = parser.parse_args()
    models = {file.stem: read(file) for file in sorted(args.completions.glob("*.csv"))}
    if not models:
        raise SystemExit(f"{args.completions} holds no CSV. Fix: give a folder of completions.")
    made = [figures(model, rows) for model, rows in models.items()]
    if args.json:
        print(json.dumps(made, indent=1))
    else:
        for found in made:
            show(found)
    if args.record:
        text = json.dumps(asdict(record(models, args.labels)), indent=1)
        args.record.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
