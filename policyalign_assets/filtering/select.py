"""Keeps, within each rule, the instructions where the policy shifts the model most, and the twins and neighbours that stay uncovered."""

from __future__ import annotations

from importlib import resources

import duckdb
import pyarrow as pa

from policyalign_assets.settings import FilterSettings
from policyalign_assets.tables import FILTERED


class NothingSelected(ValueError):
    """No violating instruction survived the filter."""


def select_instructions(instructions: pa.Table, scores: pa.Table, settings: FilterSettings) -> pa.Table:
    """Every scored instruction with its rank, whether it is selected, and why (FILTERED). Raises NothingSelected."""
    query = resources.files(__package__).joinpath("select.sql").read_text(encoding="utf-8")
    with duckdb.connect() as db:
        for name in ("score", "per_rule", "minimum"):
            db.execute(f"SET VARIABLE {name} = ?", [getattr(settings, name)])
        db.register("instructions", instructions)
        db.register("scores", scores)
        table = db.sql(query).to_arrow_table().cast(FILTERED)
    if not any(k == "violating" and s for k, s in zip(table["kind"].to_pylist(), table["selected"].to_pylist())):
        raise NothingSelected(f"no violating instruction scores at least filtering.minimum={settings.minimum} by {settings.score}. "
                              "Mend: lower filtering.minimum, or synthesize more.")
    return table
