"""Another form of a released model answers the bundle's cases again, and the gates decide on it.

Only what the gates read is asked: of the probes, those that `gates.probes` names. A case that
cannot be asked again has no answer, so the gates do not count it as passed: its text may not be
passed on, lm-eval must ask it, or its form is not kept with its answer (a begun answer, the policy
in front).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from policyalign_assets.engine.base import Engine, Sampling
from policyalign_assets.evaluation.answers import Answer, Model, what_fits
from policyalign_assets.evaluation.conversation import Conversation
from policyalign_assets.evaluation.generate import TOO_LONG, replies_of
from policyalign_assets.evaluation.judging import judge_answers
from policyalign_assets.evaluation.suites import ALIGNED, ARMS, SUITES
from policyalign_assets.judges.choose import make_correctness_judge, make_judge
from policyalign_assets.records import Checkpoint
from policyalign_assets.releases import answers as kept
from policyalign_assets.releases.record import read_record
from policyalign_assets.report.chain import JudgedAnswers, join, judged_answers
from policyalign_assets.report.contents import GateResult
from policyalign_assets.report.difference import Difference, Reported, compare
from policyalign_assets.report.release import gate_results
from policyalign_assets.settings import JudgeSettings

NOT_KEPT = ("probe_opening", "probe_policy")  # a row does not say how its request was put

Row = dict[str, Any]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Again:
    """What another form of the model answered.

    gates: computed from its answers. drift: from the released model's answers to its own.
    flipped: the share of the compared cases whose outcome changed. same_text: the share of answers
    that are the same to the letter. not_asked: cases by suite or benchmark.
    """

    gates: list[GateResult]
    drift: Difference
    compared: int
    flipped: float
    same_text: float
    not_asked: dict[str, int]


@dataclass(frozen=True)
class _Case:
    row: Row
    conversation: Conversation


def answer_again(bundle: Path, engine: Engine, report: Report = lambda _: None) -> dict[str, Again]:
    """Asks `engine` every gated case of the bundle. Returns what it answered, by policy.

    Raises ValueError if no case of a policy can be asked.
    """
    record, checkpoint = read_record(bundle), kept.stored_checkpoint(bundle)
    settings = kept.stored_settings(bundle)
    return {
        policy.policy_id: _under_policy(
            record.place(bundle, policy),
            checkpoint.under(record.partition(policy)),
            settings,
            engine,
            report,
        )
        for policy in record.policies
    }


def _under_policy(
    place: Path,
    checkpoint: Checkpoint,
    settings: Mapping[str, Any],
    engine: Engine,
    report: Report,
) -> Again:
    """place: the folder of the policy in the bundle."""
    stored, policy = kept.read_answers(place), kept.stored_policy(place)
    before = judged_answers(stored.generations, stored.judgements, checkpoint.checkpoint_id)
    others = [a for a in ARMS if a != ALIGNED]
    bars = kept.gate_bars(settings, policy)
    cases, left = _cases(stored.generations.to_pylist(), bars.probes)
    if not cases:
        raise ValueError(f"the bundle holds no case of {policy.policy_id} that can be asked again")
    evaluation = before.asked.settings["evaluation"]
    sampling = Sampling(evaluation["max_new_tokens"], 0.0, evaluation["seed"])
    report(f"{len(cases)} cases of {policy.policy_id} are answered again")
    model = Model("another form", lambda: engine)
    made = replies_of(model, cases, None, policy.prompt_text, sampling, None, what_fits)
    rows = [_answered(case, replies) for case, replies in zip(cases, made, strict=True)]
    new = pa.Table.from_pylist(rows, stored.generations.schema)
    judge_settings = JudgeSettings.model_validate(before.judged.settings)
    judge = make_judge(judge_settings, before.asked.model_id, policy, report)
    verdicts = judge_answers(new, judge, make_correctness_judge(judge_settings, report))
    generations = pa.concat_tables([_arms(stored.generations, others), new])
    judgements = pa.concat_tables([_arms(stored.judgements, others), _as(verdicts, stored)])
    heldout, benchmarks = join(generations, judgements)
    asked = replace(before.asked, repeats={})
    now = JudgedAnswers(heldout, benchmarks, asked, before.judged)
    alone = replace(checkpoint, repeats=())
    gates = gate_results(policy, alone, now, place / kept.FOLDER, bars)
    old = _reported("the released model", before, {(c.row["case_id"], _set(c.row)) for c in cases})
    drift = compare(old, _reported("the export", now, None))
    compared = sum(change.paired.n for change in drift.suites)
    texts = [c.row["response"] == row["response"] for c, row in zip(cases, rows, strict=True)]
    return Again(
        gates,
        drift,
        compared,
        len(drift.flips) / compared if compared else 1.0,
        sum(texts) / len(texts),
        dict(left),
    )


def _set(row: Mapping[str, Any]) -> str:
    return str(row.get("suite") or row.get("benchmark"))


def _cases(rows: list[Row], probes: Sequence[str]) -> tuple[list[_Case], Counter[str]]:
    """The aligned model's cases that the gates read, and how many of them cannot be asked."""
    cases, left = [], Counter[str]()
    for row in rows:
        suite = row["suite"]
        if row["arm"] != ALIGNED or (suite and SUITES[suite].probe and suite not in probes):
            continue
        if row["prompt"] is None or row["scoring"] == "likelihood" or suite in NOT_KEPT:
            left[_set(row)] += 1
        elif row["conversation"]:
            cases.append(_Case(row, Conversation.from_transcript(row["conversation"])))
        else:
            cases.append(_Case(row, Conversation.of(row["prompt"])))
    return cases, left


def _answered(case: _Case, replies: list[Answer | None]) -> Row:
    last = replies[-1]
    given = [reply for reply in replies if reply is not None]
    return case.row | {
        "response": last.text if last else "",
        "unanswered": None if last else TOO_LONG,
        "tokens": sum(reply.tokens for reply in given) if last else None,
        "truncated": any(reply.truncated for reply in given),
        "empty": last is not None and not last.text,
        "correct": None,
        "conversation": case.conversation.transcript([r.text for r in given[:-1]]),
    }


def _arms(table: pa.Table, arms: list[str]) -> pa.Table:
    return table.filter(pc.is_in(table["arm"], pa.array(arms)))


def _as(verdicts: pa.Table, stored: kept.Answers) -> pa.Table:
    return pa.Table.from_pylist(verdicts.to_pylist(), stored.judgements.schema)


def _reported(name: str, answers: JudgedAnswers, only: set[tuple[str, str]] | None) -> Reported:
    """Answers in the form in which reports are compared. only: (case id, suite or benchmark)."""

    def rows(table: pa.Table) -> tuple[Row, ...]:
        return tuple(
            row
            for row in table.to_pylist()
            if row["arm"] == ALIGNED and (only is None or (row["case_id"], _set(row)) in only)
        )

    return Reported(name, {}, "", None, {}, rows(answers.heldout), rows(answers.benchmarks))
