"""The instructions to train on: those where the policy shifts the model most."""

from __future__ import annotations

import pyarrow as pa

from policyalign_assets.files import sha256_table
from policyalign_assets.filtering.select import select_instructions
from policyalign_assets.stages.coverage_facts import selection_coverage, yields_of
from policyalign_assets.stages.facts import markdown_table, preview
from policyalign_assets.stages.interface import StageContext, StageResult


def make(
    context: StageContext, violating_instructions: pa.Table, sensitivity_scores: pa.Table
) -> StageResult:
    """Raises NothingSelected."""
    settings = context.settings.filtering
    table = select_instructions(violating_instructions, sensitivity_scores, settings)
    counts = {c["values"]: c["counts"] for c in table["reason"].value_counts().to_pylist()}
    return StageResult(
        table,
        sha256_table(table),
        {
            "dagster/partition_row_count": table.num_rows,
            "selected": sum(table["selected"].to_pylist()),
            "reasons": markdown_table(("reason", "rows"), sorted(counts.items())),
            **selection_coverage(
                violating_instructions,
                yields_of(violating_instructions),
                table,
                sensitivity_scores,
                settings.score,
            ),
            "preview": preview(
                table.filter(table["selected"]),
                ("rule_id", "kind", "text", "score", "rank_in_rule"),
            ),
        },
    )
