"""An optional second reader of rules: a model that labels spans and quotes them, and never writes.

The model is given one rule and answers with its kind and with quotations: what is forbidden or
required, when, with what exceptions, and where one rule holds several. A quotation that does not
stand in the rule word for word is refused, so no word of the model can become one of the policy.
What is left is a proposal beside the rule's text, in a draft that a person must review.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from policyalign_assets.policy.model import Rule, RuleKind, collapse
from policyalign_assets.policy.reading.actions import action_of

Ask = Callable[[Sequence[str]], Sequence[str]]  # one answer per prompt, in order

MAX_ANSWER = 20_000  # characters of an answer that are read
MAX_SPANS = 20
_LABELS = ("prohibit", "require", "permit", "define")
PROMPT = """You label the parts of one rule of a policy. You quote, and write no words of your own.

Rule:
{text}

Answer with one JSON object and nothing else:
{{"kind": one of "prohibit", "require", "permit", "define",
 "action": the words of the rule that say what is forbidden, required or allowed, or null,
 "condition": the words of the rule that say when it holds, without "if" or "when", or null,
 "exceptions": a list of the words of the rule that say when it does not hold, mostly empty,
 "parts": the words of each rule, as a list, where it holds several; else an empty list}}
Copy every quotation from the rule letter by letter."""


@dataclass(frozen=True)
class Proposal:
    """What the reader model proposes for one rule. All texts are quotations of the rule.

    refused: why parts of the answer, or all of it, were not taken.
    """

    rule_id: str
    kind: RuleKind | None = None
    action: str | None = None
    condition: str | None = None
    exceptions: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def lines(self) -> Iterator[str]:
        """The proposal for people, a line each."""
        if self.kind:
            yield f"kind: {self.kind}"
        if self.action:
            yield f'action: "{self.action}"'
        if self.condition:
            yield f'condition: "{self.condition}"'
        yield from (f'except: "{each}"' for each in self.exceptions)
        yield from (f'a rule of its own: "{each}"' for each in self.parts)
        yield from (f"refused: {each}" for each in self.refused)


def propose(rules: Sequence[Rule], ask: Ask) -> list[Proposal]:
    """One proposal per rule, in order."""
    answers = ask([PROMPT.format(text=collapse(rule.text)) for rule in rules])
    return [_proposal(rule, answer) for rule, answer in zip(rules, answers, strict=True)]


def applied(rule: Rule, proposal: Proposal, name: str) -> list[Rule]:
    """The rule as proposed, as the fields of a draft would overrule it; several where it is split.

    name: of the model, which then stands in the rules' `source`. A rule in another language keeps
    its action, because requests are written in English.
    """
    if proposal.parts:
        marked = replace(rule, source_place=_marked(rule, name, ["split"]))
        return [_part(marked, n, text) for n, text in enumerate(proposal.parts, 1)]
    changes: dict[str, Any] = {}
    overruled = list(rule.overruled)

    def propose_field(name: str, **values: Any) -> None:
        if name not in overruled:  # the author's own fields stand
            changes.update(values)
            overruled.append(name)

    label = "prohibit" if rule.forbids else "require" if rule.kind == "condition" else rule.kind
    kind = proposal.kind
    if kind and kind != label:
        propose_field("kind", kind=kind, forbids=kind == "prohibit", action=None, demand=None)
    forbids = changes.get("forbids", rule.forbids)
    if proposal.action and rule.language == "en" and (forbids or kind == "permit"):
        action = action_of(proposal.action)
        if action and action != rule.action:
            propose_field("action", action=action)
    if proposal.condition and proposal.condition != rule.condition:
        propose_field("condition", condition=proposal.condition)
    if proposal.exceptions and proposal.exceptions != rule.exceptions:
        propose_field("except", exceptions=proposal.exceptions)
    new = [field for field in overruled if field not in rule.overruled]
    if new:
        changes["source_place"] = _marked(rule, name, new)
    return [replace(rule, **changes, overruled=tuple(overruled))]


def _marked(rule: Rule, name: str, fields: Sequence[str]) -> str:
    return f"{rule.source_place} ({', '.join(fields)} proposed by {collapse(name)[:80]})".strip()


def _part(rule: Rule, number: int, text: str) -> Rule:
    from policyalign_assets.policy.reading.reader import Surroundings, read_rule

    read = read_rule(text, Surroundings(headings=(rule.category,) if rule.category else ()))
    return replace(
        rule,
        rule_id=f"{rule.rule_id}-{number}",
        text=text,
        written="",
        kind=read.kind,
        action=read.action,
        demand=read.demand,
        condition=read.condition,
        exceptions=read.exceptions,
        permitted=read.permitted,
        forbids=read.forbids,
        examples=read.examples,
        overruled=(),
    )


def _proposal(rule: Rule, answer: str) -> Proposal:
    said = _json(answer)
    if said is None:
        return Proposal(rule.rule_id, refused=("the answer is no JSON object",))
    refused: list[str] = []
    source = collapse(rule.text)

    def quoted(value: object) -> str | None:
        if value is None or value == "":
            return None
        words = collapse(value).strip(" .;,") if isinstance(value, str) else ""
        if words and words in source:
            return words
        refused.append(f"{str(value)[:80]!r} does not stand in the rule")
        return None

    def all_quoted(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            return () if value is None else tuple(x for x in [quoted(value)] if x)
        return tuple(words for each in value[:MAX_SPANS] if (words := quoted(each)))

    kind = said.get("kind")
    if kind not in _LABELS:
        refused.append(f"{str(kind)[:40]!r} is no kind of rule")
        kind = None
    assert kind is None or kind in get_args(RuleKind)
    parts = all_quoted(said.get("parts"))
    return Proposal(
        rule.rule_id,
        kind,
        quoted(said.get("action")),
        quoted(said.get("condition")),
        all_quoted(said.get("exceptions")),
        parts if len(parts) > 1 and not _overlap(source, parts) else (),
        tuple(refused),
    )


def _overlap(source: str, parts: Sequence[str]) -> bool:
    """Whether parts share words of the rule, so that they are no split of it."""
    at = 0
    for part in parts:
        found = source.find(part, at)
        if found < 0:
            return True
        at = found + len(part)
    return False


def _json(answer: str) -> dict[str, Any] | None:
    found = re.search(r"\{.*\}", answer[:MAX_ANSWER], re.DOTALL)
    try:
        said = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None
