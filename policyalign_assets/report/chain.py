"""The chain of hashes from a policy to the verdicts on a checkpoint, compared link by link.

A report or a release for data that was not made from each other is refused. Nothing here trusts a
summary: hashes are computed from the tables themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from policyalign_assets.evaluation.generate import GenerationsInfo
from policyalign_assets.evaluation.judging import JudgementsInfo
from policyalign_assets.evaluation.suites import repeat_arm
from policyalign_assets.files import sha256_table
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint
from policyalign_assets.tables import BENCHMARKS, EVALUATION, GENERATIONS_INFO, JUDGEMENTS_INFO

ALL_STAGES = "materialize the stages from violating_instructions on"
ANSWERS = "materialize generations, then judgements, then benchmark_report"


class NotOfOnePiece(ValueError):
    """A policy, checkpoint, answers and verdicts that were not made from each other.

    The message says which link is broken and what to make again.
    """


@dataclass(frozen=True)
class JudgedAnswers:
    """`heldout` (EVALUATION) and `benchmarks` (BENCHMARKS), with how they were made."""

    heldout: pa.Table
    benchmarks: pa.Table
    asked: GenerationsInfo
    judged: JudgementsInfo


@dataclass(frozen=True)
class Chain:
    """Everything that a report is made from."""

    policy: PolicyDocument
    instructions: pa.Table
    filtered: pa.Table
    checkpoint: Checkpoint
    generations: pa.Table
    judgements: pa.Table


def judged_answers(
    generations: pa.Table, judgements: pa.Table, checkpoint_id: str
) -> JudgedAnswers:
    """Each answer with its verdict.

    Raises NotOfOnePiece unless the answers are those of `checkpoint_id` and the verdicts are on
    exactly these answers.
    """
    try:
        asked = TypeAdapter(GenerationsInfo).validate_json(
            _metadata(generations, GENERATIONS_INFO, "generations")
        )
        judged = TypeAdapter(JudgementsInfo).validate_json(
            _metadata(judgements, JUDGEMENTS_INFO, "judgements")
        )
    except ValidationError as error:
        raise NotOfOnePiece(
            "answers or verdicts were made by another version of the code and cannot be read "
            f"({error.error_count()} differences). Fix: {ANSWERS}."
        ) from None
    if asked.checkpoint_id != checkpoint_id:
        raise NotOfOnePiece(
            f"the answers are those of checkpoint {asked.checkpoint_id}, not of {checkpoint_id}. "
            f"Fix: {ANSWERS}."
        )
    if judged.answers != sha256_table(generations):
        raise NotOfOnePiece(
            "the verdicts are on other answers than the present ones. "
            "Fix: materialize judgements, then benchmark_report."
        )
    return JudgedAnswers(*join(generations, judgements), asked, judged)


def checked(chain: Chain) -> JudgedAnswers:
    """The judged answers of a chain whose links all hold. Raises NotOfOnePiece."""
    answers = judged_answers(chain.generations, chain.judgements, chain.checkpoint.checkpoint_id)
    for broken in _broken_links(chain, answers):
        raise NotOfOnePiece(broken)
    return answers


def _broken_links(chain: Chain, answers: JudgedAnswers) -> Iterator[str]:
    policy, checkpoint, asked = chain.policy, chain.checkpoint, answers.asked
    made = checkpoint.provenance
    yield from _other_runs(checkpoint, asked)
    for name, wanted in (("policy_id", policy.policy_id), ("domain", policy.domain)):
        if made.get(name) != wanted:
            yield (
                f"checkpoint {checkpoint.checkpoint_id} was trained for {name} {made.get(name)!r}, "
                f"not for {wanted!r}. Fix: {ALL_STAGES}."
            )
    if made.get("policy_hash") != policy.content_hash:
        yield (
            f"checkpoint {checkpoint.checkpoint_id} was trained for another version of the policy "
            f"({_short(made.get('policy_hash'))}) than the present one "
            f"({_short(policy.content_hash)}). Fix: {ALL_STAGES}."
        )
    for name, table in (
        ("violating_instructions", chain.instructions),
        ("filtered_instructions", chain.filtered),
        ("generations", chain.generations),
        ("judgements", chain.judgements),
    ):
        others = set(table["policy_hash"].unique().to_pylist()) - {policy.content_hash}
        if others:
            yield (
                f"{name} were made from another version of the policy "
                f"({_short(next(iter(others)))}) than the present one "
                f"({_short(policy.content_hash)}). Fix: {ALL_STAGES}."
            )
    chosen = chain.filtered.filter(chain.filtered["selected"])
    if made.get("instructions") != sha256_table(chosen):
        yield (
            f"checkpoint {checkpoint.checkpoint_id} was trained on other instructions than those "
            "of filtered_instructions. Fix: materialize distilled_checkpoint, then the stages "
            "after it."
        )
    models: set[tuple[Any, Any]] = {(checkpoint.model_id, checkpoint.model_revision)}
    models |= {(asked.model_id, asked.model_revision)}
    models |= {(made.get("model_id"), made.get("model_revision"))}
    if len(models) > 1:
        yield (
            f"the checkpoint and its answers name different models: {sorted(map(str, models))}. "
            f"Fix: {ANSWERS}."
        )


def _other_runs(checkpoint: Checkpoint, asked: GenerationsInfo) -> Iterator[str]:
    """Further training runs must differ from the checkpoint in nothing but the seed."""
    runs = {c.seed: c.checkpoint_id for c in (checkpoint, *checkpoint.repeats)}
    if len(runs) != 1 + len(checkpoint.repeats) or (checkpoint.repeats and None in runs):
        yield (
            f"the training runs of checkpoint {checkpoint.checkpoint_id} do not each have a seed "
            f"of their own. Fix: {ALL_STAGES}."
        )
    answered = {
        repeat_arm(c.seed): c.checkpoint_id for c in checkpoint.repeats if c.seed is not None
    }
    if answered != asked.repeats:
        yield (
            f"the answers are those of the training runs {sorted(asked.repeats.values())}, not of "
            f"{sorted(answered.values())}. Fix: {ANSWERS}."
        )
    for other in checkpoint.repeats:
        if _but_for_the_seed(other) != _but_for_the_seed(checkpoint):
            yield (
                f"checkpoint {other.checkpoint_id} is no repetition of the training of "
                f"{checkpoint.checkpoint_id}: more than the seed differs. "
                "Fix: materialize distilled_checkpoint, then the stages after it."
            )


def _but_for_the_seed(checkpoint: Checkpoint) -> tuple[Any, ...]:
    # Everyday requests are drawn with the seed. The fingerprint stands in the first record alone.
    apart = ("everyday_requests", "fingerprint", "settings")
    made = {k: v for k, v in checkpoint.provenance.items() if k not in apart}
    settings = {k: v for k, v in checkpoint.provenance.get("settings", {}).items() if k != "seed"}
    return checkpoint.model_id, checkpoint.model_revision, checkpoint.tuning, made, settings


def join(generations: pa.Table, judgements: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Each answer with its verdict: held-out cases (EVALUATION) and public benchmarks (BENCHMARKS).

    Raises NotOfOnePiece if an answer has no verdict.
    """
    place = {key: i for i, key in enumerate(_keys(judgements))}
    places = []
    for case_id, arm in _keys(generations):
        if (case_id, arm) not in place:
            raise NotOfOnePiece(
                f"there is no verdict on case {case_id!r} of arm {arm!r}. "
                "Fix: materialize judgements, then benchmark_report."
            )
        places.append(place[case_id, arm])
    verdicts = judgements.take(pa.array(places, pa.int64()))
    columns = {name: generations[name] for name in generations.schema.names}
    columns |= {name: verdicts[name] for name in verdicts.schema.names}
    held_out = columns["benchmark"].is_null()
    return (
        _of_schema(EVALUATION, columns).filter(held_out),
        _of_schema(BENCHMARKS, columns).filter(pc.invert(held_out)),
    )


def _keys(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["case_id"].to_pylist(), table["arm"].to_pylist()))


def _of_schema(schema: pa.Schema, columns: dict[str, pa.ChunkedArray]) -> pa.Table:
    """The columns that the schema names. Those that nobody filled are null."""
    rows = len(columns["case_id"])
    return pa.table(
        [
            columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type)
            for f in schema
        ],
        schema=schema,
    )


def _metadata(table: pa.Table, key: bytes, stage: str) -> bytes:
    found: bytes | None = (table.schema.metadata or {}).get(key)
    if found is None:
        raise NotOfOnePiece(f"the table of {stage} does not say how it was made. Fix: {ANSWERS}.")
    return found


def _short(digest: object) -> str:
    return str(digest)[:12] if digest else "none"
