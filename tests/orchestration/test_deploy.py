"""The configuration files of Dagster's instance are ones that Dagster accepts."""

import os
from pathlib import Path

import click
import dagster as dg
import pytest
from dagster._core.instance.config import dagster_instance_config
from dagster._core.instance.ref import InstanceRef

from policyalign_assets.orchestration.launchers import launcher_from_environment

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", [".", "deploy"])
def test_the_instance_keeps_one_run_per_partition_one_stage_per_gpu_and_no_slot_of_a_dead_run(
    folder, monkeypatch, tmp_path
):
    monkeypatch.setenv("DAGSTER_PG_URL", "postgresql://u:p@localhost/dagster")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    config, _ = dagster_instance_config(
        str(ROOT / folder)
    )  # raises where Dagster's schema does not allow something
    assert config["concurrency"]["pools"]["default_limit"] == 1
    assert {
        "key": "dagster/partition",
        "value": {"applyLimitPerUniqueValue": True},
        "limit": 1,
    } in config["concurrency"]["runs"]["tag_concurrency_limits"]
    assert (
        config["run_monitoring"]["enabled"]
        and config["run_monitoring"]["free_slots_after_run_end_seconds"] <= 60
    )
    assert config["run_retries"] == {
        "enabled": True,
        "max_retries": 1,
        "retry_on_asset_or_op_failure": False,
    }


def test_production_reads_where_postgres_is_from_the_environment(monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(ROOT))
    stored = InstanceRef.from_dir(str(ROOT / "deploy")).storage_data
    assert stored.module_name == "dagster_postgres" and "env: DAGSTER_PG_URL" in stored.config_yaml


@pytest.mark.parametrize("name", ["ray", "kubernetes"])
def test_a_cluster_needs_a_place_that_both_sides_reach(name, monkeypatch):
    launcher = launcher_from_environment({"POLICYALIGN_LAUNCHER": name})
    with pytest.raises(dg.Failure, match="Fix: set POLICYALIGN_EXCHANGE"):
        launcher.setup_for_execution(dg.build_init_resource_context())


def test_an_unknown_launcher_is_refused():
    with pytest.raises(
        click.ClickException,
        match="'slurm' names no launcher. Fix: one of subprocess, in_process, ray, kubernetes",
    ):
        launcher_from_environment({"POLICYALIGN_LAUNCHER": "slurm"})


@pytest.mark.skipif("TEST_PG_URL" not in os.environ, reason="needs a PostgreSQL: docs/deploy.md")
def test_a_run_on_postgres(monkeypatch, tmp_path):
    pytest.importorskip("dagster_postgres")
    monkeypatch.setenv("DAGSTER_PG_URL", os.environ["TEST_PG_URL"])
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text((ROOT / "deploy/dagster.yaml").read_text())

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a"]), pool="gpu")
    def thing() -> dg.MaterializeResult:
        return dg.MaterializeResult(tags={"made": "yes"})

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert dg.materialize([thing], instance=instance, partition_key="a").success
        (record,) = instance.fetch_materializations(
            dg.AssetRecordsFilter(thing.key, asset_partitions=["a"]), limit=1
        ).records
        assert record.asset_materialization.tags["made"] == "yes"
