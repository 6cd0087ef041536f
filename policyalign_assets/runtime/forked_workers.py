"""Workers that begin at once: forks of a process that has loaded PyTorch and the stages already.

    python -m policyalign_assets.runtime.forked_workers <socket> <grace seconds> [<module> …]

Loading PyTorch, Transformers and PEFT takes several seconds of processor time, which can be more
than a stage of a small model takes. A run therefore loads them once, in this process, which does
nothing but fork a worker for each stage. Every worker begins with the memory of a fresh process,
and sees nothing of what another one did.

The process runs under a guard (see `guard`) for as long as the run. Before it tells a worker's exit
code, it ends all processes that the worker has left behind.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from policyalign_assets.runtime.fast_start import without_unused_libraries
from policyalign_assets.runtime.guard import (
    LINUX,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    end_all,
    guarded,
    prctl,
)
from policyalign_assets.stages.registry import EVERY_STAGE

# Device files of the drivers of NVIDIA, of AMD, and of GPUs in Linux on Windows
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
HEADER = 16  # bytes that hold the length of a request
# What is loaded before the first fork
MODULES = tuple(stage.module for stage in EVERY_STAGE.values() if stage.loads_model)


def can_fork() -> bool:
    """Whether forks are safe here: on Linux, and without a GPU, whose driver survives no fork."""
    return LINUX and not any(Path(device).exists() for device in GPU_DEVICES)


class ForkedWorkers:
    """The workers of one run. `close` ends them all, and the process that they are forks of."""

    def __init__(self, grace: float, modules: Sequence[str] = MODULES):
        """`grace`: seconds between SIGTERM and SIGKILL. `modules`: loaded before the first fork."""
        self.grace, self.modules = grace, modules
        self._running: contextlib.ExitStack | None = None

    def run(self, folder: str, environment: dict[str, str]) -> int:
        """Runs the worker of the exchange folder until it ends, and returns its exit code.

        The worker has `environment` and the standard output and error of this process. The code is
        128 + n or -n for signal n. If this call is interrupted, everything is ended first.
        """
        try:
            self.begin(environment)
            return self._ask(json.dumps([folder, environment]).encode())
        except ConnectionError:
            # The process or its guard has been ended. The next worker is a fork of another one.
            guard = self._guard
            self.close()
            return guard.returncode
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            running.close()

    def begin(self, environment: dict[str, str]) -> None:
        """Starts the process that is forked, and does not wait until it has loaded its modules.

        Called before the first worker is needed, it loads them while the run does something else.
        """
        if self._running is not None:
            return
        self._running = contextlib.ExitStack()
        self._socket, theirs = socket.socketpair()
        self._running.enter_context(self._socket)
        with theirs:
            descriptor = theirs.fileno()
            command = [sys.executable, "-m", __name__, str(descriptor), str(self.grace)]
            self._guard = self._running.enter_context(
                guarded([*command, *self.modules], self.grace, environment, passed=descriptor)
            )

    def _ask(self, request: bytes) -> int:
        socket.send_fds(self._socket, [b"%*d" % (HEADER, len(request))], [1, 2])
        self._socket.sendall(request)
        if answer := self._socket.recv(16):
            return int(answer)
        raise ConnectionResetError


def main() -> None:
    grace, modules = float(sys.argv[2]), sys.argv[3:]

    def end(*_: object) -> NoReturn:
        """The last of this run's processes to end is this one, which its guard waits for."""
        end_all(0, grace)
        os._exit(128 + signal.SIGTERM)

    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, end)
    gc.disable()  # a seventh of the time of these imports, which make no garbage
    if modules:
        without_unused_libraries()
    for module in modules:
        import_module(module)
    gc.freeze()  # no worker looks at these objects again
    gc.enable()
    with socket.socket(fileno=int(sys.argv[1])) as run:
        while True:
            header, outputs, _, _ = socket.recv_fds(run, HEADER, 2)
            if not header:
                return
            request = run.recv(int(header), socket.MSG_WAITALL)
            parent = os.getpid()
            child = os.fork()
            if not child:
                run.close()
                _work(parent, request, outputs)
            for descriptor in outputs:
                os.close(descriptor)
            run.sendall(str(_exit_code(child, grace)).encode())


def _work(parent: int, request: bytes, outputs: list[int]) -> NoReturn:
    """Makes this process, a fork of `parent`, the worker that was asked for."""
    from policyalign_assets.runtime.worker import work

    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before this process asked to end with it
            os._exit(code)
        for stream, descriptor in enumerate(outputs, 1):
            os.dup2(descriptor, stream)
            os.close(descriptor)
        folder, environment = json.loads(request)
        os.environ.clear()
        os.environ.update(environment)
        code = 0 if work(folder) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what is to happen when the parent ends must not happen here


def _exit_code(child: int, grace: float) -> int:
    """The exit code of `child`, after all that it left behind was ended."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            break
    end_all(child, grace)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code  # the convention of shells


if __name__ == "__main__":
    main()
