"""Runs of one partition exclude each other, whoever started them and however they end."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from policyalign_assets.runtime.guard import LINUX
from policyalign_assets.runtime.partition_lock import PartitionBusy, partition_lock

ROOT = Path(__file__).parents[2]
HOLDER = textwrap.dedent("""
    import os, subprocess, sys, time
    from pathlib import Path
    from policyalign_assets.runtime.guard import guarded
    from policyalign_assets.runtime.partition_lock import partition_lock
    with partition_lock(Path(sys.argv[1]), "medical|a", "run 1"):
        with guarded([sys.executable, "-c", sys.argv[2]], 1.0, dict(os.environ)) as process:
            print("held", flush=True)
            process.wait()
""")
# it ignores the polite signal, so that the guard needs its grace
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('ready', flush=True); time.sleep(60)"
)


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), STUBBORN],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {"held\n", "ready\n"}
    return process


def test_a_second_run_is_refused_and_told_who_holds_the_partition(tmp_path):
    with partition_lock(tmp_path, "medical|a", "run 1 (process 7)"):
        with (
            pytest.raises(PartitionBusy, match=r"run 1 \(process 7\).*Fix: wait"),
            partition_lock(tmp_path, "medical|a", "run 2", patience=0.3),
        ):
            pass
        with partition_lock(tmp_path, "legal|a", "run 3", patience=0.3):
            pass  # another partition
    with partition_lock(tmp_path, "medical|a", "run 4", patience=0.3):
        pass  # free again


@pytest.mark.skipif(not LINUX, reason="the guard ends stubborn processes on Linux")
def test_a_killed_run_keeps_the_lock_until_its_last_process_is_gone_and_no_longer(tmp_path):
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)  # the guard sees the closed pipe, and its worker ignores SIGTERM
    with (
        pytest.raises(PartitionBusy, match="run 1"),
        partition_lock(tmp_path, "medical|a", "run 2", patience=0),
    ):
        pass
    with partition_lock(tmp_path, "medical|a", "run 2", patience=10):
        pass


@pytest.mark.parametrize("partition", ["../../etc|x", "a" * 500, "medical|b\udc80"])
def test_no_name_of_a_partition_leaves_the_folder(tmp_path, partition):
    with partition_lock(tmp_path, partition, "run"):
        assert [f.parent for f in tmp_path.rglob("*.lock")] == [tmp_path / ".locks"]
