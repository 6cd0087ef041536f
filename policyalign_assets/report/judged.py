"""Answers with their verdicts: what a report counts. Answers and verdicts that do not belong together are refused."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from pydantic import TypeAdapter

from policyalign_assets.evaluation.generate import GenerationsInfo
from policyalign_assets.evaluation.judging import JudgementsInfo
from policyalign_assets.files import sha256_table
from policyalign_assets.tables import BENCHMARKS, EVALUATION, GENERATIONS_INFO, JUDGEMENTS_INFO


class NotOfOnePiece(ValueError):
    """A checkpoint, answers and verdicts that were not made from each other. The message says what to make again."""


@dataclass(frozen=True)
class JudgedAnswers:
    """`heldout` (EVALUATION) and `benchmarks` (BENCHMARKS), with what is known of how they were made."""

    heldout: pa.Table
    benchmarks: pa.Table
    asked: GenerationsInfo
    judged: JudgementsInfo


def judged_answers(
    generations: pa.Table, judgements: pa.Table, checkpoint_id: str
) -> JudgedAnswers:
    """Raises NotOfOnePiece unless the answers are those of `checkpoint_id` and the verdicts are on exactly these answers."""
    asked = TypeAdapter(GenerationsInfo).validate_json(
        generations.schema.metadata[GENERATIONS_INFO]
    )
    judged = TypeAdapter(JudgementsInfo).validate_json(judgements.schema.metadata[JUDGEMENTS_INFO])
    if asked.checkpoint_id != checkpoint_id:
        raise NotOfOnePiece(
            f"the answers are those of checkpoint {asked.checkpoint_id}, not of {checkpoint_id}. "
            "Mend: materialize generations, then judgements, then the report."
        )
    if judged.answers != sha256_table(generations):
        raise NotOfOnePiece(
            "the verdicts are on other answers than those of now. Mend: materialize judgements, then the report."
        )
    return JudgedAnswers(*join(generations, judgements), asked, judged)


def join(generations: pa.Table, judgements: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Each answer with its verdict: held-out cases (EVALUATION) and those of public benchmarks (BENCHMARKS)."""
    verdicts = {(row["case_id"], row["arm"]): row for row in judgements.to_pylist()}
    rows = [{**row, **verdicts[row["case_id"], row["arm"]]} for row in generations.to_pylist()]
    return (
        pa.Table.from_pylist([row for row in rows if row["benchmark"] is None], EVALUATION),
        pa.Table.from_pylist([row for row in rows if row["benchmark"] is not None], BENCHMARKS),
    )
