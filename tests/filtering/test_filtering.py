"""Filtering: the top of each rule, honest twins, and a reason for every row."""

import random
import re
from collections import Counter
from importlib import resources

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policyalign_assets.filtering.select import (
    NothingSelected,
    TablesDoNotMatch,
    conformance_set,
    select_instructions,
)
from policyalign_assets.settings import FilterSettings
from policyalign_assets.tables import FILTERED, INSTRUCTIONS, SENSITIVITY

SCORES = ("reverse_kl", "forward_kl", "jeffreys", "js", "reverse_kl_p90")


def violating(name, rule, score, **scores):
    return {
        "instruction_id": name,
        "rule_id": rule,
        "kind": "violating",
        "text": f"text of {name}",
        "policy_hash": "p",
        **dict.fromkeys(SCORES, score),
        **scores,
    }


def twin(name, rule, refused, score=0.1):
    return violating(name, rule, score) | {"kind": "twin", "teacher_refused": refused}


def tables(rows):
    keep = INSTRUCTIONS.names
    return (
        pa.Table.from_pylist(
            [{k: v for k, v in r.items() if k in keep} for r in rows], schema=INSTRUCTIONS
        ),
        pa.Table.from_pylist(rows, schema=SENSITIVITY),
    )


def select(rows, **settings):
    return select_instructions(
        *tables(rows), FilterSettings(**({"per_rule": 2} | settings))
    ).to_pylist()


def kept(result):
    return {r["instruction_id"] for r in result if r["selected"]}


def reasons(result):
    return {r["instruction_id"]: r["reason"] for r in result}


MANY = [
    violating(f"{rule}{n}", rule, base + n / 10)
    for rule, base in (("C1", 5.0), ("C2", 0.0), ("M1", 1.0))
    for n in range(5)
]


def test_the_top_is_taken_within_each_rule_and_not_over_all():
    result = select(MANY)
    assert kept(result) == {
        "C13",
        "C14",
        "C23",
        "C24",
        "M13",
        "M14",
    }  # C2 keeps its two, though every other rule scores higher
    assert {r["instruction_id"]: r["rank_in_rule"] for r in result if r["rule_id"] == "C2"} == {
        "C24": 1,
        "C23": 2,
        "C22": 3,
        "C21": 4,
        "C20": 5,
    }


def test_a_rule_with_fewer_instructions_keeps_them_all():
    assert kept(select([violating("a", "C1", 0.1), *MANY[5:]], per_rule=4)) == {
        "a",
        "C21",
        "C22",
        "C23",
        "C24",
        "M11",
        "M12",
        "M13",
        "M14",
    }


@pytest.mark.parametrize("score", SCORES)
def test_the_chosen_score_ranks_and_is_kept_beside_the_row(score):
    rows = [
        violating("high", "C1", 0.0, **{score: 2.0}),
        violating("low", "C1", 1.0, **{score: 0.5}),
    ]
    result = select(rows, score=score, per_rule=1)
    assert kept(result) == {"high"}
    assert {r["instruction_id"]: r["score"] for r in result} == {"high": 2.0, "low": 0.5}


def test_flips_come_first_and_the_shift_decides_among_them():
    rows = [
        violating("flip-small", "C1", 0.1, flip=True),
        violating("flip-large", "C1", 0.4, flip=True),
        violating("none", "C1", 0.9, flip=False),
        violating("unjudged", "C1", 2.0, flip=None),
    ]
    assert kept(select(rows, score="flip", per_rule=1)) == {"flip-large"}
    assert kept(select(rows, score="flip", per_rule=4)) == {"flip-small", "flip-large", "none"}


def test_a_random_choice_is_seeded_and_takes_no_account_of_the_scores():
    rows = [violating(f"v{n:03d}", "C1", n / 100) for n in range(100)]
    first, again, other = (
        kept(select(rows, score="random", per_rule=50, seed=s)) for s in (1, 1, 2)
    )
    assert first == again != other
    assert 15 < len(first & kept(select(rows, per_rule=50))) < 35  # half of half


@pytest.mark.parametrize(
    ("share", "at_least", "per_rule", "sizes"),
    [
        (0.5, 0, 99, (5, 2)),
        (0.5, 4, 99, (5, 3)),
        (0.5, 0, 2, (2, 2)),
        (0.01, 0, 99, (1, 1)),
        (0.5, 99, 99, (10, 3)),
        (0.2, 4, 3, (3, 3)),
    ],
)
def test_a_share_of_each_rule_but_at_least_so_many_and_never_more_than_the_quota(
    share, at_least, per_rule, sizes
):
    rows = [
        violating(f"{rule}-{n}", rule, 1 + n)
        for rule, size in (("C1", 10), ("C2", 3))
        for n in range(size)
    ]
    chosen = kept(select(rows, share=share, at_least=at_least, per_rule=per_rule))
    assert chosen == {
        f"{rule}-{size - 1 - n}"
        for rule, size, k in (("C1", 10, sizes[0]), ("C2", 3, sizes[1]))
        for n in range(k)
    }


def test_elicitations_of_a_duty_are_ranked_like_violations():
    rows = [
        violating(f"d{n}", "M8", float(n)) | {"kind": "duty", "teacher_refused": False}
        for n in range(4)
    ]
    assert kept(select(rows, per_rule=2)) == {"d2", "d3"}


def test_what_is_held_out_is_never_selected_and_takes_no_place():
    rows = [
        violating("held", "C1", 9.0) | {"split": "heldout"},
        twin("held-twin", "C1", False) | {"split": "heldout"},
        violating("a", "C1", 2.0) | {"split": "train"},
        violating("b", "C1", 1.0),
    ]
    result = {r["instruction_id"]: r for r in select(rows)}
    assert {k for k, r in result.items() if r["selected"]} == {"a", "b"}
    assert result["held"]["rank_in_rule"] is None
    assert {r["reason"] for r in result.values() if r["split"] == "heldout"} == {
        "held out: never trained on"
    }
    assert result["a"]["rank_in_rule"] == 1
    assert conformance_set(tables(rows)[0])["instruction_id"].to_pylist() == ["held", "held-twin"]


def test_a_text_that_another_rule_holds_out_is_not_trained_on_either():
    rows = [
        violating("held", "C1", 9.0) | {"split": "heldout", "text": "Forge it."},
        violating("same", "C2", 8.0) | {"text": "forge it."},
        violating("a", "C2", 1.0),
    ]
    result = select(rows)
    assert kept(result) == {"a"} and "held-out" in reasons(result)["same"]


def test_tables_from_before_the_split_are_read_as_training_data():
    old, scores = tables(MANY)
    old = old.drop_columns(["split", "intent", "cluster"])
    assert kept(select_instructions(old, scores, FilterSettings(per_rule=2)).to_pylist()) == kept(
        select(MANY)
    )
    assert conformance_set(old).num_rows == 0


def test_ties_are_broken_by_id_whatever_the_order_of_the_rows():
    rows = [violating(name, "C1", 1.0) for name in "edcba"]
    expected = select(rows)
    assert kept(expected) == {"a", "b"}
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert select(rows) == expected


def test_twins_that_the_teacher_refuses_or_that_cannot_be_judged_are_dropped_with_the_reason():
    result = select(
        [
            violating("v", "C1", 1.0),
            twin("answered", "C1", False),
            twin("refused", "C1", True),
            twin("unclear", "C1", None),
        ]
    )
    assert kept(result) == {"v", "answered"}
    assert "refuses" in reasons(result)["refused"]
    assert "could not be judged" in reasons(result)["unclear"]
    assert "answers" in reasons(result)["answered"]


def test_twins_take_no_place_in_the_ranking_and_no_score_drops_them():
    rows = [
        violating("a", "C1", 2.0),
        violating("b", "C1", 1.0),
        *(twin(f"t{n}", "C1", False, score) for n, score in enumerate((9.0, 0.0, 5.0))),
    ]
    result = select(rows, minimum=0.5)
    assert kept(result) == {"a", "b", "t0", "t1", "t2"}
    assert {r["rank_in_rule"] for r in result if r["kind"] == "twin"} == {None}
    assert {r["instruction_id"]: r["rank_in_rule"] for r in result if r["kind"] == "violating"} == {
        "a": 1,
        "b": 2,
    }


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_rows_without_a_score_are_dropped_with_a_reason_and_hold_no_place(missing):
    rows = [
        violating("none", "C1", missing),
        violating("a", "C1", 0.2),
        violating("b", "C1", 0.1),
        twin("t", "C1", False, missing),
    ]
    result = select(rows)
    assert kept(result) == {"a", "b"}
    for name in ("none", "t"):
        assert "no score" in reasons(result)[name]
    assert next(r for r in result if r["instruction_id"] == "none")["rank_in_rule"] is None


def test_scores_below_the_minimum_are_dropped_and_one_at_the_minimum_stays():
    result = select(
        [violating("below", "C1", 0.49), violating("at", "C1", 0.5), violating("poor", "C2", 0.1)],
        minimum=0.5,
    )
    assert kept(result) == {"at"}
    assert "minimum" in reasons(result)["below"] and "minimum" in reasons(result)["poor"]


def test_what_falls_below_the_top_says_so():
    assert {r["reason"] for r in select(MANY) if not r["selected"]} == {
        "dropped: below the top of its rule"
    }


def test_every_row_appears_once_with_a_reason_that_agrees_with_its_fate():
    rows = [
        *MANY,
        twin("t1", "C1", True),
        twin("t2", "C2", None),
        twin("t3", "M1", False),
        violating("n", "C1", None),
    ]
    table = select_instructions(*tables(rows), FilterSettings(per_rule=2))
    assert table.schema.equals(FILTERED)
    assert Counter(table["instruction_id"].to_pylist()) == Counter(
        r["instruction_id"] for r in rows
    )
    for row in table.to_pylist():
        assert row["reason"].startswith("kept: " if row["selected"] else "dropped: ")
        assert row["text"] == f"text of {row['instruction_id']}" and row["policy_hash"] == "p"


@pytest.mark.parametrize(
    "rows",
    [[], [violating("a", "C1", 0.1)], [violating("a", "C1", None)], [twin("t", "C1", False)]],
)
def test_nothing_to_train_on_is_an_error_that_names_the_setting(rows):
    with pytest.raises(NothingSelected, match=r"filtering.minimum=0.5 by js"):
        select(rows, minimum=0.5, score="js")


def test_the_query_can_be_run_by_hand_on_parquet_as_its_header_says(tmp_path):
    rows = [*MANY, twin("t", "C1", True), violating("n", "C2", None)]
    source = resources.files("policyalign_assets.filtering").joinpath("select.sql")
    header = " ".join(
        line.removeprefix("--").strip()
        for line in source.read_text().splitlines()
        if line.startswith("--")
    )
    commands = re.search(r'duckdb((?: -c "[^"]*")+)', header)[1]
    setup, read = re.findall(r'-c "([^"]*)"', commands)
    assert (
        read == ".read select.sql"
    )  # by itself: the shell reads no dot command inside a statement
    for name, table in zip(("instructions", "scores"), tables(rows)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        setup = re.sub(rf"(VIEW {name} AS FROM )'[^']*'", rf"\1'{tmp_path / name}.parquet'", setup)
    with duckdb.connect() as db:
        db.execute(setup)
        by_hand = db.sql(source.read_text()).to_arrow_table()
    assert by_hand.to_pylist() == select(rows, per_rule=16)


def test_neighbours_are_kept_only_where_the_teacher_answers():
    neighbours = [
        twin("answered", "C1", False) | {"kind": "neighbour"},
        twin("refused", "C1", True) | {"kind": "neighbour"},
    ]
    result = {r["instruction_id"]: r for r in select([violating("v", "C1", 1.0), *neighbours])}
    assert result["answered"]["selected"] and not result["refused"]["selected"]
    assert (
        result["refused"]["reason"]
        == "dropped: neighbour that the policy-conditioned teacher refuses"
    )


def test_an_instruction_without_a_score_is_dropped_and_says_so():
    instructions, scores = tables([*MANY, violating("lost", "C1", 9.0)])
    known = [i for i, name in enumerate(scores["instruction_id"].to_pylist()) if name != "lost"]
    result = select_instructions(instructions, scores.take(known), FilterSettings(per_rule=2))
    rows = result.to_pylist()
    assert reasons(rows)["lost"] == "dropped: not in the table of scores"
    assert len(rows) == len(MANY) + 1
    assert kept(rows) == kept(select(MANY))


def test_scores_of_other_instructions_and_repeated_ids_are_refused():
    instructions, scores = tables(MANY)
    with pytest.raises(TablesDoNotMatch, match=r"5 of 15 scores belong to no instruction.* Fix: "):
        select_instructions(instructions.slice(5), scores, FilterSettings())
    twice = pa.concat_tables([instructions, instructions.slice(0, 2)])
    with pytest.raises(TablesDoNotMatch, match="2 ids occur more than once among the instructions"):
        select_instructions(twice, scores, FilterSettings())
    with pytest.raises(TablesDoNotMatch, match="1 ids occur more than once among the scores"):
        select_instructions(
            instructions, pa.concat_tables([scores, scores.slice(0, 1)]), FilterSettings()
        )


def test_every_row_leaves_with_exactly_one_reason():
    rows = [*MANY, twin("t", "C1", False), twin("u", "C2", True), twin("w", "M1", None)]
    result = select(rows, per_rule=1)
    assert Counter(r["instruction_id"] for r in result) == dict.fromkeys(reasons(result), 1)
    assert all(r["reason"].startswith(("kept", "dropped", "held out")) for r in result)
    assert len(result) == len(rows)
