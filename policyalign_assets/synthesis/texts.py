"""Every text that shapes the instructions, for the fingerprint of their stage.

Importing this module is cheap: it loads no model library and no table library.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import yaml

from policyalign_assets.world import prompts

# Distributions whose version can change which drafts are kept.
PACKAGES = ("datasketch", "jinja2", "phonenumbers", "py3langid", "python-stdnum", "rapidfuzz")


@cache
def load_yaml(name: str) -> Any:
    """The content of a YAML file of this package."""
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return yaml.safe_load(text)


def texts(grid: str = "full") -> dict[str, str]:
    """Name -> text. `grid`: the value of `synthesis.grid`.

    Comments and the layout of the data files do not count, only their content.
    """
    if grid == "reduced":
        asked = {
            "violation": prompts.VIOLATION,
            "neighbour": prompts.NEIGHBOUR,
            "twin": prompts.TWIN,
        }
    else:
        asked = {"grid": json.dumps(load_yaml("grid.yaml"), sort_keys=True)}
    return asked | {"entailment": json.dumps(load_yaml("entailment.yaml"), sort_keys=True)}
