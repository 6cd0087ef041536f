"""Workers that are forks of one process: real processes, really killed."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from test_guard import alive, gone_within

from policyalign_assets.runtime.exchange import Exchange
from policyalign_assets.runtime.forked_workers import MODULES, ForkedWorkers
from policyalign_assets.runtime.guard import LINUX

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not LINUX, reason="workers are forked on Linux alone")


@pytest.fixture(scope="module")
def workers():
    # Nothing is loaded before the first fork: what is tested here needs no PyTorch.
    made = ForkedWorkers(1.0, modules=())
    yield made
    made.close()


def task(folder: Path, stage: str) -> str:
    folder.mkdir()
    text = {"stage": stage, "settings": {}, "data": str(folder), "inputs": [], "members": {}}
    (folder / "task.json").write_text(json.dumps({**text, "experiment": None, "deployment": None}))
    return str(folder)


def waiting(folder: Path) -> str:
    """The folder of a task that a worker never gets: reading it waits for a writer."""
    folder.mkdir()
    os.mkfifo(folder / "task.json")
    return str(folder)


def below(pid: int) -> list[int]:
    """The direct children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def within(seconds: float, what):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def family(guard: int) -> list[int]:
    """The guard, the process that is forked, and its one worker."""
    (forked,) = within(60, lambda: below(guard))
    (worker,) = within(60, lambda: below(forked))
    return [guard, forked, worker]


def running(workers: ForkedWorkers, folder: str) -> tuple[list[int], list[int]]:
    """(exit codes, which are added later; processes) of a worker that waits."""
    codes: list[int] = []
    threading.Thread(
        target=lambda: codes.append(workers.run(folder, dict(os.environ))), daemon=True
    ).start()
    within(60, lambda: workers._running is not None and hasattr(workers, "_guard"))
    return codes, family(workers._guard.pid)


def test_each_worker_is_a_new_fork_of_the_same_process_and_gives_its_reason(
    workers, tmp_path, capfd
):
    for name in ("first", "second"):
        folder = task(tmp_path / name, f"the {name} stage")
        assert workers.run(folder, dict(os.environ)) == 1
        problem = Exchange(Path(folder)).problem()
        assert f"'the {name} stage' is not a stage" in problem.message and not problem.may_pass
        # what a worker writes goes where this process writes
        assert f"'the {name} stage' is not a stage" in capfd.readouterr().err
    assert workers._guard.poll() is None


def test_a_killed_worker_is_told_and_the_next_is_a_fork_of_the_same_process(workers, tmp_path):
    codes, (guard, forked, worker) = running(workers, waiting(tmp_path / "waits"))
    os.kill(worker, signal.SIGKILL)
    within(10, lambda: codes)
    assert codes == [128 + signal.SIGKILL] and alive(guard) and alive(forked)
    assert workers.run(task(tmp_path / "next", "nonsense"), dict(os.environ)) == 1


def test_what_is_begun_early_makes_the_first_worker_and_ends_without_any(tmp_path):
    begun = ForkedWorkers(1.0, modules=())
    begun.begin(dict(os.environ))
    (forked,) = within(60, lambda: below(begun._guard.pid))
    assert begun.run(task(tmp_path / "task", "nonsense"), dict(os.environ)) == 1
    assert below(begun._guard.pid) == [forked]
    begun.close()
    unused = ForkedWorkers(1.0, modules=())
    unused.begin(dict(os.environ))
    processes = [unused._guard.pid, *within(60, lambda: below(unused._guard.pid))]
    unused.close()
    assert gone_within(10, [forked, *processes]) == []


@pytest.mark.slow
def test_what_a_worker_leaves_behind_is_ended_before_its_exit_code_is_told(tmp_path, monkeypatch):
    left = tmp_path / "left"
    # Loaded before the fork, it makes every worker start a process in a session of its own.
    (tmp_path / "leaving.py").write_text(
        textwrap.dedent(f"""
        import os, pathlib, subprocess
        def leave():
            process = subprocess.Popen(["sleep", "300"], start_new_session=True)
            pathlib.Path({str(left)!r}).write_text(str(process.pid))
        os.register_at_fork(after_in_child=leave)
    """)
    )
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    leaving = ForkedWorkers(1.0, modules=("leaving",))
    try:
        assert leaving.run(task(tmp_path / "task", "nonsense"), dict(os.environ)) == 1
        assert not alive(int(left.read_text()))
    finally:
        leaving.close()


@pytest.mark.parametrize(
    ("killed", "code"), [(0, -signal.SIGKILL), (1, 128 + signal.SIGKILL)], ids=["guard", "forked"]
)
def test_a_killed_guard_or_forked_process_takes_the_worker_along_and_the_next_worker_gets_another(
    workers, tmp_path, killed, code
):
    codes, processes = running(workers, waiting(tmp_path / "waits"))
    os.kill(processes[killed], signal.SIGKILL)
    within(10, lambda: codes)
    assert codes == [code] and gone_within(10, processes) == []
    assert workers.run(task(tmp_path / "next", "nonsense"), dict(os.environ)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_an_ended_run(tmp_path, number):
    (tmp_path / "run.py").write_text(
        textwrap.dedent("""
        import os, signal, sys
        from policyalign_assets.runtime.forked_workers import ForkedWorkers
        # A shell that runs the tests in its background has the signal ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ForkedWorkers(1.0, modules=()).run(sys.argv[1], dict(os.environ))
    """)
    )
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), waiting(tmp_path / "waits")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    (guard,) = within(60, lambda: below(run.pid))
    processes = family(guard)
    run.send_signal(number)
    run.wait(10)
    assert gone_within(10, processes) == []


@pytest.mark.slow
def test_what_is_loaded_before_the_first_fork_starts_no_thread_of_pytorch_and_no_gpu():
    """A fork has one thread alone: it must not wait for others that were there before."""
    code = f"""
import importlib, os, sys
from policyalign_assets.runtime.fast_start import without_unused_libraries
without_unused_libraries()
for module in {MODULES!r}:
    importlib.import_module(module)
import torch
print(torch.cuda.is_initialized(), "peft" in sys.modules, "sklearn" in sys.modules)
tasks = "/proc/self/task"
names = [open(f"{{tasks}}/{{task}}/comm").read().strip() for task in os.listdir(tasks)]
print([name for name in names if "pt_" in name or "omp" in name.lower()])
"""
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.splitlines() == ["False True False", "[]"]
