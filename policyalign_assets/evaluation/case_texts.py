"""The texts that held-out cases are written from. Light to import, since fingerprints need them."""

from __future__ import annotations

from policyalign_assets.evaluation import probe_texts
from policyalign_assets.settings import BUNDLED, Settings
from policyalign_assets.world.world import lexicon


def texts(settings: Settings) -> list[object]:
    """The texts that cases are written from under `settings`, for fingerprints."""
    return [probe_texts.texts(), lexicon() if settings.model.id == BUNDLED else _plain_texts()]


def _plain_texts() -> list[object]:
    """What everyday requests and questions of every other model are made of."""
    return [lexicon()["request_frames"], [vars(q) for q in probe_texts.plain_questions()]]
