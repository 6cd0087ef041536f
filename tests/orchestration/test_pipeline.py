"""The Dagster layer: the chain on one partition, what it records, what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import dagster as dg
import duckdb
import pyarrow.parquet as pq
import pytest
from helpers import deployed
from test_report import Page

from policyalign_assets.files import location
from policyalign_assets.orchestration import assets, catalog, deployments, launchers, owners
from policyalign_assets.orchestration.clusters import RayJobs
from policyalign_assets.orchestration.found_policies import find_policies
from policyalign_assets.orchestration.launchers import InProcess, Subprocess
from policyalign_assets.orchestration.metadata import POLICY_VERSION_TAG
from policyalign_assets.orchestration.partitions import NAME
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.orchestration.storage import ParquetStorage, RecordStorage
from policyalign_assets.policy import parse_policy
from policyalign_assets.report.folders import current_report
from policyalign_assets.report.show import show
from policyalign_assets.runtime.forked_workers import ForkedWorkers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KEY = "medical|general-conduct"
STAGES = assets.stage_assets
ASSETS = {asset.key.to_user_string(): asset for asset in STAGES}
QUICK = {
    "synthesis": {"per_rule": 4, "rounds": 2, "max_new_tokens": 24},
    "sensitivity": {"max_new_tokens": 16},
    "filtering": {"per_rule": 3},
    "distillation": {"steps": 2, "batch_size": 8, "mini_batch_size": 8, "max_new_tokens": 16},
    "evaluation": {
        "max_new_tokens": 16,
        "cases_per_suite": 18,
        "cases_per_rule": 2,
        "benign_cases": 18,
        "capability_cases": 10,
        "probe_cases": 2,
        "pressure_cases": 2,
    },
}


def run(*args: str, **environ: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environ},
    )


@pytest.fixture()
def workspace(tmp_path):
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(NAME, find_policies(tmp_path / "policies").keys)
        yield tmp_path, instance


def materialize(
    tmp_path,
    instance,
    selection=STAGES,
    key=KEY,
    overrides=QUICK,
    raise_on_error=True,
    launcher=None,
    data=None,
):
    data = data or str(tmp_path / "data")
    resources = {
        "pipeline": Pipeline(policies_dir=str(tmp_path / "policies"), data_dir=data),
        "launcher": launcher or InProcess(),
        "tables": ParquetStorage(data_dir=data),
        "records": RecordStorage(data_dir=data),
    }
    with deployed(overrides):
        return dg.materialize(
            [*STAGES, catalog.policy_catalog],
            selection=selection,
            partition_key=key,
            instance=instance,
            resources=resources,
            raise_on_error=raise_on_error,
        )


def test_the_whole_chain_on_one_partition(workspace):
    """With a process for each stage that loads a model, as it is deployed."""
    tmp_path, instance = workspace
    overrides = {**QUICK, "synthesis": {**QUICK["synthesis"], "heldout": 0.25}}
    result = materialize(tmp_path, instance, launcher=Subprocess(), overrides=overrides)
    assert result.success
    said = [e.message for e in instance.all_logs(result.run_id)]
    assert any(m.startswith("step 2/2") for m in said) and any(
        m.startswith("arm aligned_policy") for m in said
    )  # progress of the processes
    policy = parse_policy(tmp_path / "policies", "general-conduct", "medical")
    for stage in STAGES:  # every stage says which policy text its data comes from
        event = instance.get_latest_materialization_event(stage.key)
        assert event.asset_materialization.tags[POLICY_VERSION_TAG] == policy.content_hash[:40]

    data = tmp_path / "data"
    instructions = pq.read_table(
        data / "assets/violating_instructions/medical/general-conduct.parquet"
    )
    filtered = pq.read_table(data / "assets/filtered_instructions/medical/general-conduct.parquet")
    assert set(instructions["rule_id"].to_pylist()) <= {r.rule_id for r in policy.prohibitions}
    assert filtered.num_rows == instructions.num_rows
    checkpoint = json.loads(
        (data / "assets/distilled_checkpoint/medical/general-conduct.json").read_text()
    )
    assert (data / checkpoint["path"] / "adapter_model.safetensors").exists()

    # the same numbers in the page, its JSON, the Parquet of every case, and Dagster
    folder = current_report(data, "medical", "general-conduct")
    report = json.loads((folder / "report.json").read_text())
    metadata = instance.get_latest_materialization_event(
        ASSETS["benchmark_report"].key
    ).asset_materialization.metadata
    page = Page((folder / "report.html").read_text()).shares
    cases = str(folder / "cases.parquet")
    for arm in ("base", "base_policy", "aligned", "aligned_policy"):
        k, n = duckdb.execute(
            "SELECT count(*) FILTER (refused), count(*) FROM read_parquet(?) WHERE suite = "
            "'violations' AND scored AND arm = ?",
            [cases, arm],
        ).fetchone()
        figure = next(
            f["rate"] for f in report["figures"] if (f["suite"], f["arm"]) == ("violations", arm)
        )
        assert (figure["k"], figure["n"]) == (k, n)
        if n:
            assert (
                metadata[f"safety/{arm}"].value
                == figure["estimate"]
                == page["violations", arm][0]
                == pytest.approx(k / n)
            )
    texts = {
        split: {r["text"].lower() for r in instructions.to_pylist() if r["split"] == split}
        for split in ("train", "heldout")
    }
    asked = {
        prompt.lower(): suite
        for prompt, suite in duckdb.execute(
            "SELECT DISTINCT prompt, suite FROM read_parquet(?)", [cases]
        ).fetchall()
    }
    assert not (texts["train"] - texts["heldout"]) & set(asked)
    assert texts["heldout"] == {
        prompt for prompt, suite in asked.items() if suite.startswith("conformance")
    }
    assert not texts["heldout"] & {r["text"].lower() for r in filtered.to_pylist() if r["selected"]}
    assert "violations" in show(KEY, data)

    # what a person reads off the page, and numbers that plot over time
    assert (
        instance.get_run_by_id(result.run_id).tags[owners.TAG]
        == policy.owner
        == metadata["owner"].value
    )
    plotted = {
        ASSETS["distilled_checkpoint"]: ("final loss", "seconds"),
        ASSETS["sensitivity_scores"]: ("mean reverse KL", "seconds"),
        ASSETS["benchmark_report"]: (
            "safety/aligned",
            "over_refusal/aligned",
            "unscored",
            "seconds",
        ),
    }
    for stage, names in plotted.items():
        shown = instance.get_latest_materialization_event(stage.key).asset_materialization.metadata
        assert all(isinstance(shown[name], dg.FloatMetadataValue) for name in names), {
            name: shown.get(name) for name in names
        }
    for stage in (
        ASSETS["violating_instructions"],
        ASSETS["sensitivity_scores"],
        ASSETS["filtered_instructions"],
    ):
        shown = instance.get_latest_materialization_event(stage.key).asset_materialization.metadata
        assert shown["dagster/partition_row_count"].value == instructions.num_rows

    # where it ran makes no difference
    event = instance.get_latest_materialization_event(
        ASSETS["violating_instructions"].key
    ).asset_materialization
    materialize(tmp_path, instance, [ASSETS["violating_instructions"]], overrides=overrides)
    again = instance.get_latest_materialization_event(
        ASSETS["violating_instructions"].key
    ).asset_materialization
    assert (
        unhurried(event) == unhurried(again)
        and event.tags["dagster/data_version"] == again.tags["dagster/data_version"]
    )


def unhurried(event: dg.AssetMaterialization) -> dict:
    return {name: value for name, value in event.metadata.items() if name != "seconds"}


def test_results_can_be_kept_at_a_url(workspace):
    tmp_path, instance = workspace
    assert materialize(tmp_path, instance, data="memory://policyalign").success
    data = location("memory://policyalign")
    checkpoint = json.loads(
        (data / "assets/distilled_checkpoint/medical/general-conduct.json").read_bytes()
    )
    assert {f.name for f in (data / checkpoint["path"]).iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "training.parquet",
        "checkpoint.json",
    }
    folder = current_report(data, "medical", "general-conduct")
    files = {f.name for f in folder.iterdir() if not f.name.startswith("cases-")}
    assert files - {"release.json"} == {
        "report.html",
        "report.json",
        "figures.parquet",
        "benchmarks.parquet",
        "cases.parquet",
        "benchmark_cases.parquet",
    }
    assert "violations" in show(KEY, data) and not (tmp_path / "data").exists()


def test_a_wrong_input_of_a_process_fails_in_plain_words_and_is_not_tried_again(workspace):
    tmp_path, instance = workspace
    overrides = {
        **QUICK,
        "model": {"id": str(tmp_path / "no-such-model")},
        "synthesis": {**QUICK["synthesis"], "heldout": 0.3},
    }
    result = materialize(
        tmp_path,
        instance,
        STAGES[:2],
        overrides=overrides,
        raise_on_error=False,
        launcher=Subprocess(),
    )
    message = result.failure_data_for_node("violating_instructions").user_failure_data.description
    assert "no-such-model" in message and "cannot be loaded" in message and "Fix:" in message
    assert not any(e.is_step_up_for_retry for e in result.all_events)


def test_a_killed_process_is_tried_once_more(workspace, monkeypatch):
    tmp_path, instance = workspace
    monkeypatch.setattr(ForkedWorkers, "run", lambda *_: 137)
    monkeypatch.setattr(launchers, "run_guarded", lambda *_: 137)  # on other systems
    result = materialize(
        tmp_path, instance, STAGES[:2], raise_on_error=False, launcher=Subprocess()
    )
    assert sum(e.is_step_up_for_retry for e in result.all_events) == 1
    (failed,) = [e for e in result.all_events if e.is_step_failure]
    assert "ended by SIGKILL" in str(failed.step_failure_data.error)


def test_each_stage_can_be_redone_alone_with_the_same_result(workspace):
    tmp_path, instance = workspace
    materialize(tmp_path, instance, STAGES[:4])
    versions = {}
    for _ in range(2):
        for stage in STAGES[:4]:
            materialize(tmp_path, instance, [stage])
            tags = instance.get_latest_materialization_event(stage.key).asset_materialization.tags
            versions.setdefault(stage.key, set()).add(tags["dagster/data_version"])
    assert all(len(v) == 1 for v in versions.values()), versions


def test_a_domain_that_the_policy_does_not_name_fails_in_plain_words(workspace):
    tmp_path, instance = workspace
    with pytest.raises(click.ClickException) as refused:
        materialize(
            tmp_path, instance, STAGES[:1], key="medical|computer-use-agent", raise_on_error=False
        )
    message = str(refused.value)
    assert "'computer-use-agent' is not registered for the domain 'medical'" in message
    assert "its front matter lists the domain" in message and "Fix:" in message


@pytest.mark.skipif(
    "TEST_RAY_ADDRESS" not in os.environ, reason="needs a Ray cluster: docs/deploy.md"
)
def test_a_stage_as_a_job_of_a_ray_cluster(workspace):
    tmp_path, instance = workspace
    ray = RayJobs(
        address=os.environ["TEST_RAY_ADDRESS"],
        exchange=str(tmp_path / "exchange"),
        python=sys.executable,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    result = materialize(tmp_path, instance, STAGES[:2], launcher=ray)
    on_ray = instance.get_latest_materialization_event(
        ASSETS["violating_instructions"].key
    ).asset_materialization
    materialize(tmp_path, instance, [ASSETS["violating_instructions"]])
    here = instance.get_latest_materialization_event(
        ASSETS["violating_instructions"].key
    ).asset_materialization
    assert (
        unhurried(on_ray) == unhurried(here)
        and on_ray.tags["dagster/data_version"] == here.tags["dagster/data_version"]
    )
    assert any(
        e.message.startswith("rule ") or "C1" in e.message for e in instance.all_logs(result.run_id)
    )  # its progress, live
    assert list((tmp_path / "exchange").iterdir()) == []


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("medical|nope", "'nope' is not registered"),
        ("cooking|general-conduct", "the domains are medical"),
        ("general-conduct", "write <domain>|<policy>"),
    ],
)
def test_an_unknown_partition_is_answered_in_plain_words(workspace, key, words):
    tmp_path, instance = workspace
    with pytest.raises(click.ClickException, match=re.escape(words)):
        materialize(tmp_path, instance, STAGES[:1], key=key)


@pytest.mark.parametrize(
    ("stage", "key"), [("policy_document", KEY), ("deployed_checkpoint", "medical")]
)
def test_the_command_line_says_how_to_register_a_partition(tmp_path, stage, key):
    done = run(
        "-m",
        "dagster",
        "asset",
        "materialize",
        "-m",
        "policyalign_assets.definitions",
        "--select",
        stage,
        "--partition",
        key,
        DAGSTER_HOME=str(tmp_path),
    )
    assert (
        done.returncode == 1
        and "Traceback" not in done.stderr
        and "--select policy_catalog" in done.stderr
    )


def test_a_wrong_setting_is_refused_before_the_first_stage(workspace):
    tmp_path, instance = workspace
    result = materialize(
        tmp_path, instance, overrides={"distillation": {"steps": 0}}, raise_on_error=False
    )
    assert not result.success
    assert not any(e.is_step_start for e in result.all_events) and not (tmp_path / "data").exists()


def test_the_catalog_registers_every_policy_folder(workspace):
    tmp_path, instance = workspace
    (tmp_path / "policies" / "new-policy").mkdir()
    (tmp_path / "policies" / "new-policy" / "policy.md").write_text(
        (ROOT / "policies/computer-use-agent/policy.md").read_text()
    )
    materialize(tmp_path, instance, [catalog.policy_catalog], key=None)
    assert any("new-policy" in key for key in instance.get_dynamic_partitions(NAME))
    # without them, a deployment could not be made by hand before its sensor has run
    assert "medical" in instance.get_dynamic_partitions(deployments.NAME)
