"""What is out of date and why, by stage, as `policyalign status` says it."""

import json
import os
import shutil
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner
from helpers import ROOT
from test_realign import SETTINGS, edit

from policyalign_assets.cli.main import main
from policyalign_assets.orchestration.deployments import desired_deployments
from policyalign_assets.orchestration.found_policies import find_policies
from policyalign_assets.orchestration.metadata import RECIPE
from policyalign_assets.orchestration.realign import desired_states
from policyalign_assets.orchestration.status import Status, find_status
from policyalign_assets.settings import Settings, load_settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.registry import STAGES

pytestmark = pytest.mark.slow

KEY = "medical|general-conduct"


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "policies", tmp_path / "policies"))


def record(instance, policies: Path, settings: Settings = SETTINGS, stages=tuple(STAGES)) -> None:
    """What a run of KEY would record, with the recipes."""
    wanted = desired_states(policies, settings)[KEY]
    for stage in stages:
        recipe = dg.MetadataValue.json(fingerprints.recipe(stage, settings))
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                stage,
                partition=KEY,
                metadata={RECIPE: recipe},
                tags={fingerprints.TAG: wanted[stage]},
            )
        )


def reasons(status: Status) -> dict[str, str]:
    (partition,) = status.partitions
    return {s.stage: s.why for s in partition.stages if s.state != "up to date"}


def test_what_was_never_made_is_said_and_what_was_made_is_up_to_date(instance, policies):
    before = find_status(instance, policies, SETTINGS, [KEY])
    assert not before.up_to_date
    assert {s.state for s in before.partitions[0].stages} == {"never made"}
    record(instance, policies)
    assert find_status(instance, policies, SETTINGS, [KEY]).up_to_date
    assert not find_status(instance, policies, SETTINGS).up_to_date  # the other partitions


def test_a_setting_is_named_where_it_counts_and_later_stages_name_what_they_read(
    instance,
    policies,
):
    record(instance, policies)
    changed = load_settings(overrides={"distillation": {"lora_rank": 4}}, environ={})
    why = reasons(find_status(instance, policies, changed, [KEY]))
    old = SETTINGS.distillation.lora_rank
    assert why["distilled_checkpoint"] == f"distillation.lora_rank {old} -> 4"
    assert why["generations"] == "it reads distilled_checkpoint"
    assert "filtered_instructions" not in why


def test_an_edit_of_a_policy_is_the_reason_of_everything_after_it(instance, policies):
    record(instance, policies)
    edit(policies / "general-conduct/medical.md", "fake a diagnosis", "fake a test result")
    why = reasons(find_status(instance, policies, SETTINGS, [KEY]))
    assert why["policy_document"] == "the policy's text changed"
    assert set(why) == set(STAGES)
    assert "it reads policy_document" in why["violating_instructions"]


def test_a_result_without_a_recipe_is_not_explained_by_a_guess(instance, policies):
    instance.report_runless_asset_event(
        dg.AssetMaterialization("policy_document", partition=KEY, tags={fingerprints.TAG: "old"})
    )
    why = reasons(find_status(instance, policies, SETTINGS, [KEY]))
    assert "not known" in why["policy_document"]
    assert why["violating_instructions"] == "it was never made"


def test_a_broken_policy_and_a_partition_that_is_none_are_not_up_to_date(instance, policies):
    record(instance, policies)
    nothing = find_status(instance, policies, SETTINGS, [KEY, "medical|absent"])
    assert nothing.unknown == ("medical|absent",) and not nothing.up_to_date
    (policies / "broken").mkdir()
    (policies / "broken/policy.md").write_text("---\ntitle: 7\n")
    assert list(find_status(instance, policies, SETTINGS, [KEY]).broken) == ["broken"]


def test_a_deployment_counts_once_it_was_made_and_names_the_partitions_that_it_reads(
    instance, policies: Path
):
    record(instance, policies)
    before = find_status(instance, policies, SETTINGS)
    assert "medical" in before.never_made and not before.deployments
    asked = find_status(instance, policies, SETTINGS, ["medical"])
    assert [d.partition for d in asked.deployments] == ["medical"] and not asked.unknown
    wanted = desired_deployments(find_policies(policies), SETTINGS)["medical"][1]
    for stage, fingerprint in wanted.items():
        recipe = dg.MetadataValue.json(fingerprints.recipe(stage, SETTINGS))
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                stage,
                partition="medical",
                metadata={RECIPE: recipe},
                tags={fingerprints.TAG: fingerprint},
            )
        )
    assert find_status(instance, policies, SETTINGS, ["medical"]).up_to_date
    edit(policies / "general-conduct/medical.md", "fake a diagnosis", "fake a test result")
    (deployment,) = find_status(instance, policies, SETTINGS).deployments
    why = {s.stage: s.why for s in deployment.stages}
    assert KEY in why["deployed_checkpoint"] and "deployed_checkpoint" in why["deployment_report"]


@pytest.fixture
def project(tmp_path: Path, policies: Path, monkeypatch):
    """A folder of one's own, whose history has KEY up to date."""
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    for name in [n for n in os.environ if n.startswith(("POLICYALIGN_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as made:
        record(made, policies)
    return tmp_path


def test_the_command_has_exit_codes_text_and_json(project: Path):
    def run(*arguments: str):
        return CliRunner().invoke(main, ["status", *arguments])

    good = run(KEY)
    assert good.exit_code == 0 and good.output == f"{KEY}: up to date\n"
    bad = run()
    assert bad.exit_code == 1 and "OUT OF DATE" in bad.output and "never made" in bad.output
    edit(project / "policies/general-conduct/medical.md", "fake a diagnosis", "fake a result")
    said = json.loads(run(KEY, "--json").output)
    assert said["up_to_date"] is False
    assert said["partitions"][0]["stages"][0] == {
        "stage": "policy_document",
        "state": "out of date",
        "why": "the policy's text changed",
    }
    assert run("Medical|").exit_code == 1 and "is not a partition" in run("Medical|").output
