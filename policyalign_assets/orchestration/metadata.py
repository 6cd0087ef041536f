"""Facts about data as Dagster's metadata."""

import dagster as dg
import pyarrow as pa
from dagster._core.definitions.metadata import RawMetadataValue

from policyalign_assets.stages.facts import Facts

POLICY_VERSION_TAG = "policyalign/policy_version"
RECIPE = "made with"  # metadata of a materialization, see `fingerprints.recipe`
_TYPES = {
    "md": dg.MetadataValue.md,
    "path": dg.MetadataValue.path,
    "url": dg.MetadataValue.url,
    "json": dg.MetadataValue.json,
}


def shown(facts: Facts) -> dict[str, RawMetadataValue]:
    """As Dagster shows it. Shares and means are rounded to four digits, which is what they tell."""
    return {
        name: float(f"{fact:.4g}")
        if isinstance(fact, float)
        else _TYPES[fact["type"]](fact["raw_value"])
        if isinstance(fact, dict)
        else fact
        for name, fact in facts.items()
    }


def table_schema(schema: pa.Schema) -> dg.TableSchema:
    return dg.TableSchema(columns=[dg.TableColumn(f.name, str(f.type)) for f in schema])
