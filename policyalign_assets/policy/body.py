"""Reads a policy file's body: an introduction, rules below headings, and how to decline."""

import re
from dataclasses import dataclass, field, replace
from typing import get_args

from policyalign_assets.policy.blocks import Entry, Outline, read_outline
from policyalign_assets.policy.characters import latin, mixed_words
from policyalign_assets.policy.errors import Fault
from policyalign_assets.policy.fields import heading_severity, near_field, split_severity
from policyalign_assets.policy.ids import derived_id, split_id
from policyalign_assets.policy.model import Rule, RuleKind, RuleSource, Severity, collapse
from policyalign_assets.policy.reading.demands import demand_of
from policyalign_assets.policy.reading.reader import Reading, Surroundings, read_rule
from policyalign_assets.policy.reading.sentences import sentences
from policyalign_assets.policy.reading.surroundings import binding, heading_kind
from policyalign_assets.policy.source import Source

RULE_FORM = "Write it as '- C1: Never help anyone forge a signature.' (an id, a colon, a sentence)."
_DECLINING = re.compile(r"(?:declining|how to decline|when declining|declining requests)", re.I)
_RULES = re.compile(r"(?:the )?(?:policy )?rules", re.I)
_HIDDEN_RULE = re.compile(r"(?<=[a-z.;]) ([A-Z]{1,2}[0-9]+): ")
_BARE_ID = re.compile(r"([A-Za-z]{1,8}-?[0-9]+(?:\.[0-9]+)*):?")
_EXCEPT_END = re.compile(
    r",? (?:\w+ ){0,3}?(?:unless|except\w*(?: \w+)?|only (?:if|when)):?$", re.I
)
_DUTY = re.compile(r"\b(?:must|shall|should|always|has to|have to|need(?:s)? to|required)\b", re.I)
_FRAGMENT_DOUBT = "fragment"


@dataclass(frozen=True)
class Body:
    """What the body says; `preamble` and `declining` may be empty."""

    preamble: str = ""
    rules: tuple[Rule, ...] = ()
    declining: str = ""
    title: str = ""
    declining_line: int | None = None
    doubts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by rule id


def read_body(source: Source, origin: RuleSource, faults: list[Fault]) -> Body:
    """Adds to `faults` what is wrong; whatever can be read is returned all the same."""
    outline = read_outline(source, faults)
    declining, preamble, entries = _sections(outline)
    taken = {name for e in entries if (name := split_id(collapse(e.text))[0])}
    rules: list[Rule] = []
    doubts: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        made = _Maker(source, origin, faults, taken).rule(entry)
        if made is not None:
            rules.append(made[0])
            doubts[made[0].rule_id] = made[1].doubts
    if not rules:
        index = next(
            (i for name, i in outline.heading_lines.items() if _RULES.fullmatch(name)), None
        )
        fix = f"Add a heading '## Rules' with a list of rules below it. {RULE_FORM}"
        faults.append(source.error(index, "there are no rules under a heading '## Rules'", fix))
    at = next((i for name, i in outline.heading_lines.items() if _DECLINING.fullmatch(name)), None)
    if at is not None and not declining:
        fix = "Say in a paragraph below it how to decline."
        faults.append(source.error(at, "the section '## Declining' is empty", fix))
    return Body(
        collapse(" ".join(preamble)),
        tuple(_tied(rules)),
        collapse(" ".join(declining)),
        outline.title,
        None if at is None else source.numbers[at],
        doubts,
    )


def _sections(outline: Outline) -> tuple[list[str], list[str], list[Entry]]:
    """Texts about declining, texts before the first heading or rule, and the rest."""
    declining: list[str] = []
    preamble: list[str] = []
    entries: list[Entry] = []
    explicit = any(_RULES.fullmatch(name) for name in outline.heading_lines)
    for entry in outline.entries:
        if any(_DECLINING.fullmatch(h) for h in entry.headings):
            declining.append(entry.text)
        elif (
            entry.form == "prose"
            and not entries
            and (not entry.headings if explicit else _introduces_policy(entry))
        ):
            preamble.append(entry.text)
        else:
            entries.append(entry)
    return declining, preamble, entries


def _introduces_policy(entry: Entry) -> bool:
    """Whether a paragraph before all headings is no rule, in a file that marks no introduction."""
    if entry.headings or split_id(entry.text)[0]:
        return False
    words = latin(entry.text)
    return _prose(read_rule(words), words).kind == "define"


class _Maker:
    """Makes rules of entries; ids in `taken` are those that the file states."""

    def __init__(
        self, source: Source, origin: RuleSource, faults: list[Fault], taken: set[str]
    ) -> None:
        self.source, self.origin, self.faults, self.taken = source, origin, faults, taken

    def rule(self, entry: Entry) -> tuple[Rule, Reading] | None:
        name, words = split_id(collapse(entry.text))
        severity, words = split_severity(words)
        entry.lead_ins = binding(entry.lead_ins, words)
        if bare := _BARE_ID.fullmatch(words):
            name, words = bare[1], ""
        if not re.search(r"\w", words):
            fault = self.source.error(entry.index, f"the rule {name!r} has no text", RULE_FORM)
            self.faults.append(fault)
            return None
        self._refuse_hidden(name, words, entry.index)
        around = Surroundings(
            tuple(latin(t) for t in entry.lead_ins), tuple(latin(h) for h in entry.headings)
        )
        told = _EXCEPT_END.sub("", words) if entry.exceptions else words
        reading = read_rule(latin(told), around)
        if entry.exceptions:
            words = f"{words.rstrip(' *_:')}: {'; '.join(entry.exceptions)}."
        if entry.form == "prose":
            reading = _prose(reading, latin(words))
        text = _full_text(words, entry, reading)
        rule_id = name or derived_id(text, self.taken)
        self.taken.add(rule_id)
        levels = [heading_severity(h) for h in entry.headings]
        rule = Rule(
            rule_id=rule_id,
            text=text,
            kind=reading.kind,
            action=reading.action,
            demand=reading.demand,
            source=self.origin,
            line=self.source.numbers[entry.index],
            forbids=reading.forbids,
            condition=reading.condition,
            exceptions=(*reading.exceptions, *entry.exceptions),
            permitted=reading.permitted,
            category=_category(entry.headings),
            severity=_severity(severity or next((x for x in reversed(levels) if x), None)),
            examples=reading.examples,
            language=reading.language,
            written=words if words != text else "",
        )
        self._warn(rule, words, entry)
        return self._overruled(rule, entry), reading

    def _refuse_hidden(self, name: str | None, words: str, index: int) -> None:
        hidden = _HIDDEN_RULE.search(words)
        if hidden:
            problem = f"the rule {name!r} seems to run on into {hidden[1]!r}"
            fix = "Start each rule on its own line with '- '."
            self.faults.append(self.source.error(index, problem, fix))

    def _warn(self, rule: Rule, words: str, entry: Entry) -> None:
        for word in mixed_words(words):
            problem = f"{rule.rule_id}: the word {word!r} mixes letters of two scripts"
            fix = f"Type it anew: {latin(word)!r}."
            self.faults.append(self.source.warning(entry.index, problem, fix))
        if near := near_field(words):
            problem = f"{rule.rule_id}: this is read as a rule, not as the field {near!r}"
            self.faults.append(self.source.warning(entry.index, problem, f"Write '{near}: ...'."))

    def _overruled(self, rule: Rule, entry: Entry) -> Rule:
        """The rule with the fields that its author wrote below it."""
        fields = entry.fields
        changes: dict[str, object] = {}
        if kind := fields.one("kind"):
            changes["kind"] = kind
            forbids = kind == "prohibit" or (kind == "condition" and rule.forbids)
            changes["forbids"] = forbids
            if not forbids and kind != "permit":
                changes["action"] = None
            if forbids or kind not in ("require", "condition"):
                changes["demand"] = None
            elif rule.demand is None:
                changes["demand"] = demand_of(rule.words)
        if condition := fields.one("condition"):
            changes["condition"] = condition
            if not kind and rule.kind in ("prohibit", "require"):
                changes["kind"] = "condition"
        if action := fields.one("action"):
            changes["action"] = action.rstrip(".")
        if exceptions := fields.all("except"):
            changes["exceptions"] = tuple(x.rstrip(".") for x in exceptions)
        overruled = tuple(n for n in ("kind", "action", "condition", "except") if fields.one(n))
        self._check_requests(rule, entry)
        return replace(
            rule,
            **changes,  # type: ignore[arg-type]
            severity=_severity(fields.one("severity")) or rule.severity,
            violates=fields.all("violates"),
            allowed=fields.all("allowed"),
            examples=(*rule.examples, *fields.all("example")),
            source_place=fields.one("source") or "",
            limits=fields.one("limits"),
            overruled=overruled,
        )

    def _check_requests(self, rule: Rule, entry: Entry) -> None:
        both = set(entry.fields.all("violates")) & set(entry.fields.all("allowed"))
        for text in sorted(both):
            problem = f"{rule.rule_id}: {text[:80]!r} stands under 'violates' and under 'allowed'"
            self.faults.append(self.source.error(entry.index, problem, "Keep one of the two."))


def _severity(value: str | None) -> Severity | None:
    return value if value in get_args(Severity) else None  # type: ignore[return-value]


def _category(headings: tuple[str, ...]) -> str:
    return " / ".join(h for h in headings if not _RULES.fullmatch(h))


def _prose(reading: Reading, words: str) -> Reading:
    """A paragraph is a rule only where its words plainly say so; else it stays explanation."""
    plain = not reading.doubts or reading.kind in ("prohibit", "permit")
    if reading.kind == "require" and len(sentences(words)) > 1 and not _DUTY.search(words):
        plain = False  # "Be honest. Keep these rules." introduces rules
    if plain and not any(_FRAGMENT_DOUBT in doubt for doubt in reading.doubts):
        return reading
    kind: RuleKind = "define"
    return Reading(kind, language=reading.language)


def _full_text(words: str, entry: Entry, reading: Reading) -> str:
    """The words with what they inherit, so that the rule can be understood on its own."""
    if entry.lead_ins:
        return _with_leads(words, entry, reading)
    return _with_heading(words, Surroundings(), entry, reading)


def _with_leads(words: str, entry: Entry, reading: Reading) -> str:
    leads = (lead.rstrip(" *_:") for lead in entry.lead_ins[-2:])
    above = " ".join(lead if lead.endswith((".", "!")) else f"{lead}:" for lead in leads)
    around = Surroundings(tuple(latin(lead) for lead in entry.lead_ins))
    return (
        f"{above} {words}"
        if not above
        else _with_heading(words, around, entry, reading, f"{above} ")
    )


def _with_heading(
    words: str, around: Surroundings, entry: Entry, reading: Reading, above: str = ""
) -> str:
    """The words behind the heading that tells their kind, where nothing nearer tells it."""
    alone = read_rule(latin(words), around)
    told = [h for h in entry.headings if heading_kind(h) not in (None, "define")]
    differs = (alone.kind, alone.forbids) != (reading.kind, reading.forbids)
    if told and (differs or any(_FRAGMENT_DOUBT in doubt for doubt in alone.doubts)):
        heading = re.sub(r"^[\d.]+\)? ", "", told[-1])
        return f"{heading}: {above}{words}"
    return f"{above}{words}"


def _tied(rules: list[Rule]) -> list[Rule]:
    """Ties each permission to the rule that it limits: the nearest before it that it fits best."""
    out = list(rules)
    for at, rule in enumerate(out):
        if rule.kind != "permit":
            continue
        target = _limited(out, at)
        if target is None:
            continue
        limited = out[target]
        said = rule.action or rule.words
        out[target] = replace(limited, permitted=(*limited.permitted, said))
        out[at] = replace(rule, limits=limited.rule_id)
    return out


def _limited(rules: list[Rule], at: int) -> int | None:
    permit = rules[at]
    if permit.limits:
        return next((i for i, r in enumerate(rules) if r.rule_id == permit.limits), None)
    before = [i for i in range(at) if rules[i].forbids and rules[i].category == permit.category]
    if not before:
        return None
    wanted = _content_words(permit.words)
    best = max(before, key=lambda i: (len(wanted & _content_words(rules[i].words)), i))
    return best if wanted & _content_words(rules[best].words) or best == at - 1 else None


_SMALL = frozenset(
    "the a an of to and or in on for with may can you it is are never not do must help anyone that"
    " this be by from at as any how staff assistant users user".split()
)


def _content_words(text: str) -> set[str]:
    return {w.rstrip("s") for w in re.findall(r"[a-z]+", text.lower()) if w not in _SMALL}
