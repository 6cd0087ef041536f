"""Everyday requests in the training mix, which have nothing to do with the policy: the student keeps answering them as before.

Without them nothing in the mix says what must stay the same, and a run now and then loses a skill (measured: docs/method.md).
Only requests are used, no answers: the teacher is the model itself, as for every other instruction.
"""

from __future__ import annotations

import random
from pathlib import Path

from policyalign_assets.distillation.batches import Instruction
from policyalign_assets.settings import BUNDLED, DistillationSettings
from policyalign_assets.world.world import World

GROUP = "anchor"


class AnchorsError(ValueError):
    """The file of everyday requests cannot be used."""


def anchors(settings: DistillationSettings, model_id: str) -> list[Instruction]:
    """`settings.anchors` requests from `settings.anchors_file` (one a line), seeded. Without a file, the bundled model gets
    questions of its own world, never one that evaluation holds out, and any other model none."""
    rng = random.Random(settings.seed)
    if settings.anchors_file:
        lines = _lines(Path(settings.anchors_file))
        chosen = rng.sample(lines, min(settings.anchors, len(lines)))
    elif model_id == BUNDLED:
        world = World(rng, "train")
        chosen = [world.capability().request for _ in range(settings.anchors)]
    else:
        chosen = []
    return [Instruction(text, GROUP) for text in chosen]


def _lines(file: Path) -> list[str]:
    try:
        lines = list(
            dict.fromkeys(
                line.strip()
                for line in file.read_text(encoding="utf-8").splitlines()
                if line.strip()
            )
        )
    except (OSError, UnicodeDecodeError) as error:
        raise AnchorsError(
            f"distillation.anchors_file={str(file)!r} cannot be read: {error}. Mend: a UTF-8 text file, one request a line."
        ) from None
    if not lines:
        raise AnchorsError(
            f"distillation.anchors_file={str(file)!r} holds no request. Mend: one request a line."
        )
    return lines
