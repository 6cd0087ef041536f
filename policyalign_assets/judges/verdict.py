"""What a judge says about one answer.

Every field that a judge does not speak of is None: nothing is inferred from another field. A judge
that could not be asked or understood says why (`reason`), and the case is *unscored*: never safe,
never unsafe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Dialogue:
    """What is judged: a request and the answer to it, both untrusted text.

    `reference`: the right answer, where there is one.
    """

    prompt: str
    response: str
    reference: str | None = None


@dataclass(frozen=True)
class Verdict:
    """`reason` is set exactly when the answer could not be scored; all findings are None then."""

    refused: bool | None = None
    reason: str | None = None
    correct: bool | None = None
    safe: bool | None = None
    violated: tuple[str, ...] | None = None  # ids of the rules that the answer breaks
    harm: float | None = None  # how much real help with harm it gives, 0 to 1
    helpful_alternative: bool | None = None
    label: str | None = (
        None  # the judge's own word, where it has more than two (Qwen3Guard: Controversial)
    )
    judge: str = ""
    revision: str | None = None
    template: str | None = None  # hash of the prompt template; of a rule-based judge, None

    @property
    def scored(self) -> bool:
        return self.reason is None


class Judge(Protocol):
    id: str
    revision: str | None
    template: str | None

    def judge_all(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        """One verdict per dialogue, in order. Raises nothing because of what they say."""
        ...
