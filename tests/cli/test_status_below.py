"""`policyalign status` in a subfolder of a project: it reads the history of the project."""

import shutil

import dagster as dg
import pytest
from click.testing import CliRunner
from helpers import ROOT

from policyalign_assets.cli.main import main
from policyalign_assets.orchestration.realign import desired_states
from policyalign_assets.settings import load_settings
from policyalign_assets.stages import fingerprints


@pytest.mark.slow
def test_a_subfolder_has_the_history_of_its_project(tmp_path, monkeypatch):
    below = tmp_path / "policies/data-privacy"
    shutil.copytree(ROOT / "policies/data-privacy", below)
    shutil.copy(ROOT / "dagster.yaml", tmp_path)
    for name in ("DAGSTER_HOME", "POLICYALIGN_POLICIES_DIR", "POLICYALIGN_DATA_DIR"):
        monkeypatch.setenv(name, "")  # so that what the command sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    wanted = desired_states(tmp_path / "policies", load_settings())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        for key, stages in wanted.items():
            for stage, fingerprint in stages.items():
                made = dg.AssetMaterialization(
                    stage, partition=key, tags={fingerprints.TAG: fingerprint}
                )
                instance.report_runless_asset_event(made)
    monkeypatch.chdir(below)
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == 0, result.output
    assert result.output.count("up to date") == len(wanted)
    assert {path.name for path in below.iterdir()} == {
        path.name for path in (ROOT / "policies/data-privacy").iterdir()
    }
