"""The grid of requests for one rule: intent x persona x format x difficulty, drawn evenly, with its words in grid.yaml."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from itertools import product
from typing import NamedTuple

import yaml
from jinja2 import Environment, StrictUndefined

from policyalign_assets.policy import Rule


class Cell(NamedTuple):
    intent: str
    persona: str
    format: str
    difficulty: int


@dataclass(frozen=True)
class Words:
    """What the axes say for one cell, as the templates see it."""

    intent: str
    persona: str
    format: str
    difficulty: str


@cache
def _grid() -> dict:
    text = resources.files(__package__).joinpath("grid.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def content() -> dict:
    """The words of the grid, parsed: its comments and layout do not count."""
    return _grid()


# A rule's or a model's words are values here, never templates, so that braces in them mean nothing.
_JINJA = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False)
_JINJA.filters["spaced"] = lambda text: " ".join(text.replace(" ", "_"))


@cache
def _template(kind: str, name: str):
    return _JINJA.from_string(_grid()[kind][name])


def cells(kind: str) -> tuple[Cell, ...]:
    """Every cell of the grid for a kind of row; duties have intents of their own."""
    axes = _grid()["axes"]
    intents, personas = (
        (_grid()["duty_intent"], _grid()["duty_persona"])
        if kind == "duty"
        else (axes["intent"], axes["persona"])
    )
    return tuple(Cell(*c) for c in product(intents, personas, axes["format"], axes["difficulty"]))


def spread(grid: Sequence[Cell], wanted: int, seed: int) -> list[Cell]:
    """`wanted` cells: no cell twice before every cell came once, and the values of each axis as even as can be all along."""
    rng = random.Random(seed)
    used, seen = Counter(), Counter()
    drawn: list[Cell] = []
    tie = {cell: rng.random() for cell in grid}
    for _ in range(wanted):
        cell = min(
            grid,
            key=lambda c: (used[c], sum(seen[axis, value] for axis, value in enumerate(c)), tie[c]),
        )
        used[cell] += 1
        seen.update(enumerate(cell))
        drawn.append(cell)
    return drawn


def prompt(kind: str, rule: Rule, cell: Cell | None, request: str = "") -> str:
    axes = _grid()["axes"]
    intents = _grid()["duty_intent"] if kind == "duty" else axes["intent"]
    said = (
        Words(
            intents[cell.intent],
            axes["persona"][cell.persona],
            axes["format"][cell.format],
            axes["difficulty"][cell.difficulty],
        )
        if cell
        else None
    )
    return _template("prompts", kind).render(rule=asdict(rule), cell=said, request=request)


def styles() -> tuple[str, ...]:
    return tuple(_grid()["styles"])


def styled(style: str, request: str) -> str:
    return _template("styles", style).render(request=request)


def defensive(asked: str) -> str:
    return _template("ladder", "defensive").render(prompt=asked)


def prefill() -> str:
    return _grid()["ladder"]["prefill"]


def examples() -> list[tuple[str, str]]:
    return [tuple(pair) for pair in _grid()["ladder"]["few_shot"]]
