"""Which edits start which stages.

The daemon's part (launching runs) is Dagster's; here the decisions are tested.
"""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from policyalign_assets.orchestration import assets
from policyalign_assets.orchestration.metadata import RECIPE
from policyalign_assets.orchestration.partitions import NAME
from policyalign_assets.orchestration.realign import (
    WHY,
    desired_states,
    nightly_realignment,
    out_of_date,
    policy_changes,
)
from policyalign_assets.settings import load_settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.registry import STAGES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ALL = list(STAGES)
EVIDENCE = ["generations", "judgements", "benchmark_report"]
SETTINGS = load_settings(environ={})


@pytest.fixture()
def policies(tmp_path):
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    return tmp_path / "policies"


def pending(instance, policies, settings=SETTINGS) -> dict[str, list[str]]:
    return {
        r.partition_key: [k.to_user_string() for k in r.asset_selection]
        for r in out_of_date(instance, desired_states(policies, settings))
    }


def finish(instance, policies, settings=SETTINGS, only=None, stages=ALL) -> None:
    """Records what runs of everything pending would record."""
    for partition, wanted in desired_states(policies, settings).items():
        if only in (None, partition):
            for stage in stages:
                instance.report_runless_asset_event(
                    dg.AssetMaterialization(
                        stage, partition=partition, tags={fingerprints.TAG: wanted[stage]}
                    )
                )


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_fresh_start_wants_every_stage_of_every_applicable_partition(instance, policies):
    todo = pending(instance, policies)
    assert len(todo) == 8 and "medical|computer-use-agent" not in todo
    assert all(stages == ALL for stages in todo.values())


def test_nothing_is_wanted_once_everything_is_made(instance, policies):
    finish(instance, policies)
    assert pending(instance, policies) == {}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("general-conduct/policy.md", "owner:", "owner: Somebody Else #"),
        ("general-conduct/policy.md", "## Rules\n", "## Rules\n\n<!-- reviewed -->\n\n"),
        (
            "general-conduct/medical.md",
            "Never help anyone fake a diagnosis.",
            "Never help anyone\n  fake   a diagnosis.",
        ),
    ],
)
def test_edits_that_change_no_rule_start_nothing(instance, policies, file, old, new):
    finish(instance, policies)
    edit(policies / file, old, new)
    assert pending(instance, policies) == {}


def test_an_addendum_edit_redoes_one_partition_and_a_shared_edit_all_of_its_policy(
    instance, policies
):
    finish(instance, policies)
    edit(policies / "general-conduct/medical.md", "fake a diagnosis", "fake a test result")
    assert pending(instance, policies) == {"medical|general-conduct": ALL}
    finish(instance, policies)
    edit(policies / "general-conduct/policy.md", "bribe an official", "bribe a judge")
    assert pending(instance, policies) == {
        f"{d}|general-conduct": ALL for d in ("medical", "legal", "financial", "general")
    }


@pytest.mark.parametrize(
    ("section", "change", "redone"),
    [
        ("distillation", {"learning_rate": 1e-4}, ["distilled_checkpoint", *EVIDENCE]),
        (
            "filtering",
            {"score": "js"},
            ["filtered_instructions", "distilled_checkpoint", *EVIDENCE],
        ),
        ("evaluation", {"cases_per_suite": 50}, EVIDENCE),
        (
            "judge",
            {"kind": "policy", "base_url": "http://localhost/v1", "model": "m"},
            # its verdicts are part of the scores, and a judge that reads rules measures duties
            [s for s in ALL if s not in ("policy_document", "violating_instructions")],
        ),
        ("report", {"show_harmful": True}, EVIDENCE[2:]),
        ("judge", {"retries": 9}, []),
        ("gates", {"unscored": 0.01}, EVIDENCE[2:]),
        ("synthesis", {"seed": 99}, ALL[1:]),
        ("model", {"batch_tokens": 1000}, []),
        ("model", {"dtype": "bfloat16"}, [s for s in ALL[1:] if s != "policy_document"]),
    ],
)
def test_a_changed_setting_redoes_the_stages_that_read_it_and_those_after(
    instance, policies, section, change, redone
):
    finish(instance, policies)
    todo = pending(instance, policies, load_settings(overrides={section: change}, environ={}))
    assert todo == ({k: redone for k in desired_states(policies, SETTINGS)} if redone else {})


def test_reverting_an_edit_twice_redoes_it_twice(instance, policies):
    file = policies / "data-privacy/legal.md"
    keys = set()
    finish(instance, policies)
    for old, new in (
        ("leak a sealed file", "leak a file"),
        ("leak a file", "leak a sealed file"),
    ) * 2:
        edit(file, old, new)
        (request,) = out_of_date(instance, desired_states(policies, SETTINGS))
        assert request.partition_key == "legal|data-privacy" and request.run_key not in keys
        keys.add(request.run_key)
        finish(instance, policies, only="legal|data-privacy")


def test_an_edit_during_a_run_shows_after_it(instance, policies):
    """The run's stages record what they consumed: the old text."""
    finish(instance, policies)
    old = desired_states(policies, SETTINGS)["medical|data-privacy"]
    edit(policies / "data-privacy/medical.md", "publish a test result", "publish a diagnosis")
    run = instance.create_run_for_job(
        assets_job(),
        tags={"dagster/partition": "medical|data-privacy"},
        status=dg.DagsterRunStatus.STARTED,
    )
    assert pending(instance, policies) == {}  # one live run per partition
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            "policy_document",
            partition="medical|data-privacy",
            tags={fingerprints.TAG: old["policy_document"]},
        )
    )
    instance.delete_run(run.run_id)
    assert pending(instance, policies) == {"medical|data-privacy": ALL}


def assets_job():
    @dg.job
    def any_job():
        pass

    return any_job


def test_a_failed_attempt_is_not_repeated_until_something_changes_and_progress_is(
    instance, policies
):
    first = {
        r.partition_key: r.run_key
        for r in out_of_date(instance, desired_states(policies, SETTINGS))
    }
    again = {
        r.partition_key: r.run_key
        for r in out_of_date(instance, desired_states(policies, SETTINGS))
    }
    assert first == again  # the same run key: Dagster starts it once
    finish(
        instance, policies, only="medical|general-conduct", stages=ALL[:2]
    )  # it failed at the third stage
    request = next(
        r
        for r in out_of_date(instance, desired_states(policies, SETTINGS))
        if r.partition_key == "medical|general-conduct"
    )
    assert (
        request.run_key != first["medical|general-conduct"]
        and [k.to_user_string() for k in request.asset_selection] == ALL[2:]
    )
    at_night = out_of_date(instance, desired_states(policies, SETTINGS), "!2026-11-24")
    nightly = next(r for r in at_night if r.partition_key == "medical|general-conduct")
    assert nightly.run_key not in (request.run_key, first["medical|general-conduct"])


def test_a_policy_with_a_mistake_is_left_alone_and_said(instance, policies):
    finish(instance, policies)
    edit(policies / "general-conduct/policy.md", "- C1:", "- C2:")
    said = []
    wanted = desired_states(policies, SETTINGS, said.append)
    assert list(out_of_date(instance, wanted)) == [] and not any(
        "general-conduct" in key for key in wanted
    )
    assert len(said) == 1 and "general-conduct/policy.md" in said[0] and "C2" in said[0]


def test_the_sensor_registers_new_folders_and_retires_deleted_ones_but_not_under_a_live_run(
    instance, policies
):
    def tick():
        return policy_changes(
            dg.build_sensor_context(instance=instance, resources={"policies": policies})
        )

    added = tick()
    assert [r.partition_keys for r in added.dynamic_partitions_requests] == [
        sorted(desired_states(policies, SETTINGS))
    ]
    assert len(added.run_requests) == 8
    instance.add_dynamic_partitions(NAME, list(desired_states(policies, SETTINGS)))
    finish(instance, policies, assets.DEPLOYED)
    assert isinstance(tick(), dg.SkipReason)

    shutil.rmtree(policies / "computer-use-agent")
    run = instance.create_run_for_job(
        assets_job(),
        tags={"dagster/partition": "general|computer-use-agent"},
        status=dg.DagsterRunStatus.STARTED,
    )
    assert isinstance(tick(), dg.SkipReason)
    instance.delete_run(run.run_id)
    assert [r.partition_keys for r in tick().dynamic_partitions_requests] == [
        ["general|computer-use-agent"]
    ]


def test_the_nightly_schedule_asks_for_registered_partitions_only(instance, policies):
    instance.add_dynamic_partitions(
        NAME, [f"{d}|data-privacy" for d in ("medical", "legal", "financial")]
    )
    with dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime(2026, 11, 24, 2, tzinfo=UTC),
        resources={"policies": policies},
    ) as context:
        asked = {r.partition_key for r in nightly_realignment(context)}
    assert asked == {f"{d}|data-privacy" for d in ("medical", "legal", "financial")}


def test_an_edited_file_of_everyday_requests_redoes_training_and_report_and_a_moved_one_nothing(
    instance, policies, tmp_path
):
    def settings(file: Path):
        return load_settings(overrides={"distillation": {"anchors_file": str(file)}}, environ={})

    asked, moved = tmp_path / "asked.txt", tmp_path / "moved.txt"
    asked.write_text("Name a river.\n")
    moved.write_text(asked.read_text())
    finish(instance, policies, settings(asked))
    assert pending(instance, policies, settings(moved)) == {}
    moved.write_text("Name a hill.\n")
    assert all(
        stages == ["distilled_checkpoint", *EVIDENCE]
        for stages in pending(instance, policies, settings(moved)).values()
    )
    assert pending(instance, policies, settings(moved))


def tick(instance, policies):
    return policy_changes(
        dg.build_sensor_context(instance=instance, resources={"policies": policies})
    )


def test_only_partitions_that_exist_are_registered(instance, policies):
    (added,) = tick(instance, policies).dynamic_partitions_requests
    assert len(added.partition_keys) == 8 and "medical|computer-use-agent" not in (
        added.partition_keys
    )


def test_one_broken_policy_stops_no_other_and_keeps_its_partitions(instance, policies):
    everything = sorted(desired_states(policies, SETTINGS))
    instance.add_dynamic_partitions(NAME, everything)
    finish(instance, policies, assets.DEPLOYED)
    edit(policies / "general-conduct/policy.md", "- C1:", "- C2:")
    bad = os.fsencode(policies) + b"/\xff\xfe"
    os.mkdir(bad)
    shutil.copy(policies / "data-privacy/policy.md", os.fsdecode(bad) + "/policy.md")
    edit(policies / "data-privacy/legal.md", "leak a sealed file", "leak a file")
    said = tick(instance, policies)
    assert [r.partition_key for r in said.run_requests] == ["legal|data-privacy"]
    assert said.dynamic_partitions_requests == []  # nothing is retired
    finish(instance, policies, assets.DEPLOYED)
    idle = tick(instance, policies)
    assert isinstance(idle, dg.SkipReason)
    assert "general-conduct cannot be read" in idle.skip_message
    assert "not UTF-8" in idle.skip_message


def test_a_queued_run_of_a_deleted_policy_is_cancelled(instance, policies):
    instance.add_dynamic_partitions(NAME, sorted(desired_states(policies, SETTINGS)))
    queued = {}
    location = InProcessCodeLocationOrigin(
        LoadableTargetOrigin(executable_path="python", module_name="m")
    )
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "r"), "alignment")
    for key in ("general|computer-use-agent", "legal|data-privacy"):
        run = create_run_for_test(
            instance,
            status=dg.DagsterRunStatus.QUEUED,
            tags={"dagster/partition": key},
            remote_job_origin=origin,
        )
        queued[key] = run.run_id
    shutil.rmtree(policies / "computer-use-agent")
    tick(instance, policies)
    status = {key: instance.get_run_by_id(run).status for key, run in queued.items()}
    assert status == {
        "general|computer-use-agent": dg.DagsterRunStatus.CANCELED,
        "legal|data-privacy": dg.DagsterRunStatus.QUEUED,
    }


def test_a_run_says_what_had_changed(instance, policies):
    def made(settings):
        for key, wanted in desired_states(policies, settings).items():
            for stage in ALL:
                recipe = fingerprints.recipe(stage, settings)
                instance.report_runless_asset_event(
                    dg.AssetMaterialization(
                        stage,
                        partition=key,
                        tags={fingerprints.TAG: wanted[stage]},
                        metadata={RECIPE: dg.MetadataValue.json(recipe)},
                    )
                )

    def why(settings) -> set[str]:
        requests = out_of_date(instance, desired_states(policies, settings), settings=settings)
        return {r.tags[WHY] for r in requests}

    assert why(SETTINGS) == {"policy_document was never made"}
    made(SETTINGS)
    faster = load_settings(overrides={"distillation": {"learning_rate": 1e-4}}, environ={})
    assert why(faster) == {"distilled_checkpoint: distillation.learning_rate 0.0012 -> 0.0001"}
    edit(policies / "data-privacy/legal.md", "leak a sealed file", "leak a file")
    assert why(SETTINGS) == {"the policy's text changed"}


def test_an_idle_look_says_why_it_starts_nothing(instance, policies):
    instance.add_dynamic_partitions(NAME, sorted(desired_states(policies, SETTINGS)))
    finish(instance, policies, assets.DEPLOYED)
    assert "8 of 8 partitions are as wanted" in tick(instance, policies).skip_message
    edit(policies / "data-privacy/legal.md", "leak a sealed file", "leak a file")
    instance.create_run_for_job(
        assets_job(),
        tags={"dagster/partition": "legal|data-privacy"},
        status=dg.DagsterRunStatus.STARTED,
    )
    said = tick(instance, policies).skip_message
    assert "7 of 8" in said and "legal|data-privacy waits: it has a run already" in said
