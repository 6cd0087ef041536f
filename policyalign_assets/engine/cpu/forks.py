"""Spreads work over the cores of a CPU: forks of this process, with one thread each.

PyTorch's threads wait for each other after every operation, and those of a small model are short.
Forks wait for each other once. They begin with the memory of this process, so a model is not loaded
again and its weights are not copied.

It is how PyTorch's DataLoader works. Forks are made on Linux only, by a process without other
Python threads, whose locks a fork would inherit. `OMP_NUM_THREADS=1` turns them off.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from policyalign_assets.engine.batching import by_length
from policyalign_assets.engine.forward.protocol import Forward

Item = TypeVar("Item")
Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1
LEAST = 16  # rows for which a fork is worth while
# Tokens times parameters for which it is. Making two forks takes about 0.1 s, and their gain is
# about a fifth: rollouts of the bundled model are faster without, whole suites with them.
LEAST_WORK = 5e10
MOST = 8  # forks, since each has a batch and its keys and values in memory


class ForkDied(RuntimeError):
    """A fork of this process ended before its work did."""


def forks_for(forward: Forward, lengths: Sequence[int]) -> int:
    """How many forks are worth while for passes over rows of these lengths; 1 means none.

    Of a large model, each fork would read all weights for a few rows, so it has none. Small ones
    are those that are computed with copies of their weights (`plain_llama.py`).
    """
    forks_are_safe = sys.platform == "linux" and threading.active_count() == 1
    if not (forward.copied and forks_are_safe):
        return 1
    work = sum(lengths) * sum(p.numel() for p in forward.model.parameters())
    return max(1, min(MOST, torch.get_num_threads(), int(work / LEAST_WORK)))


def batches_for(forks: int, lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Like `by_length`, and at least one batch for each fork where there are enough rows."""
    forks = min(forks, len(lengths) // LEAST)
    if forks > 1:
        batch_tokens = min(batch_tokens, max(lengths) + sum(lengths) // forks)
    return list(by_length(lengths, batch_tokens))


def spread(
    work: Callable[[Item], Result], items: Sequence[Item], forks: int
) -> Iterator[tuple[int, Result]]:
    """Yields (i, work(items[i])) in the order in which they are ready, from at most `forks` forks.

    Results travel by pickle, so they should hold no large tensors. Raises what `work` raises, and
    ForkDied.
    """
    forks = min(forks, len(items))
    if forks < 2:
        yield from ((i, work(item)) for i, item in enumerate(items))
        return
    context = multiprocessing.get_context("fork")
    taken = context.Value("q", 0)

    def next_item() -> int:
        with taken.get_lock():
            taken.value += 1
            return int(taken.value) - 1

    def do(main: Connection) -> None:
        while (i := next_item()) < len(items):
            main.send((i, work(items[i])))
        main.send(None)

    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(forked(do)) for _ in range(forks)]
        while running:
            for fork in [f for f in wait(running) if isinstance(f, Connection)]:
                if (done := receive(fork)) is None:
                    running.remove(fork)
                else:
                    yield done


@contextlib.contextmanager
def forked(do: Callable[[Connection], object]) -> Iterator[Connection]:
    """A fork of this process that calls `do` with a connection to this one; yields the other end.

    The fork has one thread. What `do` raises is raised here by `receive`. The fork is ended with
    the context, and if this process dies.
    """
    ours, theirs = multiprocessing.Pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if not child:
        ours.close()
        _run(do, theirs, parent)
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def receive(fork: Connection) -> Any:
    """What the fork has sent. Raises what was raised there, and ForkDied."""
    try:
        said = fork.recv()
    except (EOFError, ConnectionError) as error:
        raise ForkDied(
            "a process that computes beside this one was ended from outside. The memory of the "
            "machine may be full. Fix: lower model.batch_tokens, or set OMP_NUM_THREADS=1."
        ) from error
    if isinstance(said, BaseException):
        raise said
    return said


def _run(do: Callable[[Connection], object], main: Connection, parent: int) -> None:
    """The fork's whole life."""
    code = 1
    try:
        import ctypes

        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before this process asked to die with it
            os._exit(code)
        torch.set_num_threads(1)
        try:
            do(main)
            code = 0
        except Exception as error:
            main.send(_sendable(error))
    finally:
        os._exit(code)  # what is to happen when the parent ends must not happen here


def _sendable(error: Exception) -> Exception:
    """The error itself, or what it says where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
