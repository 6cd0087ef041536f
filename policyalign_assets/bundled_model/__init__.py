"""The small model that ships with the project, and the recipe that trained it."""

from pathlib import Path

WEIGHTS_DIR = Path(__file__).parent / "weights"
