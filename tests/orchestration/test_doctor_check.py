"""What the doctor found is shown as a check of the partition, whether or not it stopped the run."""

import shutil
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from policyalign_assets.doctor import kept
from policyalign_assets.doctor.record import Examination, Finding
from policyalign_assets.orchestration import assets, doctor_check
from policyalign_assets.orchestration.launchers import Launcher
from policyalign_assets.orchestration.partitions import NAME, partitions
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.orchestration.storage import ParquetStorage, RecordStorage
from policyalign_assets.policy import parse_policy
from policyalign_assets.tables import SENSITIVITY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KEY = "medical|general-conduct"
CHECK = dg.AssetCheckKey(dg.AssetKey("sensitivity_scores"), "model_is_fit")
SOUND = (
    Finding("logits", "ok", "equal"),
    Finding("chat template", "note", "it has <b>no</b> system role", "nothing."),
)
UNFIT = (*SOUND, Finding("end of turn", "error", "answers would run on", "add 2 to eos_token_id."))


class Doctors(Launcher):
    """Stands for a stage that examines the model and stops where it is unfit."""

    def make(self, context, pipeline, stage, inputs):
        keep(pipeline, inputs["policy_document"], UNFIT)
        raise dg.Failure("the model cannot be aligned", allow_retries=False)


def keep(pipeline, policy, findings, revision="r1"):
    settings = pipeline.settings
    result = Examination(
        settings.model.id, revision, policy.content_hash, "2025-01-01", tuple(findings)
    )
    kept.save(pipeline.data, settings, policy, settings.synthesis.teacher_check, result)


@dg.asset(partitions_def=partitions, io_manager_key="tables")
def sensitivity_scores(pipeline: Pipeline) -> pa.Table:
    return SENSITIVITY.empty_table()


@pytest.fixture()
def materialize(tmp_path):
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(NAME, [KEY])

        def go(*wanted, failure=False):
            data = str(tmp_path / "data")
            result = dg.materialize(
                list(wanted),
                partition_key=KEY,
                instance=instance,
                raise_on_error=False,
                resources={
                    "pipeline": Pipeline(policies_dir=str(tmp_path / "policies"), data_dir=data),
                    "launcher": Doctors(),
                    "tables": ParquetStorage(data_dir=data),
                    "records": RecordStorage(data_dir=data),
                },
            )
            if failure:
                return "\n".join(
                    str(e.step_failure_data.error) for e in result.all_events if e.is_step_failure
                )
            record = instance.event_log_storage.get_asset_check_execution_history(CHECK, limit=1)
            return record[0].event.dagster_event.event_specific_data

        yield go


def with_kept(*kept_results):
    """An asset that keeps these results, each a pair of findings and a revision, as it is made."""

    @dg.asset(name="sensitivity_scores", partitions_def=partitions, io_manager_key="tables")
    def made(context: dg.AssetExecutionContext, pipeline: Pipeline) -> pa.Table:
        policy = parse_policy(pipeline.policies, "general-conduct", "medical")
        for findings, revision in kept_results:
            keep(pipeline, policy, findings, revision)
        return SENSITIVITY.empty_table()

    return made


def test_a_fit_model_passes_with_all_findings(materialize):
    shown = materialize(with_kept((SOUND, "r1")), doctor_check.model_is_fit)
    assert shown.passed and shown.partition == KEY
    assert shown.description == "no errors, 1 notes"
    assert shown.metadata["model revision"].value == "r1"
    assert "- note: chat template: it has" in shown.metadata["findings"].value


def test_findings_are_no_html(materialize):
    """A chat template or a folder's name is hostile text, and the UI renders Markdown."""
    shown = materialize(with_kept((SOUND, "r1")), doctor_check.model_is_fit)
    assert "<b>" not in shown.metadata["findings"].value


def test_an_unfit_model_fails_with_the_fix(materialize):
    shown = materialize(with_kept((UNFIT, "r1")), doctor_check.model_is_fit)
    assert not shown.passed and shown.severity == dg.AssetCheckSeverity.ERROR
    assert "Fix: add 2 to eos_token_id." in shown.description


def test_without_a_result_nothing_is_passed(materialize):
    shown = materialize(sensitivity_scores, doctor_check.model_is_fit)
    assert not shown.passed and shown.severity == dg.AssetCheckSeverity.WARN
    assert "Fix: policyalign doctor general-conduct --domain medical" in shown.description


def test_a_refusal_is_shown_although_the_stage_made_nothing(materialize):
    chain = {asset.key.to_user_string(): asset for asset in assets.stage_assets}
    shown = materialize(chain["policy_document"], chain["violating_instructions"])
    assert not shown.passed and shown.partition == KEY
    assert "answers would run on Fix: add 2 to eos_token_id." in shown.description


def test_a_second_refusal_of_a_partition_is_shown_too(materialize):
    """Dagster takes one evaluation without a run for each partition."""
    chain = {asset.key.to_user_string(): asset for asset in assets.stage_assets}
    wanted = chain["policy_document"], chain["violating_instructions"]
    problems = [materialize(*wanted, failure=True) for _ in range(2)]
    assert all("the model cannot be aligned" in problem for problem in problems)
    assert not any("IntegrityError" in problem for problem in problems)
    assert not materialize(*wanted).passed
