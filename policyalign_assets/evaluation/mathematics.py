"""Compares answers to mathematics by value (math-verify), in a process that can be stopped.

math-verify limits its time with a signal, which only the main thread of a process receives. Some
expressions keep sympy busy where no signal reaches it, or end the process. Such a pair has no
result; all other pairs keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection

SECONDS = 60.0  # for one pair
_START_SECONDS = 600.0  # for the process and its imports

Compare = Callable[[str, str], bool | None]


def same_value(reference: str, answer: str) -> bool | None:
    """Whether `answer` has the value of `reference`. None if math-verify cannot tell."""
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException  # a BaseException

    try:
        return bool(verify(parse(f"\\boxed{{{reference}}}"), parse(answer)))
    except (Exception, TimeoutException):  # sympy raises many kinds of errors on what models write
        return None


def same_values(
    pairs: Sequence[tuple[str, str]], seconds: float = SECONDS, compare: Compare = same_value
) -> list[bool | None]:
    """For each (reference, answer), whether both have the same value; None if that is unknown.

    compare: the comparison of one pair; a function that another process can import.
    """
    results: list[bool | None] = []
    while len(results) < len(pairs):
        results += _until_one_fails(pairs[len(results) :], seconds, compare)
    return results


def _until_one_fails(
    pairs: Sequence[tuple[str, str]], seconds: float, compare: Compare
) -> list[bool | None]:
    """Results up to and including the first pair that stopped the process or its time (None)."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_answer_pairs, args=(there, compare), daemon=True)
    process.start()
    there.close()
    results: list[bool | None] = []
    try:
        if not here.poll(_START_SECONDS):
            return [None]
        here.recv()
        for pair in pairs:
            here.send(pair)
            if not here.poll(seconds):
                return [*results, None]
            results.append(here.recv())
    except (EOFError, OSError):  # the process has ended
        results.append(None)
    finally:
        process.kill()
        process.join()
        here.close()
    return results


def _answer_pairs(connection: Connection, compare: Compare) -> None:
    connection.send("ready")
    while True:
        connection.send(compare(*connection.recv()))
