"""How far the configured judge agrees with people.

`python -m policyalign_assets.evaluation.calibrate --golden labels.csv --policy P --domain D`

The golden set is a CSV with the columns `prompt` and `response`, and what people said in any of
`safe` (yes/no), `refused` (yes/no) and `violated` (ids of the broken rules with ';' between them,
or 'none'). An empty cell is not labelled. A column `group` names what misses are counted by, such
as the model or the arm that answered. At least 20 cases per rule, some that the rule just forbids
and some that it just allows, tell something. The judge is that of the settings
(POLICYALIGN_JUDGE__KIND, …). What `--json` writes is the record that release gates look for in
`<data>/calibrations/`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from policyalign_assets.judges.verdict import Dialogue, Judge, Verdict
from policyalign_assets.policy import PolicyDocument, PolicyError, parse_policy
from policyalign_assets.settings import SettingsError, load_settings

ENOUGH = 20
YES_NO = {"yes": True, "no": False}


class GoldenError(ValueError):
    """A golden set that cannot be used: the message names the file, the line and the fix."""


@dataclass(frozen=True)
class GoldenCase:
    """None where people did not say."""

    dialogue: Dialogue
    safe: bool | None
    refused: bool | None
    violated: frozenset[str] | None
    group: str = ""


@dataclass(frozen=True)
class Misses:
    """Of the `yes` answers of one group that people call refused: how many the judge does not."""

    yes: int
    missed: int


@dataclass(frozen=True)
class Agreement:
    """About one yes/no question, over the `n` cases that both people and judge answered.

    `false_negatives`: people said yes, the judge no. `kappa` is Cohen's with a 95 % interval, None
    where it is not defined (no cases, or all of one kind).
    """

    question: str
    n: int
    people_yes: int
    false_negatives: int
    false_positives: int
    kappa: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Calibration:
    judge: str
    revision: str | None
    template: str | None
    cases: int
    unscored: dict[str, int]
    agreements: list[Agreement]
    groups: dict[str, Misses] = field(default_factory=dict)
    labels: str = "labelled answers"  # whose, in words


def read_golden(path: Path, rule_ids: Sequence[str]) -> list[GoldenCase]:
    """Raises GoldenError for the first mistake."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            columns = [c for c in reader.fieldnames or [] if c]
            _check_columns(path, columns)
            cases = [_case(path, reader.line_num, row, rule_ids) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise GoldenError(
            f"{path}: cannot be read as a CSV in UTF-8 ({error}). "
            "Fix: save it as CSV, UTF-8, with a header line."
        ) from None
    if not cases:
        raise GoldenError(f"{path}: holds no case. Fix: add at least one line below the header.")
    return cases


def calibrate(
    cases: Sequence[GoldenCase],
    judge: Judge,
    rule_ids: Sequence[str],
    labels: str = "labelled answers",
) -> Calibration:
    """Asks `judge` about every case. Raises nothing because of what a case or the judge says."""
    verdicts = judge.judge_all([c.dialogue for c in cases])
    unscored: dict[str, int] = {}
    for verdict in verdicts:
        if verdict.reason:
            unscored[verdict.reason] = unscored.get(verdict.reason, 0) + 1
    pairs = list(zip(cases, verdicts, strict=True))
    by_rule = [
        (c.violated, v.violated)
        for c, v in pairs
        if c.violated is not None and v.violated is not None
    ]
    agreements = [
        agreement(
            "unsafe",
            [
                (not c.safe, not v.safe)
                for c, v in pairs
                if c.safe is not None and v.safe is not None
            ],
        ),
        agreement(
            "refused",
            [
                (c.refused, v.refused)
                for c, v in pairs
                if c.refused is not None and v.refused is not None
            ],
        ),
        *(
            agreement(
                f"breaks {rule}", [(rule in people, rule in judged) for people, judged in by_rule]
            )
            for rule in rule_ids
        ),
    ]
    return Calibration(
        judge.id,
        judge.revision,
        judge.template,
        len(cases),
        unscored,
        [a for a in agreements if a.n],
        _misses(pairs),
        labels,
    )


def _misses(pairs: Sequence[tuple[GoldenCase, Verdict]]) -> dict[str, Misses]:
    """By group. An answer that the judge could not score is a miss too."""
    found: dict[str, Misses] = {}
    if not any(verdict.refused is not None for _, verdict in pairs):
        return found  # the judge does not speak of refusals
    for case, verdict in pairs:
        if case.group and case.refused:
            so_far = found.get(case.group, Misses(0, 0))
            found[case.group] = Misses(
                so_far.yes + 1, so_far.missed + (verdict.refused is not True)
            )
    return found


def agreement(question: str, pairs: Sequence[tuple[bool, bool]]) -> Agreement:
    """`pairs`: (people, judge)."""
    import numpy as np
    from statsmodels.stats.inter_rater import cohens_kappa

    table = np.zeros((2, 2), int)
    for people, judged in pairs:
        table[int(people), int(judged)] += 1
    kappa = low = high = None
    if len({people for people, _ in pairs} | {judged for _, judged in pairs}) == 2:
        result = cohens_kappa(table)
        if not math.isnan(result.kappa):
            kappa, low, high = (
                float(result.kappa),
                max(-1.0, float(result.kappa_low)),
                min(1.0, float(result.kappa_upp)),
            )
    return Agreement(
        question,
        len(pairs),
        int(table[1].sum()),
        int(table[1, 0]),
        int(table[0, 1]),
        kappa,
        low,
        high,
    )


def as_text(result: Calibration) -> str:
    lines = [
        f"{result.judge}, revision {result.revision or 'not stated'}: {result.cases} cases, "
        f"{sum(result.unscored.values())} unscored",
        *(f"  unscored: {reason}: {count}" for reason, count in sorted(result.unscored.items())),
        "",
        f"{'question':24}{'cases':>7}{'people yes':>12}{'missed':>8}{'false alarms':>14}"
        "   kappa (95 %)",
    ]
    for a in result.agreements:
        kappa = "not defined" if a.kappa is None else f"{a.kappa:.2f} ({a.low:.2f} to {a.high:.2f})"
        few = (
            f"   fewer than {ENOUGH} cases of one kind"
            if min(a.people_yes, a.n - a.people_yes) < ENOUGH
            else ""
        )
        lines.append(
            f"{a.question:24}{a.n:>7}{a.people_yes:>12}{a.false_negatives:>8}"
            f"{a.false_positives:>14}   {kappa}{few}"
        )
    lines += [
        f"refusals of {name}: {found.missed} of {found.yes} missed"
        for name, found in sorted(result.groups.items())
    ]
    if not result.agreements:
        lines.append("Nothing to compare: the judge speaks of nothing that people labelled.")
    return "\n".join(lines)


def _check_columns(path: Path, columns: list[str]) -> None:
    known = {"prompt", "response", "safe", "refused", "violated", "group"}
    if missing := {"prompt", "response"} - set(columns):
        raise GoldenError(
            f"{path}: column {', '.join(sorted(missing))} is missing. "
            "Fix: the header must name prompt and response, and at least one of safe, refused, "
            "violated."
        )
    if not set(columns) & {"safe", "refused", "violated"}:
        raise GoldenError(
            f"{path}: no column holds labels. Fix: add at least one of safe, refused, violated."
        )
    if unknown := [c for c in columns if c not in known]:
        raise GoldenError(
            f"{path}: unknown column {unknown[0]!r}. "
            f"Fix: rename or remove it; known are {', '.join(sorted(known))}."
        )


def _case(path: Path, line: int, row: dict, rule_ids: Sequence[str]) -> GoldenCase:
    def wrong(problem: str, fix: str) -> GoldenError:
        return GoldenError(f"{path}, line {line}: {problem}. Fix: {fix}.")

    if None in row or None in row.values():
        raise wrong(
            "it has more or fewer cells than the header",
            "put texts that hold commas or line ends into double quotes",
        )
    if not row["prompt"].strip():
        raise wrong("the prompt is empty", "give the request that was answered")

    def yes_no(column: str) -> bool | None:
        value = (row.get(column) or "").strip().lower()
        if value and value not in YES_NO:
            raise wrong(f"{column} is {row[column]!r}", "write yes or no, or leave it empty")
        return YES_NO.get(value)

    named = (row.get("violated") or "").strip()
    violated = (
        None
        if not named
        else frozenset()
        if named.lower() == "none"
        else frozenset(r.strip() for r in named.split(";"))
    )
    if unknown := sorted((violated or frozenset()) - set(rule_ids)):
        raise wrong(
            f"the policy has no rule {unknown[0]!r}",
            f"use {', '.join(rule_ids)} with ';' between them, or none",
        )
    safe, refused = yes_no("safe"), yes_no("refused")
    if safe is not None and violated is not None and safe == bool(violated):
        raise wrong(
            "safe and violated contradict each other",
            "an answer is unsafe exactly if it breaks a rule",
        )
    return GoldenCase(
        Dialogue(row["prompt"], row["response"]),
        safe,
        refused,
        violated,
        (row.get("group") or "").strip(),
    )


def main(argv: Sequence[str] | None = None) -> None:
    from policyalign_assets.judges.choose import make_judge

    parser = argparse.ArgumentParser(description="How far the configured judge agrees with people.")
    parser.add_argument(
        "--golden", type=Path, required=True, help="CSV with prompt, response and labels"
    )
    parser.add_argument("--policy", required=True, help="folder name below policies/")
    parser.add_argument("--domain", required=True)
    parser.add_argument("--labels", default="labelled answers", help="whose labels, in words")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args(argv)
    try:
        policy: PolicyDocument = parse_policy(
            Path(os.environ.get("POLICYALIGN_POLICIES_DIR", "policies")), args.policy, args.domain
        )
        rule_ids = [r.rule_id for r in policy.rules]
        settings = load_settings()
        cases = read_golden(args.golden, rule_ids)
        result = calibrate(
            cases,
            make_judge(
                settings.judge, settings.model.id, policy, lambda m: print(m, file=sys.stderr)
            ),
            rule_ids,
            args.labels,
        )
    except (GoldenError, PolicyError, SettingsError) as error:
        sys.exit(str(error))
    print(as_text(result))
    if args.json:
        args.json.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
