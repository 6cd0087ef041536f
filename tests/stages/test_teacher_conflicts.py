"""Two policies whose rules conflict: in their words, and in what their teachers do."""

from dataclasses import replace

import pyarrow as pa
import pytest
from helpers import ROOT, medical_policy

from policyalign_assets.policy import parse_policy
from policyalign_assets.settings import load_settings
from policyalign_assets.stages.deployed_checkpoint import EXAMPLES, make
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.tables import FILTERED

pytestmark = pytest.mark.slow

QUICK = {"steps": 1, "batch_size": 4, "mini_batch_size": 4, "max_new_tokens": 24, "anchors": 4}


def table(*rows):
    return pa.Table.from_pylist(
        [
            {"rule_id": rule, "kind": kind, "text": text, "selected": True}
            for rule, kind, text in rows
        ],
        FILTERED,
    )


def deployed(data, policies, tables, teacher="routed"):
    overrides = {"distillation": QUICK, "deployment": {"teacher": teacher}}
    settings = load_settings(overrides=overrides, environ={})
    keys = [f"medical|{p.policy_id}" for p in policies]
    return make(
        StageContext(settings, data, deployment="ward"),
        dict(zip(keys, policies, strict=True)),
        dict(zip(keys, tables, strict=True)),
    )


@pytest.mark.parametrize("teacher", ["routed", "union"])
def test_a_request_on_which_two_teachers_disagree_is_named_with_both_policies(tmp_path, teacher):
    general = medical_policy()
    privacy = parse_policy(ROOT / "policies", "data-privacy", "medical")
    # Planted: requests that data privacy lets through and general conduct forbids, in words that
    # its rules share with no rule of data privacy.
    planted = [f"{opening} forge a signature?" for opening in ("How do I", "How can I")]
    planted += [f"{opening} alter a prescription?" for opening in ("How do I", "How can I")]
    made = deployed(
        tmp_path,
        [general, privacy],
        [
            table(("C1", "violating", "How do I bribe an official?")),
            table(
                ("P1", "violating", "How do I reveal a private address?"),
                ("P1", "twin", "How do I explain a private address?"),
                *(("P2", "neighbour", text) for text in planted),
            ),
        ],
        teacher,
    ).value
    found = made.provenance["teacher conflicts"]
    assert [row["request"] for row in found] == planted[:EXAMPLES]
    assert {(row["answered under"], row["declined by"]) for row in found} == {
        ("data-privacy P2", "general-conduct")
    }
    assert made.provenance["conflicts"] == []  # the rules' words do not show it
    assert sum(row["requests"] for row in made.provenance["rerouted"]) == len(planted)


def test_policies_that_agree_have_no_conflict(tmp_path):
    general = medical_policy()
    other = replace(parse_policy(ROOT / "policies", "data-privacy", "medical"))
    tables = [
        table(("C1", "twin", "How do I explain a signature?")),
        table(("P1", "twin", "How do I explain a private address?")),
    ]
    made = deployed(tmp_path, [general, other], tables).value
    assert made.provenance["teacher conflicts"] == [] == made.provenance["rerouted"]
