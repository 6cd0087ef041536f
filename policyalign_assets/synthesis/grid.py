"""The grid of requests for one rule: intent x persona x format x difficulty, drawn evenly.

Its texts are in grid.yaml.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined, Template

from policyalign_assets.policy import Rule
from policyalign_assets.synthesis.texts import load_yaml


class Cell(NamedTuple):
    intent: str
    persona: str
    format: str
    difficulty: int


@dataclass(frozen=True)
class CellText:
    """The text of each axis for one cell, as the templates see it."""

    intent: str
    persona: str
    format: str
    difficulty: str


def _grid() -> dict[str, Any]:
    return load_yaml("grid.yaml")


# Words of a rule or a model are values here, never templates, so braces in them mean nothing.
_JINJA = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False)
_JINJA.filters["spaced"] = lambda text: " ".join(text.replace(" ", "_"))


@cache
def _template(kind: str, name: str) -> Template:
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
    """`wanted` cells. No cell comes twice before every cell came once.

    At every point the values of each axis are as even as possible.
    """
    rng = random.Random(seed)
    used: Counter[Cell] = Counter()
    seen: Counter[tuple[int, object]] = Counter()
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


def grounds(rule: Rule) -> tuple[str, ...]:
    """Reasons why a request near the rule is allowed: the rule's exceptions and permissions, and,
    where it forbids something under a condition, that the condition is not met."""
    limits = [("exception", limit) for limit in rule.exceptions]
    limits += [("permitted", limit) for limit in rule.permitted]
    if rule.condition and rule.forbids:
        limits.append(("outside_condition", rule.condition))
    return tuple(_template("grounds", name).render(limit=limit) for name, limit in limits)


def prompt(
    kind: str,
    rule: Rule,
    cell: Cell | None,
    request: str = "",
    ground: str = "",
    examples: Sequence[str] = (),
) -> str:
    """What the generator is asked.

    cell: None for twins, which keep to their parent's text. ground: one of `grounds`, for
    neighbours. examples: requests of this kind that the policy's author wrote.
    """
    axes = _grid()["axes"]
    intents = _grid()["duty_intent"] if kind == "duty" else axes["intent"]
    text = cell and CellText(
        intents[cell.intent],
        axes["persona"][cell.persona],
        axes["format"][cell.format],
        axes["difficulty"][cell.difficulty],
    )
    return _template("prompts", kind).render(
        rule=asdict(rule), cell=text, request=request, ground=ground, examples=examples
    )


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
