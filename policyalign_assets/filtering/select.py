"""Selects the instructions to train on, rule by rule.

It keeps the instructions where the policy shifts the model most, and the twins and neighbours that
the model still answers under the policy. Every instruction leaves with a reason. Held-out
instructions are never selected; `conformance_set` returns them, to test with.
"""

from __future__ import annotations

from importlib import resources

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from policyalign_assets.settings import FilterSettings
from policyalign_assets.synthesis.split import HELDOUT
from policyalign_assets.tables import FILTERED, INSTRUCTIONS

CODE_VERSION = 3  # raise it when new code changes which instructions are selected

RANKED = ("violating", "duty")


class NothingSelected(ValueError):
    """No violating instruction survived the filter."""


class TablesDoNotMatch(ValueError):
    """Instructions and scores come from different runs."""


def select_instructions(
    instructions: pa.Table, scores: pa.Table, settings: FilterSettings
) -> pa.Table:
    """Every instruction with its rank, whether it is selected, and why (FILTERED).

    instructions: INSTRUCTIONS. scores: SENSITIVITY, of the same instructions; an instruction
    without a row there is dropped with that reason. Raises TablesDoNotMatch where a score has no
    instruction or an id is not unique, and NothingSelected.
    """
    _check_ids(instructions, scores)
    query = resources.files(__package__).joinpath("select.sql").read_text(encoding="utf-8")
    with duckdb.connect() as db:
        for name in ("score", "per_rule", "share", "at_least", "minimum", "seed"):
            db.execute(f"SET VARIABLE {name} = ?", [getattr(settings, name)])
        db.register("instructions", _completed(instructions))
        db.register("scores", scores)
        table = db.sql(query).to_arrow_table().cast(FILTERED)
    if not pc.any(pc.and_(table["selected"], pc.is_in(table["kind"], pa.array(RANKED)))).as_py():
        raise NothingSelected(
            f"no violating instruction scores at least filtering.minimum={settings.minimum} by "
            f"{settings.score}. Fix: lower filtering.minimum, or synthesize more."
        )
    return table


def conformance_set(instructions: pa.Table) -> pa.Table:
    """The held-out instructions of every rule.

    Its violations and duties test the policy; its twins and neighbours test for over-refusal.
    """
    instructions = _completed(instructions)
    return instructions.filter(pc.equal(instructions["split"], HELDOUT))


def _check_ids(instructions: pa.Table, scores: pa.Table) -> None:
    """A join would multiply rows with equal ids, and lose scores without an instruction."""
    for name, table in (("instructions", instructions), ("scores", scores)):
        ids = table["instruction_id"]
        if repeated := len(ids) - len(pc.unique(ids)):
            raise TablesDoNotMatch(
                f"{repeated} ids occur more than once among the {name}. "
                "Fix: materialize violating_instructions and sensitivity_scores again."
            )
    known = pc.is_in(scores["instruction_id"], value_set=instructions["instruction_id"])
    if strangers := len(known) - (pc.sum(known).as_py() or 0):
        raise TablesDoNotMatch(
            f"{strangers} of {len(known)} scores belong to no instruction: the tables come from "
            "different runs. Fix: materialize sensitivity_scores again."
        )


def _completed(instructions: pa.Table) -> pa.Table:
    """With the columns that tables of earlier versions lack, as null."""
    for field in INSTRUCTIONS:
        if field.name not in instructions.column_names:
            nulls = pa.nulls(len(instructions), field.type)
            instructions = instructions.append_column(field, nulls)
    return instructions
