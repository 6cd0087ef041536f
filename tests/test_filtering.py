"""Filtering: the top of each rule, honest twins, and a reason for every row."""

import random
import re
from collections import Counter
from importlib import resources

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policyalign_assets.filtering.select import NothingSelected, select_instructions
from policyalign_assets.settings import FilterSettings
from policyalign_assets.tables import FILTERED, INSTRUCTIONS, SENSITIVITY

SCORES = ("reverse_kl", "forward_kl", "jeffreys", "js", "reverse_kl_p90")


def violating(name, rule, score, **scores):
    return {"instruction_id": name, "rule_id": rule, "kind": "violating", "text": f"text of {name}", "policy_hash": "p",
            **dict.fromkeys(SCORES, score), **scores}


def twin(name, rule, refused, score=0.1):
    return violating(name, rule, score) | {"kind": "twin", "teacher_refused": refused}


def tables(rows):
    keep = INSTRUCTIONS.names
    return (pa.Table.from_pylist([{k: v for k, v in r.items() if k in keep} for r in rows], schema=INSTRUCTIONS),
            pa.Table.from_pylist(rows, schema=SENSITIVITY))


def select(rows, **settings):
    return select_instructions(*tables(rows), FilterSettings(**({"per_rule": 2} | settings))).to_pylist()


def kept(result):
    return {r["instruction_id"] for r in result if r["selected"]}


def reasons(result):
    return {r["instruction_id"]: r["reason"] for r in result}


MANY = [violating(f"{rule}{n}", rule, base + n / 10) for rule, base in (("C1", 5.0), ("C2", 0.0), ("M1", 1.0)) for n in range(5)]


def test_the_top_is_taken_within_each_rule_and_not_over_all():
    result = select(MANY)
    assert kept(result) == {"C13", "C14", "C23", "C24", "M13", "M14"}  # C2 keeps its two, though every other rule scores higher
    assert {r["instruction_id"]: r["rank_in_rule"] for r in result if r["rule_id"] == "C2"} == {"C24": 1, "C23": 2, "C22": 3, "C21": 4, "C20": 5}


def test_a_rule_with_fewer_instructions_keeps_them_all():
    assert kept(select([violating("a", "C1", 0.1), *MANY[5:]], per_rule=4)) == {"a", "C21", "C22", "C23", "C24", "M11", "M12", "M13", "M14"}


@pytest.mark.parametrize("score", SCORES)
def test_the_chosen_score_ranks_and_is_kept_beside_the_row(score):
    rows = [violating("high", "C1", 0.0, **{score: 2.0}), violating("low", "C1", 1.0, **{score: 0.5})]
    result = select(rows, score=score, per_rule=1)
    assert kept(result) == {"high"}
    assert {r["instruction_id"]: r["score"] for r in result} == {"high": 2.0, "low": 0.5}


def test_ties_are_broken_by_id_whatever_the_order_of_the_rows():
    rows = [violating(name, "C1", 1.0) for name in "edcba"]
    expected = select(rows)
    assert kept(expected) == {"a", "b"}
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert select(rows) == expected


def test_twins_that_the_teacher_refuses_or_that_cannot_be_judged_are_dropped_with_the_reason():
    result = select([violating("v", "C1", 1.0), twin("answered", "C1", False), twin("refused", "C1", True), twin("unclear", "C1", None)])
    assert kept(result) == {"v", "answered"}
    assert "refuses" in reasons(result)["refused"]
    assert "could not be judged" in reasons(result)["unclear"]
    assert "answers" in reasons(result)["answered"]


def test_twins_take_no_place_in_the_ranking_and_no_score_drops_them():
    rows = [violating("a", "C1", 2.0), violating("b", "C1", 1.0), *(twin(f"t{n}", "C1", False, score) for n, score in enumerate((9.0, 0.0, 5.0)))]
    result = select(rows, minimum=0.5)
    assert kept(result) == {"a", "b", "t0", "t1", "t2"}
    assert {r["rank_in_rule"] for r in result if r["kind"] == "twin"} == {None}
    assert {r["instruction_id"]: r["rank_in_rule"] for r in result if r["kind"] == "violating"} == {"a": 1, "b": 2}


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_rows_without_a_score_are_dropped_with_a_reason_and_hold_no_place(missing):
    rows = [violating("none", "C1", missing), violating("a", "C1", 0.2), violating("b", "C1", 0.1), twin("t", "C1", False, missing)]
    result = select(rows)
    assert kept(result) == {"a", "b"}
    for name in ("none", "t"):
        assert "no score" in reasons(result)[name]
    assert next(r for r in result if r["instruction_id"] == "none")["rank_in_rule"] is None


def test_scores_below_the_minimum_are_dropped_and_one_at_the_minimum_stays():
    result = select([violating("below", "C1", 0.49), violating("at", "C1", 0.5), violating("poor", "C2", 0.1)], minimum=0.5)
    assert kept(result) == {"at"}
    assert "minimum" in reasons(result)["below"] and "minimum" in reasons(result)["poor"]


def test_what_falls_below_the_top_says_so():
    assert {r["reason"] for r in select(MANY) if not r["selected"]} == {"dropped: below the top of its rule"}


def test_every_row_appears_once_with_a_reason_that_agrees_with_its_fate():
    rows = [*MANY, twin("t1", "C1", True), twin("t2", "C2", None), twin("t3", "M1", False), violating("n", "C1", None)]
    table = select_instructions(*tables(rows), FilterSettings(per_rule=2))
    assert table.schema.equals(FILTERED)
    assert Counter(table["instruction_id"].to_pylist()) == Counter(r["instruction_id"] for r in rows)
    for row in table.to_pylist():
        assert row["reason"].startswith("kept: " if row["selected"] else "dropped: ")
        assert row["text"] == f"text of {row['instruction_id']}" and row["policy_hash"] == "p"


@pytest.mark.parametrize("rows", [[], [violating("a", "C1", 0.1)], [violating("a", "C1", None)], [twin("t", "C1", False)]])
def test_nothing_to_train_on_is_an_error_that_names_the_setting(rows):
    with pytest.raises(NothingSelected, match=r"filtering.minimum=0.5 by js"):
        select(rows, minimum=0.5, score="js")


def test_the_query_can_be_run_by_hand_on_parquet_as_its_header_says(tmp_path):
    rows = [*MANY, twin("t", "C1", True), violating("n", "C2", None)]
    source = resources.files("policyalign_assets.filtering").joinpath("select.sql")
    header = " ".join(line.removeprefix("--").strip() for line in source.read_text().splitlines() if line.startswith("--"))
    commands = re.search(r'duckdb((?: -c "[^"]*")+)', header)[1]
    setup, read = re.findall(r'-c "([^"]*)"', commands)
    assert read == ".read select.sql"  # by itself: the shell reads no dot command inside a statement
    for name, table in zip(("instructions", "scores"), tables(rows)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        setup = re.sub(rf"(VIEW {name} AS FROM )'[^']*'", rf"\1'{tmp_path / name}.parquet'", setup)
    with duckdb.connect() as db:
        db.execute(setup)
        by_hand = db.sql(source.read_text()).to_arrow_table()
    assert by_hand.to_pylist() == select(rows, per_rule=16)


def test_neighbours_are_kept_only_where_the_teacher_answers():
    neighbours = [twin("answered", "C1", False) | {"kind": "neighbour"}, twin("refused", "C1", True) | {"kind": "neighbour"}]
    result = {r["instruction_id"]: r for r in select([violating("v", "C1", 1.0), *neighbours])}
    assert result["answered"]["selected"] and not result["refused"]["selected"]
    assert result["refused"]["reason"] == "dropped: neighbour that the policy-conditioned teacher refuses"
