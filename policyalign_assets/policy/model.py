"""A policy as typed data."""

import datetime
import hashlib
import json
from dataclasses import dataclass
from typing import Literal

DOMAINS = ("medical", "legal", "financial", "general")

RuleKind = Literal["prohibit", "require", "condition"]
RuleSource = Literal["shared", "domain"]


def collapse(text: str) -> str:
    """`text` with every run of whitespace as one space, so that line wrapping carries no meaning."""
    return " ".join(text.split())


@dataclass(frozen=True)
class Rule:
    """One sentence of a policy. `action` is what a prohibition forbids ("forge a signature"), None where no stem names it.

    What follows `line` is read from the sentence too: whether it forbids (a conditional rule may forbid or require), the condition
    under which it holds, its exceptions, and what it expressly permits.
    """

    rule_id: str
    text: str
    kind: RuleKind
    action: str | None
    source: RuleSource
    line: int
    forbids: bool = False
    condition: str | None = None
    exceptions: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()

    @property
    def content_hash(self) -> str:
        return _sha256(f"{self.rule_id}\n{collapse(self.text)}")


@dataclass(frozen=True)
class PolicyDocument:
    """A policy as it applies to one domain: the shared rules, then the domain's own."""

    policy_id: str
    domain: str
    title: str
    owner: str
    effective_date: datetime.date | None
    references: tuple[str, ...]
    preamble: str
    rules: tuple[Rule, ...]
    declining: str
    waive_starved: tuple[
        str, ...
    ] = ()  # ids of rules that may stay short of instructions, by the owner's word

    @property
    def prompt_text(self) -> str:
        """What the model gets as its system message."""
        blocks = [f"# {self.title}"]
        if self.preamble:
            blocks.append(self.preamble)
        blocks.append(
            "## Rules\n" + "\n".join(f"- {rule.rule_id}: {rule.text}" for rule in self.rules)
        )
        if self.declining:
            blocks.append(f"## Declining\n{self.declining}")
        return "\n\n".join(blocks)

    @property
    def content_hash(self) -> str:
        """Changes exactly when the model's instructions or the typed rules change; owner, date, references and waivers do not count."""
        return _sha256(
            json.dumps(
                [self.prompt_text, [[rule.rule_id, rule.kind, rule.text] for rule in self.rules]]
            )
        )

    @property
    def prohibitions(self) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.kind == "prohibit")

    @property
    def duties(self) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.kind == "require")

    @property
    def conditions(self) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.kind == "condition")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
