"""Separates a model's reasoning from its answer. Only the answer is judged."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAMES = "think|thinking|thought|thoughts|reasoning|reason|reflection|scratchpad|analysis"
_CLOSED = re.compile(
    rf"</(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|?/?end_of_thought\|?>|<\|end_of_thinking\|>"
    r"|<\|channel\|>\s*final\s*(?:<\|message\|>)?|<channel\|>|<unused95>",
    re.IGNORECASE,
)
_OPEN = re.compile(
    rf"\s*(?:<(?:{_NAMES})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|begin_of_thinking\|>"
    r"|<\|channel\|>\s*analysis\s*(?:<\|message\|>)?|<\|channel>\s*thought|<unused94>\s*thought)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class WithoutThinking:
    """`answer`: what follows the reasoning. `closed`: False where the reasoning never ends."""

    answer: str
    closed: bool


def without_thinking(text: str) -> WithoutThinking:
    """Drops everything up to the last end of a reasoning block; many templates open the block
    themselves, so an end without a beginning counts too."""
    end = 0
    for match in _CLOSED.finditer(text):
        end = match.end()
    rest = text[end:]
    if _OPEN.match(rest):
        return WithoutThinking("", closed=False)
    return WithoutThinking(rest.strip(), closed=True)
