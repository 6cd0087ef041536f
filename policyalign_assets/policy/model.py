"""A policy as typed data."""

import datetime
import hashlib
import json
from dataclasses import dataclass
from typing import Literal, get_args

RuleKind = Literal["prohibit", "require", "condition", "permit", "define"]
RuleSource = Literal["shared", "domain"]
Severity = Literal["low", "medium", "high", "critical"]

KINDS: tuple[str, ...] = get_args(RuleKind)
SEVERITIES: tuple[str, ...] = get_args(Severity)


def collapse(text: str) -> str:
    """`text` with every run of whitespace as one space, so that line wrapping has no meaning."""
    return " ".join(text.split())


@dataclass(frozen=True)
class Rule:
    """One rule of a policy: its words, what was read from them, and what its author added.

    Kinds: `prohibit` and `require` hold always. A `condition` holds where `condition` is true, and
    forbids or requires (see `forbids`). A `permit` limits the rule `limits`. A `define` explains a
    word. Permissions and definitions are only part of the prompt.

    `action` is a verb phrase in its base form ("forge a signature"): what a prohibition forbids or
    what a permission allows. It is None for other kinds, and where the words do not tell it.
    `demand` is the verb phrase that a duty requires ("cite sources"); requests are not made of it.
    """

    rule_id: str
    text: str  # with the words that it inherits from the line above its list
    kind: RuleKind
    action: str | None
    source: RuleSource
    line: int
    forbids: bool = False
    condition: str | None = None
    exceptions: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()  # what it expressly allows, or what a permission adds to it
    category: str = ""  # the headings above it, "Privacy / Staff"
    severity: Severity | None = None
    violates: tuple[str, ...] = ()  # requests that break it, by its author
    allowed: tuple[str, ...] = ()  # close requests that do not break it, by its author
    examples: tuple[str, ...] = ()  # what it names as "e.g." or "including"
    source_place: str = ""  # where it stands in an imported document
    language: str = "en"  # ISO 639-1
    limits: str | None = None  # a permission's: the id of the rule that it limits
    written: str = ""  # its own words where `text` adds inherited ones
    demand: str | None = None
    overruled: tuple[str, ...] = ()  # the fields under the rule that overrule its reading

    @property
    def words(self) -> str:
        """The rule's own words, as its author wrote them."""
        return self.written or self.text

    @property
    def content_hash(self) -> str:
        """Changes with the rule's id, its text and the fields under it, and with nothing else."""
        return _sha256("\n".join((self.rule_id, collapse(self.text), *self._fields())))

    def _fields(self) -> list[str]:
        """The author's fields that change what is trained or measured, as text."""
        values = {name: getattr(self, _FIELD_NAMES.get(name, name)) for name in self.overruled}
        values |= {name: getattr(self, name) for name in ("violates", "allowed")}
        return [f"{name}={json.dumps(value)}" for name, value in values.items() if value]


_FIELD_NAMES = {"except": "exceptions"}


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
    # ids of rules that may stay short of instructions, by the owner's word
    waive_starved: tuple[str, ...] = ()
    # bars of the release gates that hold for this policy in this domain, by its owner's word
    gates: tuple[tuple[str, float], ...] = ()
    approvers: tuple[str, ...] = ()  # who may approve its releases
    warnings: tuple[str, ...] = ()  # what `policyalign lint` warns about, one line each

    @property
    def prompt_text(self) -> str:
        """What the model gets as its system message."""
        blocks = [f"# {self.title}"]
        if self.preamble:
            blocks.append(self.preamble)
        blocks.append(self._rules_text())
        if self.declining:
            blocks.append(f"## Declining\n{self.declining}")
        return "\n\n".join(blocks)

    def _rules_text(self) -> str:
        lines, category = ["## Rules"], ""
        for rule in self.rules:
            if rule.category != category:
                category = rule.category
                lines.append(f"### {category or 'General'}")
            lines.append(f"- {rule.rule_id}: {rule.text}{_added_exceptions(rule)}")
        return "\n".join(lines)

    @property
    def content_hash(self) -> str:
        """Changes exactly when the model's instructions or the typed rules change.

        Owner, date, references, waivers, approvers, severity and sources do not count.
        """
        rules = [[r.rule_id, r.kind, r.text, *r._fields()] for r in self.rules]
        return _sha256(json.dumps([self.prompt_text, rules]))

    @property
    def prohibitions(self) -> tuple[Rule, ...]:
        return self.of_kind("prohibit")

    @property
    def duties(self) -> tuple[Rule, ...]:
        return self.of_kind("require")

    @property
    def conditions(self) -> tuple[Rule, ...]:
        return self.of_kind("condition")

    @property
    def permissions(self) -> tuple[Rule, ...]:
        return self.of_kind("permit")

    @property
    def definitions(self) -> tuple[Rule, ...]:
        return self.of_kind("define")

    def of_kind(self, kind: RuleKind) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.kind == kind)


def _added_exceptions(rule: Rule) -> str:
    """The exceptions that stand in a field, as words for the model; those in the text are there."""
    if "except" not in rule.overruled or not rule.exceptions:
        return ""
    return f" Exception: {'; '.join(rule.exceptions)}."


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
