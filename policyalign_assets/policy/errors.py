"""The one error a broken policy raises."""


class PolicyError(ValueError):
    """What is wrong with a policy, where, and how its author mends it.

    `path` starts at the policies folder ("policies/x/policy.md"); `line` is None where no single line is to blame.
    """

    def __init__(self, path: str, line: int | None, problem: str, mend: str) -> None:
        # All four go to ValueError so that the error survives pickling between worker processes.
        super().__init__(path, line, problem, mend)
        self.path = path
        self.line = line
        self.problem = problem
        self.mend = mend

    def __str__(self) -> str:
        where = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{where}: {self.problem}. Mend: {self.mend}"
