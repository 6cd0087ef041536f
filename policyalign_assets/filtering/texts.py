"""The SQL that selects instructions, for the fingerprint of its stage. Importing it is cheap."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

# Distributions whose version can change which rows are selected.
PACKAGES = ("duckdb",)


@cache
def selection_sql() -> str:
    return resources.files(__package__).joinpath("select.sql").read_text(encoding="utf-8")


def texts() -> dict[str, str]:
    """Name -> text. Comments and layout of the SQL do not count."""
    code = re.sub(r"--[^\n]*", "", selection_sql())
    return {"select.sql": " ".join(code.split())}
