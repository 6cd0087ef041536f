"""What the model doctor found (imports no torch)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "note", "error", "not checked"]


class Unfit(ValueError):
    """The configuration cannot work. The message lists every problem and its fix."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    `note` means odd but workable, and "not checked" means that the check could not run: it is never
    the same as `ok`. `fix` says what to do about a note or an error.
    """

    check: str
    level: Level
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f" Fix: {self.fix}" if self.fix else ""
        return f"{self.check}: {self.detail}{fix}"


@dataclass(frozen=True)
class Examination:
    """All findings about one model revision and one policy.

    `policy_hash` is None if no policy was examined. `template_date` is the date that chat templates
    see instead of today's.
    """

    model_id: str
    model_revision: str | None  # None if the model could not be loaded
    policy_hash: str | None
    template_date: str
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[Finding]:
        return [f for f in self.findings if f.level == "error"]

    @property
    def ok(self) -> bool:
        return not self.errors

    def require(self) -> None:
        """Raises Unfit if there is an error."""
        if self.errors:
            lines = "\n  ".join(map(str, self.errors))
            raise Unfit(f"model.id={self.model_id!r} cannot be aligned:\n  {lines}")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Examination:
        """Raises ValueError or TypeError for text that `to_json` did not write."""
        fields = json.loads(text)
        findings = tuple(Finding(**f) for f in fields.pop("findings"))
        return cls(findings=findings, **fields)
