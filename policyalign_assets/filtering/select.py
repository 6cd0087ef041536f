"""Keeps, within each rule, the instructions where the policy shifts the model most, and the twins and neighbours that stay uncovered.

Held-out instructions are never selected; `conformance_set` gives them, for a test on requests of the same kind.
"""

from __future__ import annotations

from importlib import resources

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from policyalign_assets.settings import FilterSettings
from policyalign_assets.synthesis.split import HELDOUT
from policyalign_assets.tables import FILTERED, INSTRUCTIONS

CODE_VERSION = 2  # raise it when new code changes which instructions are selected

RANKED = ("violating", "duty")


class NothingSelected(ValueError):
    """No violating instruction survived the filter."""


def select_instructions(
    instructions: pa.Table, scores: pa.Table, settings: FilterSettings
) -> pa.Table:
    """Every scored instruction with its rank, whether it is selected, and why (FILTERED). Raises NothingSelected."""
    query = resources.files(__package__).joinpath("select.sql").read_text(encoding="utf-8")
    with duckdb.connect() as db:
        for name in ("score", "per_rule", "share", "at_least", "minimum", "seed"):
            db.execute(f"SET VARIABLE {name} = ?", [getattr(settings, name)])
        db.register("instructions", _completed(instructions))
        db.register("scores", scores)
        table = db.sql(query).to_arrow_table().cast(FILTERED)
    if not pc.any(pc.and_(table["selected"], pc.is_in(table["kind"], pa.array(RANKED)))).as_py():
        raise NothingSelected(
            f"no violating instruction scores at least filtering.minimum={settings.minimum} by {settings.score}. "
            "Mend: lower filtering.minimum, or synthesize more."
        )
    return table


def conformance_set(instructions: pa.Table) -> pa.Table:
    """The held-out instructions of every rule: violations and duties to test the policy with, twins and neighbours for over-refusal."""
    instructions = _completed(instructions)
    return instructions.filter(pc.equal(instructions["split"], HELDOUT))


def _completed(instructions: pa.Table) -> pa.Table:
    """With the columns that tables of earlier versions lack, as null."""
    for field in INSTRUCTIONS:
        if field.name not in instructions.column_names:
            instructions = instructions.append_column(
                field, pa.nulls(len(instructions), field.type)
            )
    return instructions
