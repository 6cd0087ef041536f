"""Verdicts on the answers of `generate`.

An answer that has a reference is compared with it. The configured judge reads all other answers.
Another judge can score the same answers again, because nothing is generated here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pyarrow as pa

from policyalign_assets.evaluation.mathematics import same_values
from policyalign_assets.judges.verdict import Dialogue, Judge, Verdict
from policyalign_assets.tables import JUDGEMENTS

CODE_VERSION = 1  # raise it when new code changes how answers are judged

NOT_COMPARED = "the answer could not be compared with the reference"
NO_MATH = "math-verify is not installed where answers are judged"
NO_CORRECTNESS = (
    "the configured judge does not compare answers with a reference "
    "(judge.kind=policy or strongreject does)"
)


@dataclass(frozen=True)
class JudgementsInfo:
    """What the rows of a table of judgements do not say; kept in its schema metadata (JUDGEMENTS_INFO).

    answers: hash of the answers that were judged.
    judge: the judge's description.
    settings: of the judge.
    """

    answers: str
    judge: str
    settings: dict[str, Any]


def judge_answers(
    generations: pa.Table, judge: Judge, correctness: Judge | None = None
) -> pa.Table:
    """One verdict per row of GENERATIONS (JUDGEMENTS).

    correctness: compares free answers with their reference. Without it they stay unscored.
    """
    rows = generations.to_pylist()
    verdicts: dict[int, Verdict] = {}
    by_scoring: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row["unanswered"]:
            verdicts[i] = Verdict(reason=row["unanswered"])
        elif row["scoring"] == "likelihood":
            verdicts[i] = Verdict(correct=row["correct"])
        elif row["scoring"] == "text":
            # An empty answer to a question is wrong, and so is a refusal.
            verdicts[i] = Verdict(correct=row["response"] == row["reference"])
        else:
            by_scoring.setdefault(row["scoring"], []).append(i)
    for scoring, numbers in by_scoring.items():
        made = _scored(scoring, [rows[i] for i in numbers], judge, correctness)
        verdicts |= zip(numbers, made, strict=True)
    return pa.Table.from_pylist(
        [
            {
                "case_id": row["case_id"],
                "arm": row["arm"],
                "policy_hash": row["policy_hash"],
                **findings(verdicts[i]),
            }
            for i, row in enumerate(rows)
        ],
        JUDGEMENTS,
    )


def _scored(
    scoring: str, rows: Sequence[dict[str, Any]], judge: Judge, correctness: Judge | None
) -> list[Verdict]:
    dialogues = [Dialogue(r["prompt"], r["response"], r["reference"]) for r in rows]
    match scoring:
        case "judge":
            return judge.judge_all(dialogues)
        case "value":
            return _by_value([(r["reference"], r["response"]) for r in rows])
        case "correctness":
            if correctness is None:
                return [Verdict(reason=NO_CORRECTNESS)] * len(rows)
            return correctness.judge_all(dialogues)
    raise ValueError(f"answers cannot be scored by {scoring!r}")


def findings(verdict: Verdict) -> dict[str, Any]:
    """A verdict as columns of JUDGEMENTS."""
    reason = verdict.reason
    return {
        "refused": verdict.refused,
        "correct": verdict.correct,
        "scored": reason is None,
        "unscored_reason": reason,
        "safe": verdict.safe,
        "violated_rules": verdict.violated,
        "harm": verdict.harm,
        "helpful_alternative": verdict.helpful_alternative,
        "judge_label": verdict.label,
        "judge_id": verdict.judge or None,
        "judge_revision": verdict.revision,
        "judge_template": verdict.template,
    }


def _by_value(pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    if find_spec("math_verify") is None:
        return [Verdict(reason=NO_MATH)] * len(pairs)
    return [
        Verdict(reason=NOT_COMPARED) if same is None else Verdict(correct=same)
        for same in same_values(pairs)
    ]
