"""Holds out a tenth of the requests: whole clusters of similar ones per rule, never trained on.

A split of single rows would leave a near-copy of a test request in training. A row that was made
from another one (a twin, a styled request, a recombined neighbour) goes where its parent goes. A
cluster larger than the rest of the tenth is passed over. So a rule whose requests are all similar
holds out less, or nothing, and the coverage table shows it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse.csgraph import connected_components

from policyalign_assets.synthesis.duplicates import minhash

TRAIN, HELDOUT = "train", "heldout"
CLUSTER_SIMILARITY = 0.6  # MinHash Jaccard similarity on character 5-grams


def clusters(texts: Sequence[str], similarity: float = CLUSTER_SIMILARITY) -> list[int]:
    """The cluster of each text. Texts that are similar, directly or through others, share one."""
    if not texts:
        return []
    signatures = np.stack([minhash(t).hashvalues for t in texts])
    linked = np.stack([(signatures == own).mean(1) >= similarity for own in signatures])
    return connected_components(linked, directed=False)[1].tolist()


def assign(rows: list[dict[str, Any]], share: float, seed: int) -> None:
    """Sets `cluster` and `split` of one rule's rows. It depends on these rows, not their order."""
    roots = [r for r in rows if r["parent_id"] is None]
    for row, label in zip(roots, clusters([r["text"] for r in roots]), strict=True):
        row["cluster"] = label
    named = {
        label: min(r["instruction_id"] for r in roots if r["cluster"] == label)
        for label in {r["cluster"] for r in roots}
    }
    for row in roots:
        row["cluster"] = named[row["cluster"]]
    held = _heldout_clusters(roots, share, seed)
    by_id = {r["instruction_id"]: r for r in rows}
    for row in rows:
        root = row
        while root["parent_id"] is not None:
            root = by_id[root["parent_id"]]
        row["cluster"] = root["cluster"]
        row["split"] = HELDOUT if root["cluster"] in held else TRAIN


def _heldout_clusters(roots: list[dict[str, Any]], share: float, seed: int) -> set[str]:
    """Clusters in random order, as long as they fit into `share` of every kind of row."""
    held: set[str] = set()
    left = {kind: round(share * n) for kind, n in Counter(r["kind"] for r in roots).items()}
    names = {r["cluster"] for r in roots}
    for name in sorted(names, key=lambda c: hashlib.sha256(f"{seed}/{c}".encode()).digest()):
        # One cluster can hold a violation and a neighbour.
        size = Counter(r["kind"] for r in roots if r["cluster"] == name)
        if all(n <= left[kind] for kind, n in size.items()):
            held.add(name)
            left = {kind: n - size[kind] for kind, n in left.items()}
    return held
