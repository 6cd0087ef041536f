"""Every text that shapes the instructions, for fingerprints and stores.

Importing this module is cheap: it loads no model library and no table library. Comments and the
layout of the data files do not count, only their content.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from policyalign_assets.files import parse_shipped_yaml
from policyalign_assets.settings import Settings
from policyalign_assets.world import prompts


@cache
def load_yaml(name: str) -> Any:
    """The content of a YAML file of this package."""
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return parse_shipped_yaml(text)


def generator_texts(settings: Settings) -> object:
    """What the generator is asked under these settings, and how drafts are tied to rules."""
    asked = prompt_texts(settings.synthesis.grid == "full")
    if not settings.attributes_drafts:
        return asked
    return [asked, load_yaml("attribution.yaml"), load_yaml("small_words.yaml")]


def prompt_texts(full_grid: bool) -> object:
    if full_grid:
        return load_yaml("grid.yaml")
    return [prompts.VIOLATION, prompts.NEIGHBOUR, prompts.TWIN]


def entailment_texts(settings: Settings) -> object:
    """What the judge of entailment is asked, and which judge it is, where drafts are judged."""
    if not settings.synthesis.entailment:
        return None
    return [settings.judge.shaping(), load_yaml("entailment.yaml")]
