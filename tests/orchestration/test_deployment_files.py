"""Where a deployment's results lie, and what becomes of them when its policies go."""

import json
import shutil
from pathlib import Path

from helpers import ROOT
from upath import UPath

from policyalign_assets.orchestration.prune import find_leftovers
from policyalign_assets.orchestration.storage import RecordIOManager


def test_each_deployment_has_a_file_of_its_own():
    """One file for all let a report read the checkpoint of another deployment."""
    below = RecordIOManager(UPath("data/assets"))
    places = {
        str(below.make_safe_partition_path(UPath("deployed_checkpoint"), key))
        for key in ("medical", "legal", "medical|general-conduct")
    }
    assert places == {
        "deployed_checkpoint/medical",
        "deployed_checkpoint/legal",
        "deployed_checkpoint/medical/general-conduct",
    }


def test_what_policies_share_stays_while_one_of_them_is_there(instance, tmp_path: Path):
    policies = Path(shutil.copytree(ROOT / "policies", tmp_path / "policies"))
    data = tmp_path / "data"
    checkpoint = data / "checkpoints/abc"
    checkpoint.mkdir(parents=True)
    own = {f"medical|{p}": {"policy_id": p} for p in ("general-conduct", "data-privacy")}
    card = {"provenance": {"deployment": "ward", "policies": own}}
    (checkpoint / "checkpoint.json").write_text(json.dumps(card))
    unknown = data / "checkpoints/unknown"
    unknown.mkdir()
    (unknown / "checkpoint.json").write_text(json.dumps({"provenance": {}}))
    for policy in ("general-conduct", "data-privacy"):
        (data / f"deployments/ward/reports/{policy}/medical").mkdir(parents=True)
    assert find_leftovers(instance, policies, data).files == []
    shutil.rmtree(policies / "data-privacy")
    assert find_leftovers(instance, policies, data).files == []
    shutil.rmtree(policies / "general-conduct")
    left = find_leftovers(instance, policies, data)
    assert set(left.files) == {checkpoint, data / "deployments/ward"}
    assert left.policies == ["data-privacy", "general-conduct"]
