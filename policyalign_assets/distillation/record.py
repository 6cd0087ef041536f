"""What is known of a finished checkpoint without opening it (imports no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Checkpoint:
    """`path` is relative to the data folder, so that the folder can move. `provenance` says what it was made from."""

    checkpoint_id: str
    path: str
    model_id: str
    model_revision: str
    provenance: dict[str, Any]
