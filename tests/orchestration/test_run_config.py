"""Run config is typed, experiments stay apart from production, and a wrong value is never
retried."""

import os
import subprocess
import sys

import dagster as dg
import pyarrow as pa
import pytest
from helpers import ROOT

from policyalign_assets.orchestration.partitions import NAME, partitions
from policyalign_assets.orchestration.realign import out_of_date
from policyalign_assets.orchestration.resources import EXPERIMENT, Pipeline
from policyalign_assets.orchestration.run_config import ENDPOINTS, NOT_BY_RUN, UNTYPED, Overrides
from policyalign_assets.orchestration.storage import ParquetStorage
from policyalign_assets.runtime.partition_lock import partition_lock
from policyalign_assets.settings import Settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.registry import STAGES

KEY = "medical|alpha"


@dg.asset(partitions_def=partitions, io_manager_key="tables")
def first(pipeline: Pipeline) -> dg.MaterializeResult:
    tags = {EXPERIMENT: pipeline.experiment} if pipeline.experiment else {}
    steps = pipeline.settings.distillation.steps
    return dg.MaterializeResult(value=pa.table({"steps": [steps]}), tags=tags)


@dg.asset(partitions_def=partitions, io_manager_key="tables")
def second(pipeline: Pipeline, first: pa.Table) -> pa.Table:
    return first


@pytest.fixture()
def instance():
    with dg.instance_for_test() as made:
        made.add_dynamic_partitions(NAME, [KEY])
        yield made


def materialize(instance, folder, selection, **config):
    config = {"data_dir": str(folder), "policies_dir": str(folder), **config}
    return dg.materialize(
        [first, second],
        selection=selection,
        partition_key=KEY,
        instance=instance,
        raise_on_error=False,
        resources={
            "pipeline": Pipeline(),
            "tables": ParquetStorage(data_dir=str(folder)),
        },
        run_config={"resources": {"pipeline": {"config": config}}},
    )


def test_every_setting_that_a_run_may_choose_is_there_with_its_description():
    for name, info in Settings.model_fields.items():
        if name in NOT_BY_RUN:
            assert name not in Overrides.model_fields
            continue
        fields = Overrides.model_fields[name].annotation.model_fields
        assert set(fields) == set(info.annotation.model_fields) - ENDPOINTS - UNTYPED
        for field, made in fields.items():
            assert made.description == info.annotation.model_fields[field].description


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"distillation": {"stepps": 60}}, 'unexpected config entry "stepps"'),
        ({"distilation": {"steps": 60}}, 'unexpected config entry "distilation"'),
        ({"distillation": {"steps": "many"}}, "not valid for expected type"),
        ({"filtering": {"score": "loudness"}}, "not in enum type"),
        ({"judge": {"api_key_variable": "DATABASE_URL"}}, "unexpected config entry"),
        ({"judge": {"base_url": "http://elsewhere"}}, "unexpected config entry"),
    ],
)
def test_the_launchpad_refuses_what_is_no_setting(instance, tmp_path, overrides, words):
    with pytest.raises(dg.DagsterInvalidConfigError, match=words):
        materialize(instance, tmp_path, "first", overrides=overrides)


@pytest.mark.slow
def test_a_value_out_of_range_is_refused_before_any_stage_and_never_retried(instance, tmp_path):
    result = materialize(instance, tmp_path, "first", overrides={"distillation": {"steps": 0}})
    assert not result.success and not (tmp_path / "assets").exists()
    run = instance.get_run_by_id(result.run_id)
    assert run.tags["dagster/max_retries"] == "0"


@pytest.mark.slow
def test_a_run_of_a_busy_partition_is_refused(instance, tmp_path, monkeypatch):
    monkeypatch.setattr("policyalign_assets.runtime.partition_lock.PATIENCE", 0.2)
    with partition_lock(tmp_path, KEY, "run 1"):
        result = materialize(instance, tmp_path, "first")
    assert not result.success and not (tmp_path / "assets").exists()
    assert materialize(instance, tmp_path, "first").success


@pytest.mark.slow
def test_an_experiment_never_writes_over_production_and_reads_what_it_lacks(instance, tmp_path):
    assert materialize(instance, tmp_path, ["first", "second"]).success
    made = tmp_path / "assets/first/medical/alpha.parquet"
    before = made.read_bytes()
    changed = {"overrides": {"distillation": {"steps": 7}}}
    run = materialize(instance, tmp_path, "second", **changed)  # its input is production's
    assert run.success
    name = instance.get_run_by_id(run.run_id).tags[EXPERIMENT]
    apart = tmp_path / "experiments" / name / "assets"
    assert (apart / "second/medical/alpha.parquet").is_file() and not (apart / "first").exists()
    assert materialize(instance, tmp_path, ["first", "second"], **changed).success
    assert made.read_bytes() == before
    assert (apart / "first/medical/alpha.parquet").read_bytes() != before


@pytest.mark.slow
def test_settings_that_change_no_result_are_no_experiment(instance, tmp_path):
    run = materialize(instance, tmp_path, "first", overrides={"model": {"batch_tokens": 4096}})
    assert run.success and EXPERIMENT not in instance.get_run_by_id(run.run_id).tags
    assert (tmp_path / "assets/first/medical/alpha.parquet").is_file()


LOOSE = {"over_refusal_ceiling": 0.1, "loosened_by": "A. Name", "loosened_because": "a test"}


@pytest.mark.slow
def test_looser_bars_are_an_experiment(instance, tmp_path):
    run = materialize(instance, tmp_path, "first", overrides={"gates": LOOSE})
    assert run.success and instance.get_run_by_id(run.run_id).tags[EXPERIMENT]


@pytest.mark.slow
def test_an_experiment_does_not_make_production_look_out_of_date(instance):
    settings = Settings()
    wanted = {KEY: fingerprints.desired("hash", settings)}
    for tags in ({}, {EXPERIMENT: "e1", fingerprints.TAG: "another"}):
        for stage in STAGES:
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    stage, partition=KEY, tags={fingerprints.TAG: wanted[KEY][stage], **tags}
                )
            )
    assert list(out_of_date(instance, wanted)) == []


@pytest.mark.slow
def test_run_config_keeps_the_deployments_folders(tmp_path):
    """Run config that names other fields must not move the results to the default folder."""
    code = (
        "from policyalign_assets.orchestration.resources import Pipeline\n"
        "import dagster as dg\n"
        "@dg.op\n"
        "def show(pipeline: Pipeline): print(pipeline.data_dir, pipeline.policies_dir)\n"
        "@dg.job(resource_defs={'pipeline': Pipeline()})\n"
        "def job(): show()\n"
        "config = {'overrides': {'distillation': {'steps': 7}}}\n"
        "job.execute_in_process({'resources': {'pipeline': {'config': config}}})\n"
    )
    folders = {
        "POLICYALIGN_DATA_DIR": str(tmp_path / "d"),
        "POLICYALIGN_POLICIES_DIR": str(tmp_path / "p"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **folders, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == list(folders.values())
