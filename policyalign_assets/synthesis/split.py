"""The held-out tenth: whole clusters of near-alike requests per rule, never trained on, to test with.

Splitting single rows would leave a near-copy of a test request in training. A row made from another one (twin, styled
request, recombined neighbour) goes where its parent goes. A cluster that is larger than the rest of the tenth is passed
over, so a rule whose requests are all alike holds out less, or nothing, and coverage shows it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse.csgraph import connected_components

from policyalign_assets.synthesis.duplicates import minhash

TRAIN, HELDOUT = "train", "heldout"
ALIKE = 0.6  # MinHash Jaccard on character 5-grams


def clusters(texts: Sequence[str], alike: float = ALIKE) -> list[int]:
    """The cluster of each text: texts that are alike, directly or by way of others, share one."""
    if not texts:
        return []
    signatures = np.stack([minhash(t).hashvalues for t in texts])
    linked = np.stack([(signatures == own).mean(1) >= alike for own in signatures])
    return connected_components(linked, directed=False)[1].tolist()


def assign(rows: list[dict], share: float, seed: int) -> None:
    """Sets `cluster` and `split` of one rule's rows. Depends on these rows alone, and not on their order."""
    roots = [r for r in rows if r["parent_id"] is None]
    for row, label in zip(roots, clusters([r["text"] for r in roots])):
        row["cluster"] = label
    named = {
        label: min(r["instruction_id"] for r in roots if r["cluster"] == label)
        for label in {r["cluster"] for r in roots}
    }
    for row in roots:
        row["cluster"] = named[row["cluster"]]
    held: set[str] = set()
    left = {kind: round(share * n) for kind, n in Counter(r["kind"] for r in roots).items()}
    for name in sorted(
        set(named.values()), key=lambda c: hashlib.sha256(f"{seed}/{c}".encode()).digest()
    ):
        size = Counter(
            r["kind"] for r in roots if r["cluster"] == name
        )  # near a violation there may be a neighbour
        if all(n <= left[kind] for kind, n in size.items()):
            held.add(name)
            left = {kind: n - size[kind] for kind, n in left.items()}
    by_id = {r["instruction_id"]: r for r in rows}
    for row in rows:
        root = row
        while root["parent_id"] is not None:
            root = by_id[root["parent_id"]]
        row["cluster"] = root["cluster"]
        row["split"] = HELDOUT if root["cluster"] in held else TRAIN
