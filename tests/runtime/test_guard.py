"""No process outlives the run that started it: real processes, really killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from fake_definitions import STUBBORN

from policyalign_assets.orchestration.launchers import run_guarded
from policyalign_assets.runtime.guard import LINUX

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not LINUX, reason="adopting orphans needs Linux; elsewhere the guard ends the process group"
)

STARTER = """
    import os, signal, sys
    from policyalign_assets.orchestration.launchers import run_guarded
    # A shell that runs the tests in its background has the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_guarded([sys.executable, *sys.argv[1:]], 1.0, dict(os.environ))
"""


def script(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(textwrap.dedent(text))
    return str(folder / name)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_within(seconds: float, pids: list[int]) -> list[int]:
    """Those that are still alive after `seconds`."""
    until = time.monotonic() + seconds
    while (left := [p for p in pids if alive(p)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


@pytest.fixture()
def tree(tmp_path):
    """A starter (the run's process), the guard, a stubborn launcher, and its stubborn worker:
    (starter, guard, [launcher, worker])."""
    pids = tmp_path / "pids"
    starter = subprocess.Popen(
        [
            sys.executable,
            script(tmp_path, "starter.py", STARTER),
            script(tmp_path, "stubborn.py", STUBBORN),
            str(pids),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    until = time.monotonic() + 60
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < until and starter.poll() is None
        time.sleep(0.05)
    below = [int(p) for p in pids.read_text().split()]
    first = next(p for p in below if _parent(_parent(p)) == starter.pid)
    yield starter, _parent(first), first, next(p for p in below if p != first)
    for pid in (*below, starter.pid):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    starter.wait()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["the run, hard", "the run, interrupted", "the launcher"])
def test_nothing_is_left_ten_seconds_after(tree, killed):
    starter, guard, launcher, worker = tree
    if killed == "the run, hard":
        os.kill(starter.pid, signal.SIGKILL)
    elif killed == "the run, interrupted":
        os.kill(starter.pid, signal.SIGINT)
    else:
        os.kill(launcher, signal.SIGKILL)
    starter.wait(10)
    assert gone_within(10, [guard, launcher, worker]) == []


def test_a_killed_guard_takes_its_child_along_and_the_run_hears_of_it(tmp_path):
    pid = tmp_path / "pid"
    child = script(
        tmp_path,
        "child.py",
        f"""
        import os, pathlib, signal, time
        pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(300)
    """,
    )
    before = time.monotonic()
    assert (
        run_guarded([sys.executable, child], 1.0, dict(os.environ)) == -signal.SIGKILL
        and time.monotonic() - before < 10
    )
    assert gone_within(10, [int(pid.read_text())]) == []


@pytest.mark.slow
def test_a_polite_process_may_tidy_up(tmp_path):
    done = tmp_path / "tidied"
    polite = script(
        tmp_path,
        "polite.py",
        f"""
        import pathlib, signal, sys, time
        def tidy(*_):
            pathlib.Path({str(done)!r}).touch()
            sys.exit()
        signal.signal(signal.SIGTERM, tidy)
        pathlib.Path({str(tmp_path / "ready")!r}).touch()
        time.sleep(300)
    """,
    )
    starter = subprocess.Popen(
        [sys.executable, script(tmp_path, "starter.py", STARTER), polite],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    until = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < until:
        time.sleep(0.05)
    starter.send_signal(signal.SIGINT)
    starter.wait(10)
    assert done.exists()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ],
)
def test_the_exit_code_is_the_commands(code, expected):
    assert run_guarded([sys.executable, "-c", code], 1.0, dict(os.environ)) == expected


def test_a_process_left_behind_by_a_finished_command_is_ended(tmp_path):
    pids = tmp_path / "pids"
    stubborn = script(tmp_path, "stubborn.py", STUBBORN)
    start = (
        "import pathlib, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {stubborn!r}, {str(pids)!r}, 'worker'], "
        f"start_new_session=True)\n"
        f"while not pathlib.Path({str(pids)!r}).exists(): time.sleep(0.05)\n"
    )
    assert run_guarded([sys.executable, "-c", start], 1.0, dict(os.environ)) == 0
    assert gone_within(10, [int(pids.read_text())]) == []
