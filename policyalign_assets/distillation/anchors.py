"""Everyday requests in the training mix, on which the student should keep answering as before.

They have nothing to do with the policy. Without them, nothing in the mix shows what must stay the
same, and some runs lose a skill (measured in docs/method.md). Only requests are used, no answers:
the teacher is the model itself, as for every other instruction.
"""

from __future__ import annotations

import random
from pathlib import Path

from policyalign_assets.distillation.batches import Instruction
from policyalign_assets.settings import BUNDLED, ENGLISH, DistillationSettings
from policyalign_assets.world.world import World

GROUP = "anchor"
ENGLISH_REQUESTS = Path(__file__).parents[1] / "english_model" / "everyday.txt"


class AnchorsError(ValueError):
    """The file of everyday requests cannot be used."""


def anchors(settings: DistillationSettings, model_id: str) -> list[Instruction]:
    """A seeded choice of `settings.anchors` requests from `settings.anchors_file`, one per line.

    Without a file, the bundled model gets questions of its own world that evaluation does not hold
    out, and the English model those of the shipped file; any other model gets none.
    Raises AnchorsError.
    """
    rng = random.Random(settings.seed)
    if file := anchors_file(settings, model_id):
        lines = _lines(file)
        chosen = rng.sample(lines, min(settings.anchors, len(lines)))
    elif model_id == BUNDLED:
        world = World(rng, "train")
        chosen = [world.capability().request for _ in range(settings.anchors)]
    else:
        chosen = []
    return [Instruction(text, GROUP) for text in chosen]


def anchors_file(settings: DistillationSettings, model_id: str) -> Path | None:
    """The file that the everyday requests come from; None where there is none."""
    if settings.anchors_file:
        return Path(settings.anchors_file)
    return ENGLISH_REQUESTS if model_id == ENGLISH else None


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
            f"distillation.anchors_file={str(file)!r} cannot be read: {error}. Fix: name a "
            "UTF-8 text file with one request per line."
        ) from None
    if not lines:
        raise AnchorsError(
            f"distillation.anchors_file={str(file)!r} holds no request. Fix: write one "
            "request per line."
        )
    return lines
