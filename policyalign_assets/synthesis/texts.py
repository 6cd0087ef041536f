"""The words that generators and the judge of entailment are given, for fingerprints and stores."""

from __future__ import annotations

from policyalign_assets.settings import Settings
from policyalign_assets.synthesis import entailment, grid
from policyalign_assets.world import prompts


def generator_texts(settings: Settings) -> object:
    """What the generator is asked under these settings, as parsed content."""
    return prompt_texts(settings.synthesis.grid == "full")


def prompt_texts(full_grid: bool) -> object:
    if full_grid:
        return grid.content()
    return [prompts.VIOLATION, prompts.NEIGHBOUR, prompts.TWIN]


def entailment_texts(settings: Settings) -> object:
    """What the judge of entailment is asked, and which judge it is, where drafts are judged."""
    if not settings.synthesis.entailment:
        return None
    return [settings.judge.shaping(), entailment.texts()]
