"""What several modules of this folder start from."""

import shutil
from pathlib import Path

import dagster as dg
import pytest
from helpers import ROOT

from policyalign_assets.orchestration import deployments


@pytest.fixture()
def policies(tmp_path, monkeypatch) -> Path:
    """A copy of the shipped policies, beside which there is no file of a deployment yet."""
    monkeypatch.setattr(deployments, "DEPLOYMENTS_DIR", str(tmp_path / "deployments"))
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    return tmp_path / "policies"


@pytest.fixture()
def instance():
    with dg.instance_for_test() as made:
        yield made
