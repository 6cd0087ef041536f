"""What became of every draft of one rule: the numbers always add up.

Three sources give candidate texts: the policy's author (`written`), the generator (`drafted`), and
templates that change rows which were kept before (`templated`: attack styles and recombinations).
Each candidate is either kept, or dropped for exactly one reason. `surplus` is the reason for a good
draft that came when its place was already filled, because each round asks for more drafts than
places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SURPLUS = "surplus"


@dataclass
class RuleYield:
    """The counts of one rule. `starved`: fewer main requests than wanted after all rounds."""

    wanted: int
    wanted_twins: int = 0
    wanted_neighbours: int = 0  # recombined ones included
    wanted_styled: int = 0
    violating: int = 0  # or, for a duty, requests that call for it
    twins: int = 0
    neighbours: int = 0
    styled: int = 0
    heldout: int = 0  # of the rows that were kept
    written: int = 0  # by the policy's author
    drafted: int = 0  # by the generator
    templated: int = 0  # made by templates from rows that were kept
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    refused: Counter[str] = field(default_factory=Counter)  # refusals, by step of the ladder
    unjudged: int = 0  # rows kept although the judge of their entailment failed

    @classmethod
    def from_dict(cls, counts: Mapping[str, Any]) -> RuleYield:
        """From `vars` of a yield, as JSON keeps it."""
        counters = {key: Counter(counts[key]) for key in ("dropped", "refused")}
        return cls(**{**counts, **counters})

    @property
    def starved(self) -> bool:
        return self.violating < self.wanted

    @property
    def why_starved(self) -> str:
        """Such as "3 of 40 requests from 320 drafts; dropped: gibberish 280, duplicate 37"."""
        dropped = ", ".join(f"{reason} {n}" for reason, n in self.dropped.most_common())
        return (
            f"{self.violating} of {self.wanted} requests from {self.drafted} drafts"
            + (f" and {self.written} requests of the author" if self.written else "")
            + (f"; dropped: {dropped}" if dropped else "")
        )

    @property
    def kept(self) -> int:
        return self.violating + self.twins + self.neighbours + self.styled

    @property
    def unaccounted(self) -> int:
        """Candidates that are neither kept nor dropped: 0, unless the code has a fault."""
        found = self.written + self.drafted + self.templated
        return found - self.kept - sum(self.dropped.values())

    def check(self, rule_id: str) -> None:
        """Raises RuntimeError where a candidate is unaccounted for."""
        if self.unaccounted:
            raise RuntimeError(
                f"rule {rule_id}: {self.written} requests of the author, {self.drafted} drafts and "
                f"{self.templated} templated texts, but {self.kept} kept and "
                f"{sum(self.dropped.values())} dropped. "
                "Fix: report this; synthesis lost count of a draft."
            )
