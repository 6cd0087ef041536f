"""Which instructions each step asks: an endless, seeded stream that draws evenly from every group."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Instruction:
    """`group`: batches hold each group in its share of the whole (a rule's violations, its twins …)."""

    text: str
    group: str = ""


def training_mix(selected: pa.Table) -> list[Instruction]:
    """Selected rows of a FILTERED table as instructions, a group for each rule and kind."""
    return [Instruction(r["text"], f"{r['rule_id']}/{r['kind']}") for r in selected.to_pylist()]


def batch_indices(groups: Sequence[str], size: int, step: int, seed: int) -> list[int]:
    """The `step`-th batch of an endless stream of seeded epochs, each asking every instruction once.

    Within an epoch the members of a group are spread evenly, so that every batch shows (nearly) every rule, and violations and
    benign requests in one proportion. A plain shuffle leaves a rule out of some batches and floods others.
    """
    n = len(groups)
    wanted = range(step * size, (step + 1) * size)
    epochs = {
        epoch: _epoch(groups, random.Random(f"{seed}/{epoch}"))
        for epoch in {i // n for i in wanted}
    }
    return [epochs[i // n][i % n] for i in wanted]


def _epoch(groups: Sequence[str], rng: random.Random) -> list[int]:
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    place: dict[int, tuple[float, float]] = {}
    for rows in members.values():
        rng.shuffle(rows)
        shift = rng.random()
        for j, i in enumerate(rows):
            place[i] = ((j + shift) / len(rows), rng.random())
    return sorted(place, key=place.__getitem__)
