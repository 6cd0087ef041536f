"""What killed processes leave is swept, what living ones write is not, and who may read what."""

import os
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from policyalign_assets.files import (
    MARK,
    new_directory,
    replacing_file,
    sweep,
    temporary_folder,
    write_whole,
)

ROOT = Path(__file__).parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by /proc")
DIES = """
import os, sys
from pathlib import Path
from policyalign_assets.files import new_directory, replacing_file, temporary_folder
where = Path(sys.argv[1])
with (
    temporary_folder(),
    replacing_file(where / "a/table.parquet") as f,
    new_directory(where / "c/x") as d,
):
    f.write_bytes(b"half"); (d / "weights").write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""


def marked(*folders: Path) -> list[Path]:
    return [p for folder in folders for p in folder.rglob(f"*{MARK}*")]


@linux
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(
    tmp_path, monkeypatch
):
    temporary, data = tmp_path / "tmp", tmp_path / "data"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    subprocess.run(
        [sys.executable, "-c", DIES, str(data)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
    )
    assert len(marked(temporary, data)) == 3
    with temporary_folder(data) as alive, replacing_file(data / "a/other") as written:
        written.write_bytes(b"whole")
        assert len(sweep(data)) == 3
        assert alive.is_dir() and written.is_file()
    assert marked(temporary, data) == [] and (data / "a/other").read_bytes() == b"whole"


@linux
def test_what_another_machine_writes_into_a_shared_folder_is_left_alone(tmp_path):
    (tmp_path / f"{MARK}0badcafe-1-5@abcdef01.xyz").write_bytes(b"half")
    assert sweep(tmp_path) == []


@contextmanager
def umask(mask: int):
    before = os.umask(mask)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("mask", "text", "weights", "folder"),
    [(0o022, 0o640, 0o644, 0o755), (0o077, 0o600, 0o600, 0o700), (0o000, 0o640, 0o644, 0o755)],
)
def test_the_world_reads_weights_and_no_text_and_the_umask_takes_more_away(
    tmp_path, mask, text, weights, folder
):
    with umask(mask):
        write_whole(tmp_path / "answers.parquet", b"x")
        with new_directory(tmp_path / "checkpoint") as made:
            (made / "adapter.safetensors").write_bytes(b"x")
            (made / "adapter.safetensors").chmod(0o600)  # as some libraries write it
    assert mode(tmp_path / "answers.parquet") == text
    assert mode(tmp_path / "checkpoint/adapter.safetensors") == weights
    assert mode(tmp_path / "checkpoint") == folder
