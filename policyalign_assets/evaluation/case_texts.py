"""The texts that held-out cases are written from. Light to import, since fingerprints need them."""

from __future__ import annotations

from policyalign_assets.evaluation import probe_texts
from policyalign_assets.settings import BUNDLED, Settings
from policyalign_assets.world.world import lexicon


def texts(settings: Settings) -> list[object]:
    """The texts that cases are written from under `settings`, for fingerprints."""
    return [probe_texts.texts(), lexicon() if settings.model.id == BUNDLED else _plain_words()]


def _plain_words() -> dict[str, object]:
    """The parts of the lexicon that everyday requests and questions of any model use."""
    return {key: lexicon()[key] for key in ("request_frames", "things", "names", "colours")}
