"""Runs a command whose processes outlive neither the guard nor the process that started the guard.

    python -I -S guard.py <grace seconds> <descriptor to pass on, or -> <command> …

Standard input must be a pipe to which nothing is written. It closes when the process that started
the guard ends for any reason, and the guard then ends the command. This works on every system.

Training launchers start workers in sessions of their own, which a signal to a process group does
not reach. On Linux, the guard therefore adopts all orphans below it (PR_SET_CHILD_SUBREAPER). It
ends all its descendants with SIGTERM, and with SIGKILL after the grace period. Only the standard
library is used, so that the guard starts fast.
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
    command: list[str],
    grace: float,
    environment: dict[str, str],
    pipe_output: bool = False,
    passed: int | None = None,
) -> Iterator[subprocess.Popen]:
    """Start `command` under a guard, whose exit code is the command's (128 + n for signal n).

    Afterwards, or when this process dies, every process below `command` is ended. With
    `pipe_output`, the command's output can be read from the guard's `stdout`. The file descriptor
    `passed` is open in the command too, under the same number.
    """
    descriptors = () if passed is None else (passed,)
    told = "-" if passed is None else str(passed)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(grace), told, *command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if pipe_output else None,
        start_new_session=True,
        pass_fds=(*INHERITED, *descriptors),
    )
    assert process.stdin is not None  # it is a pipe (see above)
    try:
        yield process
    finally:
        process.stdin.close()  # this tells the guard to end the command
        try:
            process.wait(grace + 3)
        finally:
            with contextlib.suppress(ProcessLookupError):
                # If the guard itself was killed, its process group still exists.
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
    """Return every living process below this one (Linux only)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # the process has ended
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
        os.killpg(0, number)  # SIGKILL ends this process too; its work is then done
    for pid in descendants() if LINUX else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def reap(child: int) -> int | None:
    """Collect processes that have ended, and return the exit code of `child` if it is one of them.

    Adopted orphans are collected too.
    """
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
    grace, command = float(sys.argv[1]), sys.argv[3:]
    descriptors = () if sys.argv[2] == "-" else (int(sys.argv[2]),)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    if LINUX:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=descriptors,
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
    return code if code >= 0 else 128 - code  # the convention of shells


if __name__ == "__main__":
    # os._exit is faster, and nothing here needs the interpreter's cleanup.
    os._exit(main())
