"""Unfinished work is kept for the next attempt, and removed once nobody can need it."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers import medical_policy

from policyalign_assets.files import process_name
from policyalign_assets.stages.unfinished import NOTE, claim, remove_done, work_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
STAGE = "distilled_checkpoint"
POLICY = medical_policy()


def left_by_dead_process(data, inputs: str, policy=POLICY):
    """Work on `inputs` by a process that is gone."""
    folder = work_folder(data, STAGE, {"inputs": inputs})
    claim(folder, policy)
    (folder / "step_000001").mkdir()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = process_name(process.pid)
    process.communicate(b"\n")
    note = json.loads((folder / NOTE).read_text()) | {"process": name}
    (folder / NOTE).write_text(json.dumps(note))
    return folder


def test_the_next_attempt_on_the_same_inputs_finds_the_work(tmp_path):
    folder = left_by_dead_process(tmp_path, "a")
    again = work_folder(tmp_path, STAGE, {"inputs": "a"})
    claim(again, POLICY)
    assert again == folder and (folder / "step_000001").is_dir()


def test_an_edit_removes_the_work_on_the_old_text(tmp_path):
    old = [left_by_dead_process(tmp_path, name) for name in "abc"]
    new = work_folder(tmp_path, STAGE, {"inputs": "d"})
    claim(new, POLICY)
    assert not any(folder.exists() for folder in old) and new.is_dir()


def test_work_of_another_partition_stays(tmp_path):
    others = [
        left_by_dead_process(tmp_path, "a", replace(POLICY, domain="legal")),
        left_by_dead_process(tmp_path, "b", replace(POLICY, policy_id="another")),
        left_by_dead_process(tmp_path, "e", "medical"),  # of a deployment
    ]
    claim(work_folder(tmp_path, STAGE, {"inputs": "c"}), POLICY)
    remove_done(tmp_path, STAGE, POLICY)
    assert all(folder.is_dir() for folder in others)


def test_work_of_a_living_process_stays(tmp_path):
    """Such as that of an experiment, which may run beside the deployment's run."""
    folder = work_folder(tmp_path, STAGE, {"inputs": "a"})
    claim(folder, POLICY)
    claim(work_folder(tmp_path, STAGE, {"inputs": "b"}), POLICY)
    remove_done(tmp_path, STAGE, POLICY)
    assert folder.is_dir()


@pytest.mark.parametrize(
    "process", ["0badcafe-1-5@abcdef01", "0badcafe-1-unknown", "", "-", "x-y-z"]
)
def test_work_of_an_unknown_process_stays(tmp_path, process):
    folder = left_by_dead_process(tmp_path, "a")
    note = json.loads((folder / NOTE).read_text()) | {"process": process}
    (folder / NOTE).write_text(json.dumps(note))
    remove_done(tmp_path, STAGE, POLICY)
    assert folder.is_dir()


@pytest.mark.parametrize("note", ["", "{", "[]", "{}", "null"])
def test_a_torn_note_stops_nothing(tmp_path, note):
    (left_by_dead_process(tmp_path, "a") / NOTE).write_text(note)
    done = left_by_dead_process(tmp_path, "b")
    remove_done(tmp_path, STAGE, POLICY)
    assert not done.exists()


def test_what_a_later_stage_has_read_is_removed(tmp_path):
    folder = left_by_dead_process(tmp_path, "a")
    remove_done(tmp_path, STAGE, POLICY)
    assert not folder.exists()


def test_work_of_a_deployment_is_removed_by_its_name(tmp_path):
    folder, other = (left_by_dead_process(tmp_path, name, name) for name in ("medical", "legal"))
    of_partition = left_by_dead_process(tmp_path, "a")
    remove_done(tmp_path, STAGE, "medical")
    assert not folder.exists() and other.is_dir() and of_partition.is_dir()
