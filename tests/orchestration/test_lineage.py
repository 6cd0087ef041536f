"""A checkpoint that went on from another one: up to date, until its report is not accepted."""

from pathlib import Path

import dagster as dg
import pytest

from policyalign_assets.orchestration import deployments
from policyalign_assets.orchestration.assets import NOT_ACCEPTED
from policyalign_assets.orchestration.found_policies import find_policies
from policyalign_assets.orchestration.realign import desired_states, out_of_date, parents_of
from policyalign_assets.orchestration.status import find_status
from policyalign_assets.settings import load_settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.registry import DEPLOYMENT_STAGES, STAGES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WARM = load_settings(overrides={"warm_start": {"enabled": True}}, environ={})
KEY, PARENT = "medical|general-conduct", "a" * 16
FROM_TRAINING = [*STAGES][list(STAGES).index("distilled_checkpoint") :]


def record(instance, stage, partition, fingerprint, **tags):
    tags = {fingerprints.TAG: fingerprint, **tags}
    instance.report_runless_asset_event(
        dg.AssetMaterialization(stage, partition=partition, tags=tags)
    )


def finish(instance, policies, parent=None, accepted=True):
    """Every partition is made; that of KEY went on from `parent`, if there is one."""
    parents = {KEY: parent} if parent else {}
    for key, wanted in desired_states(policies, WARM, parents=parents).items():
        for stage, fingerprint in wanted.items():
            tags = {}
            if parent and key == KEY and stage == "distilled_checkpoint":
                tags[fingerprints.PARENT_TAG] = parent
            if not accepted and key == KEY and stage == "benchmark_report":
                tags[NOT_ACCEPTED] = "yes"
            record(instance, stage, key, fingerprint, **tags)


def pending(instance, policies):
    wanted = desired_states(policies, WARM, parents=parents_of(instance))
    return {
        r.partition_key: [k.to_user_string() for k in r.asset_selection]
        for r in out_of_date(instance, wanted)
    }


def test_a_warm_started_checkpoint_is_up_to_date_and_its_status_names_the_parent(
    instance, policies
):
    finish(instance, policies, PARENT)
    assert parents_of(instance) == {KEY: PARENT} and pending(instance, policies) == {}
    (found,) = find_status(instance, policies, WARM, [KEY]).partitions
    assert found.up_to_date and found.parent == PARENT
    without = desired_states(policies, WARM)
    assert [r.partition_key for r in out_of_date(instance, without)] == [KEY]  # another checkpoint


def test_a_warm_start_that_is_not_accepted_is_trained_again_and_then_rests(instance, policies):
    finish(instance, policies, PARENT, accepted=False)
    assert pending(instance, policies) == {KEY: FROM_TRAINING}
    finish(instance, policies)  # trained from base, whatever its report says
    assert pending(instance, policies) == {}


def test_answers_of_another_checkpoint_of_the_same_policy_are_out_of_date(instance, policies):
    finish(instance, policies, PARENT)
    newer = desired_states(policies, WARM, parents={KEY: "b" * 16})[KEY]["distilled_checkpoint"]
    tags = {fingerprints.PARENT_TAG: "b" * 16}
    record(instance, "distilled_checkpoint", KEY, newer, **tags)
    assert pending(instance, policies) == {KEY: FROM_TRAINING[1:]}


def test_a_deployment_has_its_own_lineage(instance, policies):
    finish(instance, policies, PARENT)
    found = find_policies(policies)
    wanted = deployments.desired_deployments(found, WARM, parents={"medical": PARENT})
    for name, (_, stages) in wanted.items():
        for stage, fingerprint in stages.items():
            warm = name == "medical" and stage == "deployed_checkpoint"
            tags = {fingerprints.PARENT_TAG: PARENT} if warm else {}
            record(instance, stage, name, fingerprint, **tags)
    assert deployments.parents_of_deployments(instance) == {"medical": PARENT}
    assert not list(deployments.out_of_date_deployments(instance, found, WARM))
    report = wanted["medical"][1]["deployment_report"]
    record(instance, "deployment_report", "medical", report, **{NOT_ACCEPTED: "yes"})
    (request,) = deployments.out_of_date_deployments(instance, found, WARM)
    assert request.partition_key == "medical" and request.tags["dagster/priority"] == "-1"
    assert [k.to_user_string() for k in request.asset_selection] == list(DEPLOYMENT_STAGES)
