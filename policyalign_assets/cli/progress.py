"""Turns the log of a run into the few lines that people read: stages, progress, time left."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field

# Dagster prints: time - dagster - LEVEL - job - run - stage - message.
_LINE = re.compile(
    r"^\S+ \S+ \S+ - dagster - (?P<level>[A-Z]+) - \S+ - \S+ - (?:(?P<stage>\w+) - )?(?P<text>.*)$"
)
_DONE_OF = re.compile(r"(?P<done>\d+)/(?P<total>\d+)")
_STACK = "Stack Trace:"
_NOISE = ("[pipes]",)
PLANNING = "policy_document"  # what it says, the plan and cost of the run, is shown at once
SOON = 10.0  # seconds until the first line of progress of a stage
EVERY = 60.0  # seconds between its later ones
LONGEST = 90  # characters of a line of progress


@dataclass
class RunLog:
    """Feed it the lines of a run; it writes the ones that matter through `write`.

    stages: the names that count as stages, in order. Lines of errors are kept in `errors`.
    """

    write: Callable[[str], None]
    stages: tuple[str, ...]
    clock: Callable[[], float] = time.monotonic
    errors: list[str] = field(default_factory=list)
    _stage: str | None = None
    _begun: float = 0.0
    _next: float = 0.0
    _failing: bool = False
    _in_stack: bool = False

    def feed(self, line: str) -> None:
        match = _LINE.match(line)
        if match is None:
            if self._failing and line.strip():
                self._explain(line)
            return
        self._failing = match["level"] in ("ERROR", "CRITICAL")
        if self._failing:
            self.errors.append(match["text"])
            return
        if match["stage"] in self.stages:
            self._enter(match["stage"])
        if match["level"] == "WARNING":
            self.write(f"  warning: {match['text']}")
        elif match["stage"] == PLANNING and match["level"] == "INFO":
            self.write(f"  {match['text']}")
        elif self._stage and not match["text"].startswith(_NOISE):
            self._progress(match["text"])

    def _explain(self, line: str) -> None:
        """Keeps a line below an error, but no stack frame: frames would push out the reason."""
        if line.strip() == _STACK:
            self._in_stack = True
        elif not (self._in_stack and line.startswith(" ")):
            self._in_stack = False
            self.errors.append(line)

    def finish(self) -> None:
        """The run has ended."""
        self._leave()

    def _enter(self, stage: str) -> None:
        if stage == self._stage:
            return
        self._leave()
        self._stage, self._begun = stage, self.clock()
        self._next = self._begun + SOON

    def _leave(self) -> None:
        if self._stage is not None:
            self.write(f"{self._stage:24} {self.clock() - self._begun:6.0f} s")
        self._stage = None

    def _progress(self, text: str) -> None:
        now = self.clock()
        if now < self._next:
            return
        self._next = now + EVERY
        found = _DONE_OF.search(text)
        left = ""
        if found and 0 < int(found["done"]) <= int(found["total"]):
            done, total = int(found["done"]), int(found["total"])
            seconds = (now - self._begun) * (total - done) / done
            left = f" (about {_duration(seconds)} left in this stage)"
        said = text.split("  ETA ")[0]  # the estimate below is of the whole stage
        said = textwrap.shorten(said, LONGEST, placeholder=" …")
        self.write(f"  {self._stage}: {said}{left}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
