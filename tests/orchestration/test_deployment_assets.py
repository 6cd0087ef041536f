"""Deployments: which edits remake which, and the stages on the bundled model."""

import json
import shutil
from pathlib import Path

import dagster as dg
import pytest
from helpers import deployed
from test_pipeline import QUICK, materialize

from policyalign_assets.orchestration import assets, data_checks, deployments
from policyalign_assets.orchestration.found_policies import find_policies
from policyalign_assets.orchestration.launchers import InProcess
from policyalign_assets.orchestration.partitions import NAME, partitions
from policyalign_assets.orchestration.realign import desired_states
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.orchestration.storage import ParquetStorage, RecordStorage
from policyalign_assets.records import Checkpoint
from policyalign_assets.settings import load_settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.registry import DEPLOYMENT_STAGES, STAGES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SETTINGS = load_settings(environ={})
BOTH = list(DEPLOYMENT_STAGES)


def pending(instance, policies, settings=SETTINGS):
    left = {}
    requests = deployments.out_of_date_deployments(
        instance, find_policies(policies), settings, left.__setitem__
    )
    todo = {r.partition_key: [k.to_user_string() for k in r.asset_selection] for r in requests}
    return todo, left


def record(instance, name, partition, fingerprint):
    instance.report_runless_asset_event(
        dg.AssetMaterialization(name, partition=partition, tags={fingerprints.TAG: fingerprint})
    )


def finish_partitions(instance, policies, settings=SETTINGS):
    for partition, wanted in desired_states(policies, settings).items():
        for stage in STAGES:
            record(instance, stage, partition, wanted[stage])


def finish(instance, policies, settings=SETTINGS):
    finish_partitions(instance, policies, settings)
    found = find_policies(policies)
    for name, (_, wanted) in deployments.desired_deployments(found, settings).items():
        for stage, fingerprint in wanted.items():
            record(instance, stage, name, fingerprint)


def edit(file: Path, old: str, new: str):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_deployment_waits_until_the_tables_of_its_policies_are_made(instance, policies):
    todo, left = pending(instance, policies)
    assert todo == {} and set(left) == {"financial", "general", "legal", "medical"}
    assert "medical|data-privacy" in left["medical"]
    finish_partitions(instance, policies)
    todo, left = pending(instance, policies)
    assert todo == dict.fromkeys(["financial", "general", "legal", "medical"], BOTH)
    finish(instance, policies)
    assert pending(instance, policies) == ({}, {})


def test_an_edit_of_one_policy_redoes_the_deployments_that_hold_it_and_no_other(instance, policies):
    finish(instance, policies)
    edit(policies / "data-privacy/medical.md", "publish a test result", "publish a diagnosis")
    todo, left = pending(instance, policies)
    assert todo == {} and list(left) == ["medical"]
    finish_partitions(instance, policies)
    assert pending(instance, policies) == ({"medical": BOTH}, {})


def test_a_policy_that_joins_or_leaves_redoes_its_deployment_alone(instance, policies):
    finish(instance, policies)
    shutil.rmtree(policies / "data-privacy")
    todo, _ = pending(instance, policies)
    assert set(todo) == {"financial", "legal", "medical"}  # general has one policy as before
    shutil.copytree(ROOT / "policies" / "data-privacy", policies / "data-privacy")
    assert pending(instance, policies) == ({}, {})


def test_a_file_of_another_order_or_set_is_another_deployment(instance, policies, tmp_path):
    finish(instance, policies)
    (tmp_path / "deployments").mkdir()
    file = tmp_path / "deployments" / "ward.yaml"
    file.write_text("domain: medical\npolicies: [general-conduct]\n")
    assert pending(instance, policies)[0] == {"ward": BOTH}
    finish(instance, policies)
    file.write_text("domain: medical\npolicies: [general-conduct, data-privacy]\n")
    assert pending(instance, policies)[0] == {"ward": BOTH}


def test_a_setting_of_the_evidence_leaves_the_checkpoint(instance, policies):
    finish(instance, policies)
    changed = load_settings(overrides={"gates": {"unscored": 0.01}}, environ={})
    finish_partitions(instance, policies, changed)
    todo, _ = pending(instance, policies, changed)
    assert set(map(tuple, todo.values())) == {("deployment_report",)}
    changed = load_settings(overrides={"deployment": {"teacher": "union"}}, environ={})
    finish_partitions(instance, policies, changed)
    assert set(map(tuple, pending(instance, policies, changed)[0].values())) == {tuple(BOTH)}


def deploy(tmp_path, instance, name, overrides=QUICK, selection=None):
    data = str(tmp_path / "data")
    with deployed(overrides):
        return dg.materialize(
            [*deployments.deployment_assets, *assets.stage_assets],
            selection=selection or deployments.deployment_assets,
            partition_key=name,
            instance=instance,
            resources={
                "pipeline": Pipeline(policies_dir=str(tmp_path / "policies"), data_dir=data),
                "launcher": InProcess(),
                "tables": ParquetStorage(data_dir=data),
                "records": RecordStorage(data_dir=data),
            },
            raise_on_error=False,
        )


def test_a_deployment_says_which_partition_is_not_made(instance, policies, tmp_path):
    instance.add_dynamic_partitions(deployments.NAME, ["medical"])
    result = deploy(tmp_path, instance, "medical")
    (failure,) = result.get_step_failure_events()
    said = failure.step_failure_data.error_display_string
    assert "policyalign align 'medical|data-privacy'" in said


def test_a_deployment_does_not_train_on_data_whose_blocking_check_has_failed(
    instance, policies, tmp_path
):
    @dg.asset(partitions_def=partitions)
    def filtered_instructions() -> None: ...

    @dg.asset_check(
        asset="filtered_instructions",
        name=data_checks.every_rule_has_its_minimum.check_key.name,
        partitions_def=partitions,
    )
    def failing():
        return dg.AssetCheckResult(passed=False)

    instance.add_dynamic_partitions(NAME, find_policies(policies).keys)
    instance.add_dynamic_partitions(deployments.NAME, ["medical"])
    assert dg.materialize(
        [filtered_instructions, failing], partition_key="medical|data-privacy", instance=instance
    ).success
    (failure,) = deploy(tmp_path, instance, "medical").get_step_failure_events()
    said = failure.step_failure_data.error_display_string
    assert "training is blocked for medical|data-privacy: every_rule_has_its_minimum" in said


def test_one_model_is_trained_under_two_policies_and_reported_under_each(
    instance, policies, tmp_path
):
    quick = QUICK
    instance.add_dynamic_partitions(NAME, find_policies(policies).keys)
    tables = [a for a in assets.stage_assets if a.key.to_user_string() in list(STAGES)[:4]]
    for key in ("medical|data-privacy", "medical|general-conduct"):
        assert materialize(tmp_path, instance, tables, key, quick).success
    instance.add_dynamic_partitions(deployments.NAME, ["medical"])
    result = deploy(tmp_path, instance, "medical", quick)
    assert result.success
    checkpoint = result.output_for_node("deployed_checkpoint")
    assert isinstance(checkpoint, Checkpoint)
    made = checkpoint.provenance
    assert made["deployment"] == "medical" and made["teacher"] == "routed"
    assert list(made["policies"]) == ["medical|data-privacy", "medical|general-conduct"]
    folder = tmp_path / "data" / "deployments" / "medical"
    page = (folder / "deployment.html").read_text()
    said = json.loads((folder / "deployment.json").read_text())
    assert said["verdict"] in page and said["checkpoint"] == checkpoint.checkpoint_id
    assert [p["policy"] for p in said["policies"]] == ["data-privacy", "general-conduct"]
    assert not said["releasable"]  # two steps of training teach nothing
    for policy in said["policies"]:
        assert (tmp_path / "data" / policy["page"]).is_file()
    # what a release needs: the record under the deployment's name, and the answers of each policy
    assets_folder = tmp_path / "data" / "assets"
    assert (assets_folder / "deployed_checkpoint" / "medical.json").is_file()
    for policy in ("data-privacy", "general-conduct"):
        for name in ("generations", "judgements"):
            assert (folder / "assets" / name / "medical" / f"{policy}.parquet").is_file()
    # the partitions' own reports are not touched
    assert not (tmp_path / "data" / "reports").exists()
    union = {**QUICK, "deployment": {"teacher": "union"}}
    again = deploy(tmp_path, instance, "medical", union, [deployments.deployment_assets[0]])
    other = again.output_for_node("deployed_checkpoint")
    assert other.provenance["teacher"] == "union"
    assert other.checkpoint_id != checkpoint.checkpoint_id
