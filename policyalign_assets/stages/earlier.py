"""What a stage made for a policy before an edit: only to guess what it will make again."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from policyalign_assets.policy import PolicyDocument
from policyalign_assets.stages.interface import StageContext


def earlier_table(
    context: StageContext, stage: str, policy: PolicyDocument, schema: pa.Schema
) -> pa.Table | None:
    """The stored table, or None where there is none, or one of another version."""
    path = context.results / "assets" / stage / policy.domain / f"{policy.policy_id}.parquet"
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except (OSError, pa.ArrowException):
        return None
    return table.select(schema.names) if set(schema.names) <= set(table.column_names) else None
