"""Which release a new report is compared with: one of what is being made, and of nothing else."""

import pytest
from helpers import medical_policy

from policyalign_assets.report.last_released import point_to
from policyalign_assets.settings import load_settings
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.stages.last_release import last_release

POLICY = medical_policy()
HERE = f"{POLICY.policy_id}/{POLICY.domain}"


@pytest.fixture()
def released(tmp_path):
    """Releases a report of the partition, and where asked one of a deployment."""

    def make(results, name: str) -> None:
        above = tmp_path if name.startswith("releases/") else results
        (above / name).mkdir(parents=True)
        (above / name / "report.json").write_text("{}")
        (results / "reports" / HERE).mkdir(parents=True, exist_ok=True)
        point_to(results, POLICY.domain, POLICY.policy_id, name)

    return make


def found(data, **where: str) -> str | None:
    context = StageContext(load_settings(environ={}), data, **where)
    release = last_release(context, POLICY)
    return release[1] if release else None


def test_a_deployment_is_compared_with_its_own_releases_alone(tmp_path, released):
    partition = f"reports/{HERE}/1"
    released(tmp_path, partition)
    assert found(tmp_path) == partition
    assert found(tmp_path, deployment="ward") is None
    bundle = f"releases/b/policies/{POLICY.policy_id}/report"
    released(tmp_path / "deployments/ward", bundle)
    assert found(tmp_path, deployment="ward") == bundle
    assert found(tmp_path) == partition


def test_an_experiment_without_a_release_is_compared_with_what_is_deployed(tmp_path, released):
    released(tmp_path, f"reports/{HERE}/1")
    assert found(tmp_path, experiment="try") == f"reports/{HERE}/1"
