"""Verdicts on the answers of `generate`. A right answer is compared where there is one; all else the configured judge reads.

Another judge scores the same answers again: nothing is generated here.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

import pyarrow as pa

from policyalign_assets.judges.verdict import Dialogue, Judge, Verdict
from policyalign_assets.tables import JUDGEMENTS

NOT_COMPARED = "the answer could not be compared with the reference"
NO_MATH = "math-verify is not installed where answers are judged"
NO_CORRECTNESS = "the configured judge does not compare answers with a reference (judge.kind=policy or strongreject does)"


@dataclass(frozen=True)
class JudgementsInfo:
    """What a table of judgements does not say in its rows; travels as its schema metadata (JUDGEMENTS_INFO).

    `answers`: hash of the answers that were judged; `judge`: in words; `settings`: of the judge.
    """

    answers: str
    judge: str
    settings: dict[str, Any]


def judge_answers(
    generations: pa.Table, judge: Judge, correctness: Judge | None = None
) -> pa.Table:
    """One verdict per row of GENERATIONS (JUDGEMENTS). `correctness`: compares free answers with their reference; None: they stay unscored."""
    rows = generations.to_pylist()
    verdicts: dict[int, Verdict] = {}
    todo: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row["unanswered"]:
            verdicts[i] = Verdict(reason=row["unanswered"])
        elif row["scoring"] == "likelihood":
            verdicts[i] = Verdict(correct=row["correct"])
        elif (
            row["scoring"] == "text"
        ):  # an empty answer is a wrong one, and so is a refusal of arithmetic
            verdicts[i] = Verdict(correct=row["response"] == row["reference"])
        else:
            todo.setdefault(row["scoring"], []).append(i)

    def dialogues(of: list[int]) -> list[Dialogue]:
        return [Dialogue(rows[i]["prompt"], rows[i]["response"], rows[i]["reference"]) for i in of]

    for scoring, of in todo.items():
        match scoring:
            case "judge":
                made = judge.judge_all(dialogues(of))
            case "value":
                made = _by_value([(rows[i]["reference"], rows[i]["response"]) for i in of])
            case "correctness":
                made = (
                    correctness.judge_all(dialogues(of))
                    if correctness
                    else [Verdict(reason=NO_CORRECTNESS)] * len(of)
                )
            case _:
                raise ValueError(f"answers cannot be scored by {scoring!r}")
        verdicts |= zip(of, made, strict=True)
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


def grade(pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """For (reference, answer) pairs of mathematics: is it the same value? None where math-verify fails.

    In a process of its own: math-verify limits its time by a signal, which only a main thread gets.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as worker:
        return worker.submit(_grade, list(pairs)).result()


def _grade(pairs: list[tuple[str, str]]) -> list[bool | None]:
    from math_verify import parse, verify

    def same(reference: str, answer: str) -> bool | None:
        try:
            return bool(verify(parse(f"\\boxed{{{reference}}}"), parse(answer)))
        except Exception:  # sympy fails in many ways on what models write
            return None

    return [same(reference, answer) for reference, answer in pairs]


def _by_value(pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    if find_spec("math_verify") is None:
        return [Verdict(reason=NO_MATH)] * len(pairs)
    return [
        Verdict(reason=NOT_COMPARED) if same is None else Verdict(correct=same)
        for same in grade(pairs)
    ]
