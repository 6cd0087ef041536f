"""Runs a command whose processes never outlive the guard, nor the process that started the guard.

    python -I -S guard.py <grace seconds> <command> …

Standard input must be a pipe on which nothing is written. It closes when the starter dies, however
it dies, and the guard then ends the command; this works on every system. Training launchers start
workers in sessions of their own, which a signal to a process group misses. So on Linux the guard
adopts every orphan below it (PR_SET_CHILD_SUBREAPER) and ends all its descendants with SIGTERM, and
with SIGKILL after the grace. Only the standard library is used, so that the guard starts fast.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
INHERITED: set[int] = set()  # file descriptors, such as locks, that a guard keeps until it ends
asked_to_stop = False


@contextlib.contextmanager
def guarded(
    command: list[str], grace: float, environment: dict[str, str], pipe_output: bool = False
) -> Iterator[subprocess.Popen]:
    """Starts `command` under a guard, whose exit code is the command's (128 + n for signal n).

    Afterwards, or when this process dies, every process below `command` is ended.
    `pipe_output`: standard output is the guard's `stdout`.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(grace), *command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if pipe_output else None,
        start_new_session=True,
        pass_fds=tuple(INHERITED),
    )
    assert process.stdin is not None  # a pipe, see above
    try:
        yield process
    finally:
        process.stdin.close()  # the guard takes it as the end
        try:
            process.wait(grace + 3)
        finally:
            with contextlib.suppress(ProcessLookupError):
                # if the guard itself was killed, its group is still there
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout:
                process.stdout.close()


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def stop(*_: object) -> None:
    global asked_to_stop
    asked_to_stop = True


def descendants() -> set[int]:
    """Every living process below this one (Linux)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if state != "Z":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, todo = set(), [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found


def signal_all(number: int) -> None:
    if not LINUX:
        os.killpg(0, number)  # this process too, for SIGKILL: its work is done then
    for pid in descendants() if LINUX else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def reap(child: int) -> int | None:
    """Collects what has ended, adopted orphans too. The exit code of `child`, if it was among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            code = os.waitstatus_to_exitcode(status)


def end_all(child: int, grace: float) -> None:
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 2.0)):
        until = time.monotonic() + patience
        signal_all(number)
        while time.monotonic() < until:
            reap(child)
            if LINUX and not descendants():
                return
            time.sleep(0.05)


def main() -> int:
    grace, command = float(sys.argv[1]), sys.argv[2:]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    if LINUX:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=(lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)) if LINUX else None,
    ).pid
    code = None
    while code is None and not asked_to_stop:
        closed, _, _ = select.select([0], [], [], 0.1)
        if closed and not os.read(0, 1):
            break
        code = reap(child)
    end_all(child, grace)
    if code is None:
        return 128 + signal.SIGTERM
    return code if code >= 0 else 128 - code  # as a shell says it


if __name__ == "__main__":
    # os._exit: nothing here needs the interpreter's tidying up
    os._exit(main())
