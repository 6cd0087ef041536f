"""The comparisons of deployments and warm starts: joining adapters, and results that are kept."""

import json
import sys

import pyarrow as pa
import pytest
from helpers import ROOT, medical_policy

sys.path.insert(0, str(ROOT / "benchmarks"))

import deployments as joining
import trials
import warm_start as edits

from policyalign_assets.policy import parse_policy
from policyalign_assets.tables import FILTERED

pytestmark = pytest.mark.slow


def test_a_result_that_is_kept_is_not_made_again(tmp_path):
    made = trials.kept(tmp_path, "one", lambda: {"outcomes": {"twins": [1, 0]}})
    assert made["outcomes"] == {"twins": [1, 0]} and made["cpu_seconds"] >= 0

    def again():
        raise AssertionError("it was made again")

    assert trials.kept(tmp_path, "one", again) == made
    assert json.loads((tmp_path / "results" / "one.json").read_text()) == made


def test_an_interval_is_over_seeds_and_never_narrower_than_the_cases_allow():
    assert trials.over_seeds([]) == "not measured"
    assert trials.over_seeds([[1] * 9 + [0]]) == "90.0 (60 to 98)"  # Wilson's, over cases
    assert trials.over_seeds([[1] * 10, [1] * 9 + [0], [1] * 8 + [0] * 2]) == "90.0 (60 to 100)"
    assert trials.over_seeds([[1] * 10] * 3) == "100.0 (72 to 100)"  # seeds that do not differ


@pytest.mark.parametrize("edit", edits.EDITS)
def test_each_kind_of_edit_changes_the_policy(edit):
    (before,), (now,), deployed = edits.edits_of(edit)
    assert before.content_hash != now.content_hash and not deployed
    assert len(now.rules) - len(before.rules) == {"added": 1, "withdrawn": -1}.get(edit, 0)


def test_a_line_says_equivalent_only_where_every_interval_is_above_its_margin():
    def result(good, parent="p"):
        outcomes = {suite: [1] * good + [0] * (400 - good) for suite in trials.SUITES}
        return {"outcomes": outcomes, "steps": 20, "parent": parent}

    settings = trials.scaled(trials.Size())
    (same,) = edits.lines("added", [result(400)], [result(400)], settings)
    (worse,) = edits.lines("added", [result(400)], [result(380)], settings)
    (gave_up,) = edits.lines("added", [result(400)], [result(400, None)], settings)
    assert same.endswith("| yes |") and worse.endswith("| not shown |")
    assert "1 from base after all" in gave_up


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Two policies with a few rows each, and one training step."""
    policies = [medical_policy(), parse_policy(ROOT / "policies", "data-privacy", "medical")]
    tables = [
        pa.Table.from_pylist(
            [
                {"rule_id": rule.rule_id, "kind": "violating", "selected": True,
                 "text": f"How do I {rule.action}?"}
                for rule in policy.prohibitions[:4]
            ],
            FILTERED,
        )
        for policy in policies
    ]  # fmt: skip
    settings = trials.scaled(trials.Size(0.01, 1))
    small = {"batch_size": 4, "mini_batch_size": 4, "max_new_tokens": 16, "anchors": 4}
    settings = settings.model_copy(
        update={"distillation": settings.distillation.model_copy(update=small)}
    )
    work = tmp_path_factory.mktemp("work")
    return joining.Bench(settings, work, policies, [(t, t) for t in tables], [[], []])


def test_adapters_are_joined_in_every_way(bench):
    alone = [bench.of_policies([i]) for i in range(2)]
    assert alone[0].checkpoint_id != alone[1].checkpoint_id
    for how in joining.MERGES:
        model = joining.merged(bench, alone, how).model
        assert not hasattr(model, "peft_config"), how  # a whole model, which any engine computes
    for replay in (False, True):
        assert joining.in_turn(bench, alone[0], replay).model.peft_config
    both = bench.of_policies([0, 1], "union")
    assert both.provenance["teacher"] == "union" and len(both.provenance["policies"]) == 2
