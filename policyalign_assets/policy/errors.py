"""What is wrong with a policy: faults, and the error that carries them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, where, and how its author corrects it.

    `path` starts at the policies folder ("policies/x/policy.md"). `line` is None where no single
    line is to blame. A warning does not stop the policy from being used.
    """

    path: str
    line: int | None
    problem: str
    fix: str
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        where = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{where}: {self.problem}. Fix: {self.fix}"


class PolicyError(ValueError):
    """A policy that cannot be used. Its text names all faults, one a line.

    `path`, `line`, `problem` and `fix` are those of the first fault.
    """

    def __init__(
        self,
        path: str,
        line: int | None,
        problem: str,
        fix: str,
        others: tuple[Fault, ...] = (),
    ) -> None:
        # All go to ValueError so that the error survives pickling between worker processes.
        super().__init__(path, line, problem, fix, others)
        self.path = path
        self.line = line
        self.problem = problem
        self.fix = fix
        self.faults = (Fault(path, line, problem, fix), *others)

    @classmethod
    def of(cls, faults: Sequence[Fault]) -> "PolicyError":
        """The error of one or more faults, in their order."""
        first = faults[0]
        return cls(first.path, first.line, first.problem, first.fix, tuple(faults[1:]))

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))
