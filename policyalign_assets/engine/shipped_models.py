"""Models that ship with the project: their ids in the settings and their folders (no torch)."""

from __future__ import annotations

from pathlib import Path

import policyalign_assets
from policyalign_assets.settings import BUNDLED

BUNDLED_WEIGHTS = Path(policyalign_assets.__file__).parent / "bundled_model" / "weights"
SHIPPED_MODELS: dict[str, Path] = {BUNDLED: BUNDLED_WEIGHTS}
