"""Coverage: the figures that say how evenly and how variedly the instructions cover a policy."""

import pyarrow as pa
import pytest

from policyalign_assets.report.coverage_plot import coverage_plot
from policyalign_assets.synthesis.coverage import (
    coverage,
    distinct,
    effective_number,
    gini,
    self_bleu,
)
from policyalign_assets.synthesis.grid import cells
from policyalign_assets.tables import FILTERED, INSTRUCTIONS, SENSITIVITY


def counted(**changed):
    return {
        "wanted": 3,
        "violating": 3,
        "twins": 1,
        "neighbours": 0,
        "heldout": 1,
        "drafted": 9,
        "dropped": {},
        "refused": {},
    } | changed


def row(name, rule, kind="violating", parent=None, cluster=None, **more):
    return {
        "instruction_id": name,
        "rule_id": rule,
        "kind": kind,
        "parent_id": parent,
        "text": f"how do I reach {name}",
        "cluster": cluster or name,
        **more,
    }


def table(rows, schema):
    return pa.Table.from_pylist(
        [{k: v for k, v in r.items() if k in schema.names} for r in rows], schema=schema
    )


ROWS = [
    row("a", "C1"),
    row("b", "C1", cluster="a"),
    row("c", "C1"),
    row("t", "C1", "twin", "a"),
    row("s", "C1", parent="a", style="fiction"),
    row("d", "C2"),
    row("e", "C2"),
    row("n", "C2", "neighbour"),
]
YIELDS = {
    "C1": counted(dropped={"near_evaluation": 2, "pii": 1}, refused={"plain": 4, "defensive": 1}),
    "C2": counted(violating=2),
    "M8": counted(violating=0),
}


def test_every_rule_is_counted_even_one_without_rows():
    found = coverage(table(ROWS, INSTRUCTIONS), YIELDS)
    c1, c2, m8 = found.rules
    assert [(r.rule_id, r.made, r.starved) for r in found.rules] == [
        ("C1", 4, False),
        ("C2", 2, True),
        ("M8", 0, True),
    ]
    assert (found.minimum, found.starved) == (0, ["C2", "M8"])
    assert (c1.clusters, c1.refused, c1.drafted, c1.firewall_hits) == (2, 4, 9, 2)
    assert c1.effective_clusters == pytest.approx(effective_number([2, 1]))
    assert m8.distinct_2 is None and m8.self_bleu is None and c2.empty_cells is None
    assert c1.selected is None and c1.flips is None


def test_selection_flips_and_twins():
    chosen = [
        r
        | {
            "selected": r["instruction_id"] in "abdt",
            "rank_in_rule": 1 if r["kind"] == "violating" else None,
            "score": 0.5,
        }
        for r in ROWS
    ]
    scored = [r | {"flip": {"b": False, "c": None}.get(r["instruction_id"], True)} for r in ROWS]
    found = coverage(
        table(ROWS, INSTRUCTIONS), YIELDS, table(chosen, FILTERED), table(scored, SENSITIVITY)
    )
    assert [(r.selected, r.selected_twins) for r in found.rules] == [(2, 1), (1, 0), (0, 0)]
    assert found.twin_ratio == pytest.approx(1 / 3) and found.uneven == pytest.approx(
        gini([2, 1, 0])
    )
    c1, c2, m8 = (r.flips for r in found.rules)
    assert (c1.k, c1.n, c2.k, c2.n) == (
        2,
        3,
        2,
        2,
    ) and m8 is None  # twins and neighbours count for nothing here
    assert c1.low < 2 / 3 < c1.high
    assert found.scores == {"C1": [0.5] * 4, "C2": [0.5] * 2}
    for drawn in (found, coverage(table(ROWS, INSTRUCTIONS), YIELDS)):
        assert coverage_plot(drawn, "js").startswith(b"\x89PNG")


def test_cells_without_a_request_are_counted():
    asked = cells("violating")[:3]
    rows = [row(str(n), "C1", **asked[n]._asdict()) for n in (0, 1)] + [
        row("again", "C1", **asked[1]._asdict())
    ]
    assert coverage(table(rows, INSTRUCTIONS), {"C1": counted()}).rules[0].empty_cells == 1


@pytest.mark.parametrize(
    ("counts", "value"),
    [([5, 5, 5], 0.0), ([0, 0, 9], 2 / 3), ([1, 3], 0.25), ([], 0.0), ([0, 0], 0.0)],
)
def test_gini(counts, value):
    assert gini(counts) == pytest.approx(value)


@pytest.mark.parametrize(("sizes", "value"), [([4, 4, 4], 3.0), ([7], 1.0), ([], 0.0)])
def test_effective_number(sizes, value):
    assert effective_number(sizes) == pytest.approx(value)


def test_distinct_counts_pairs_within_texts_only():
    assert distinct([["a", "b", "c"], ["a", "b"]], 2) == pytest.approx(2 / 3)
    assert distinct([["a"]], 2) is None


def reference_bleu(text, others):
    """BLEU as in its paper (Papineni 2002), computed the slow way.

    With add-one smoothing above unigrams (Lin and Och 2004).
    """
    import math
    from collections import Counter

    def grams(t, n):
        return Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1))

    logs = 0.0
    for n in range(1, 5):
        own = grams(text, n)
        clipped = sum(min(c, max(grams(o, n)[g] for o in others)) for g, c in own.items())
        add = int(n > 1)
        if not clipped + add:
            return 0.0
        logs += math.log((clipped + add) / (sum(own.values()) + add)) / 4
    closest = min((len(o) for o in others), key=lambda m: (abs(m - len(text)), m))
    return math.exp(logs + min(0.0, 1 - closest / len(text)))


def test_self_bleu_equals_bleu_against_all_others():
    texts = [
        t.split()
        for t in (
            "the cat sat on the mat",
            "the cat sat on a mat today",
            "a dog ran",
            "the the the cat",
            "nothing shared with any",
        )
    ]
    expected = sum(
        reference_bleu(t, texts[:i] + texts[i + 1 :]) for i, t in enumerate(texts)
    ) / len(texts)
    assert self_bleu(texts) == pytest.approx(expected)
    assert self_bleu([["same", "words", "in", "all"]] * 3) == pytest.approx(1.0)
    assert self_bleu([["one"]]) is None
