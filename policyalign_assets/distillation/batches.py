"""Chooses the instructions of each step: an endless, seeded stream, even over all groups."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Instruction:
    """A request to train on.

    Each batch holds every `group` in its share of the whole. A group is for example one rule's
    violations, or its benign twins. `policy` says which of the run's policies the teacher of this
    request reads.
    """

    text: str
    group: str = ""
    policy: int = 0


def training_mix(selected: pa.Table, policy: int = 0, prefix: str = "") -> list[Instruction]:
    """The selected rows of a FILTERED table as instructions, one group per rule and kind.

    Where a run teaches several policies, `prefix` keeps their groups apart.
    """
    return [
        Instruction(r["text"], f"{prefix}{r['rule_id']}/{r['kind']}", policy)
        for r in selected.to_pylist()
    ]


def batch_indices(groups: Sequence[str], size: int, step: int, seed: int) -> list[int]:
    """Indices of the `step`-th batch of an endless stream of seeded epochs.

    Each epoch holds every instruction once. Within an epoch the members of a group are spread
    evenly, so that nearly every batch shows every rule, with violations and benign requests in a
    constant proportion. A plain shuffle would leave a rule out of some batches and overrepresent
    it in others.
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
