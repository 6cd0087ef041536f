"""The blocking checks of the data, as Dagster runs them: a partition with a gap stops before
training, unless the owner waived it."""

import json
import shutil
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from helpers import deployed

from policyalign_assets.orchestration import data_checks
from policyalign_assets.orchestration.partitions import NAME, partitions
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.orchestration.storage import ParquetStorage
from policyalign_assets.tables import FILTERED, INSTRUCTIONS, YIELDS

ROOT = Path(__file__).parents[2]
KEY = "medical|general-conduct"
CHECKS = [
    data_checks.no_rule_is_starved,
    data_checks.every_rule_has_its_minimum,
    data_checks.twin_ratio_is_in_band,
    data_checks.nothing_held_out_is_trained_on,
]


def row(name, rule, kind="violating", selected=True, split="train", text=None, cluster=None):
    return {
        "instruction_id": name,
        "rule_id": rule,
        "kind": kind,
        "text": text or f"text of {name}",
        "split": split,
        "selected": selected,
        "cluster": cluster or name,
    }


SOUND = (
    [row(f"{rule}-{n}", rule) for rule in ("C1", "M2") for n in range(4)]
    + [row(f"{rule}-twin", rule, "twin") for rule in ("C1", "M2")]
    + [row("held", "C1", selected=False, split="heldout")]
)


def table(rows, schema):
    return pa.Table.from_pylist(
        [{k: v for k, v in r.items() if k in schema.names} for r in rows], schema=schema
    )


@pytest.fixture()
def run(tmp_path):
    shutil.copytree(ROOT / "policies", tmp_path / "policies")

    def go(rows=SOUND, made=None, waive="", **filtering):
        """Which checks passed, and whether training began."""
        shared = tmp_path / "policies/general-conduct/policy.md"
        shared.write_text(
            (ROOT / "policies/general-conduct/policy.md")
            .read_text()
            .replace("---\n", f"---\n{waive}\n", 1)
        )
        yields = {
            rule: {"wanted": 4, "violating": (made or {}).get(rule, 4)} for rule in ("C1", "M2")
        }

        @dg.asset(partitions_def=partitions, io_manager_key="tables")
        def violating_instructions() -> pa.Table:
            return table(rows, INSTRUCTIONS).replace_schema_metadata(
                {YIELDS: json.dumps({"rules": yields})}
            )

        @dg.asset(partitions_def=partitions, io_manager_key="tables")
        def filtered_instructions(violating_instructions: pa.Table) -> pa.Table:
            return table(rows, FILTERED)

        @dg.asset(partitions_def=partitions)
        def training(filtered_instructions: pa.Table) -> None:
            pass

        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions(NAME, ["medical|general-conduct"])
            with deployed({"filtering": filtering}):
                result = dg.materialize(
                    [violating_instructions, filtered_instructions, training, *CHECKS],
                    partition_key=KEY,
                    instance=instance,
                    raise_on_error=False,
                    resources={
                        "pipeline": Pipeline(
                            policies_dir=str(tmp_path / "policies"),
                            data_dir=str(tmp_path / "data"),
                        ),
                        "tables": ParquetStorage(data_dir=str(tmp_path / "data")),
                    },
                )
            standing = (
                data_checks.failed_checks(instance, KEY),
                data_checks.failed_checks(instance, "legal|general-conduct"),
            )
        evaluations = {e.check_name: e for e in result.get_asset_check_evaluations()}
        assert all(e.partition == KEY for e in evaluations.values())
        failed = {name: e.description for name, e in evaluations.items() if not e.passed}
        assert standing == (sorted(failed), [])  # what a later run of the training alone asks
        return failed, bool(result.asset_materializations_for_node("training"))

    return go


@pytest.mark.slow
def test_sound_data_passes_and_training_begins(run):
    assert run(at_least=4) == ({}, True)


@pytest.mark.parametrize(
    ("waive", "stopped"),
    [("", True), ("waive_starved: [C1]", True), ("waive_starved: [C1, C2]", True)],
)
def test_a_starved_rule_stops_the_partition_and_is_named_with_the_fix(run, waive, stopped):
    failed, trained = run(made={"M2": 3}, waive=waive, at_least=1)
    assert set(failed) == {"no_rule_is_starved"} and trained is not stopped
    assert (
        "M2 (3 of 4)" in failed["no_rule_is_starved"]
        and "waive_starved: [M2]" in failed["no_rule_is_starved"]
    )


@pytest.mark.slow
def test_a_waiver_in_the_front_matter_lets_a_starved_rule_pass(run):
    rows = [r for r in SOUND if r["rule_id"] == "M2"] + [row("C1-0", "C1")]
    assert set(run(rows, {"C1": 1}, at_least=4)[0]) == {"no_rule_is_starved"}
    assert run(rows, {"C1": 1}, "waive_starved: [C1]", at_least=4) == ({}, True)


@pytest.mark.slow
def test_a_rule_below_its_minimum_stops_the_partition(run):
    rows = [
        r | {"selected": r["selected"] and not r["instruction_id"].startswith("M2-1")}
        for r in SOUND
    ]
    failed, trained = run(rows, at_least=4)
    assert (
        set(failed) == {"every_rule_has_its_minimum"}
        and "M2 (3)" in failed["every_rule_has_its_minimum"]
        and not trained
    )
    assert run(rows, at_least=3) == ({}, True)
    assert run(rows, at_least=99, per_rule=3) == ({}, True)  # never more than the quota


@pytest.mark.slow
def test_allowed_requests_by_the_author_count_as_twins(run):
    near = [row(f"near-{n}", "C1", "neighbour") for n in range(2)]
    failed, _ = run(SOUND + near, at_least=1, twins_low=0.5)  # 2 twins for 8
    assert set(failed) == {"twin_ratio_is_in_band"}
    by_author = [r | {"model_id": "author"} for r in near]
    assert run(SOUND + by_author, at_least=1, twins_low=0.5) == ({}, True)
    many = [row(f"near-{n}", "C1", "neighbour") | {"model_id": "author"} for n in range(9)]
    assert run(SOUND + many, at_least=1) == ({}, True)  # and are never too many


@pytest.mark.slow
def test_a_rule_without_any_row_is_not_overlooked(run):
    failed, _ = run([r for r in SOUND if r["rule_id"] == "C1"], at_least=1, twins_low=0.0)
    assert "M2 (0)" in failed["every_rule_has_its_minimum"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("band", "passes"), [((0.2, 0.9), True), ((0.3, 0.9), False), ((0.0, 0.2), False)]
)
def test_the_twin_ratio_must_lie_in_its_band(run, band, passes):
    failed, trained = run(at_least=1, twins_low=band[0], twins_high=band[1])  # 2 twins for 8
    assert (failed == {}) is passes is trained
    assert passes or "0.25 twins" in failed["twin_ratio_is_in_band"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "leak",
    [
        row("held", "C1", selected=True, split="heldout"),
        row("other", "M2", text="TEXT of held"),
        row("near", "C1", cluster="held"),
    ],
)
def test_a_held_out_row_in_training_stops_the_partition(run, leak):
    failed, trained = run(
        [*[r for r in SOUND if r["instruction_id"] != leak["instruction_id"]], leak], at_least=1
    )
    assert set(failed) == {"nothing_held_out_is_trained_on"} and not trained
