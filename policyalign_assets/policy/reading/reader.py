"""Reads one rule: its kind, action, condition and exceptions, from its words and what stands above.

A sentence alone cannot always tell. "Firearms and bombs" is a prohibition below "You may not use it
for:" or the heading "Prohibited uses"; so a rule is read within its `Surroundings`.
"""

import re
from dataclasses import dataclass, field, replace
from typing import cast

from policyalign_assets.policy.model import RuleKind
from policyalign_assets.policy.reading import clauses, frames, sentences
from policyalign_assets.policy.reading import words as w
from policyalign_assets.policy.reading.actions import action_of
from policyalign_assets.policy.reading.demands import demand_of
from policyalign_assets.policy.reading.languages import foreign_kind, language_name, language_of
from policyalign_assets.policy.reading.leaves import leaf_action
from policyalign_assets.policy.reading.surroundings import (
    Lead,
    heading_kind,
    label_kind,
    read_lead,
)


@dataclass(frozen=True)
class Surroundings:
    """What stands above a rule: headings, and the lines that introduce its list."""

    lead_ins: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What a rule says: `action` is forbidden or allowed, `demand` is required.

    `doubts` are sentences for its author, where the words are not clear.
    """

    kind: RuleKind
    action: str | None = None
    demand: str | None = None
    condition: str | None = None
    exceptions: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    forbids: bool = False
    examples: tuple[str, ...] = ()
    language: str = "en"
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part:
    """One sentence of a rule, read. `kind` is None where its words tell no kind."""

    kind: frames.FrameKind | None
    text: str
    action: str | None = None
    condition: str | None = None
    trailing: bool = False
    exceptions: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    doubts: list[str] = field(default_factory=list)


_EXCEPTION_PART = re.compile(
    r"(?:exceptions?|except|unless|excluding)(?: (?:if|when|for|where|that))?:? +(?P<said>.+)"
    r"|(?:this|the) (?:rule |ban |prohibition )?(?:does|do) not apply (?:to|if|when|where|in) "
    r"(?P<not>.+)",
    re.IGNORECASE,
)
_SCOPE_PART = re.compile(
    r"this (?:rule )?(?:only )?applies (?:only )?(?:if|when|where) (?P<said>.+)", re.IGNORECASE
)
_EXAMPLE_PART = re.compile(
    r"(?:for example|for instance|examples?(?: include)?|e\.g\.|violates(?=:)|allowed example|such "
    r"as),?:? +(?P<said>.+)",
    re.IGNORECASE,
)
_BUT_ALLOWED = re.compile(
    r",? *\b(?:but|although|though|while|however,?) (?:(?P<said>.+?) (?:is|are|remains?) "
    r"(?:still |always |also )*(?:allowed|permitted|fine|ok|okay|acceptable)"
    r"|(?:you|it|they|staff|(?:the|this) (?:assistant|agent|model)) (?:may|can)(?! not\b|not\b) "
    r"(?:still |always |also )*(?P<may>.+))$",
    re.IGNORECASE,
)
_EMBEDDED = re.compile(
    r"(?:^|[;,–—-] |\b(?:and|but) )(?:(?:please|also|then|always|it|you|they|we|(?:the "
    r")?(?:assistant|agent|model|staff)) )*"
    r"(?P<clause>(?:do not|don't|never|(?:must|should|shall|may|can|will) (?:not|never)|cannot"
    r"|mustn't|shouldn't|refuse to|avoid \w+ing) .+)",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"(?:otherwise|however|therefore|moreover|additionally|furthermore|finally|thus|hence"
    r"|(?:please )?note(?: that)?|please note(?: that)?|as such|accordingly),? (?=\w)",
    re.IGNORECASE,
)
_HOLD_BACK = re.compile(r"\b(?:not|never|n't|no|cannot)\b", re.IGNORECASE)
# In the short form the whole verb phrase is the action, "without consent" included.
_SHORT_FORM = re.compile(
    r"(?:never help anyone|do not help anyone|never assist anyone who wants to"
    r"|refuse to help anyone|never explain how to) ",
    re.IGNORECASE,
)


def is_short_form(text: str) -> bool:
    """Whether a rule is of the form that the shipped policies have: "Never help anyone ..."."""
    return bool(_SHORT_FORM.match(sentences.split_label(text)[1]))


_UNREAD = re.compile(
    r"\b(?:without|provided(?! (?:by|in|to|for|with|at|through|under)\b)|unless|if)\b",
    re.IGNORECASE,
)


def read_rule(text: str, surroundings: Surroundings = Surroundings()) -> Reading:
    """Reads a rule's own words (Markdown marks may stand in them) within its surroundings."""
    language = language_of(sentences.plain(text))
    if language != "en":
        return _read_foreign(text, language, surroundings)
    label, body = sentences.split_label(text)
    if label and re.match(r"(?:if|when|whenever|where|in case|unless)\b", label, re.IGNORECASE):
        label, body = "", f"{label}, {body}"
    elif label and label_kind(label) is None and _is_clause(label):
        label, body = "", sentences.plain(text)  # a sentence with a colon in it
    lead = _nearest_lead(surroundings)
    if label:
        labelled = label_kind(label)
        if labelled == "example":
            return Reading("define", doubts=("it reads like an example, not like a rule",))
        if labelled == "lead":
            lead, label = _inner_lead(lead, read_lead(label)), ""
        elif labelled is not None:
            lead, label = Lead(labelled), ""
        elif lead is not None and lead.kind == "define":
            return Reading("define")
    parts = [_read_part(p) for p in _merged(sentences.sentences(body))]
    if not parts:
        return Reading("require", doubts=("it holds no words",))
    short = bool(_SHORT_FORM.match(body))
    reading = _combined(parts, lead, short)
    if label and reading.kind == "require" and reading.doubts and lead is None:
        whole = _combined([_read_part(p) for p in sentences.sentences(sentences.plain(text))], lead)
        reading = whole if not whole.doubts else reading
    return reading


def _is_clause(label: str) -> bool:
    """Whether words before a colon belong to the sentence instead of naming its topic."""
    return len(label.split()) > 7 or frames.forbidding_frame(label) is not None


def _nearest_lead(surroundings: Surroundings) -> Lead | None:
    lead = None
    for words in surroundings.headings:
        kind = heading_kind(words)
        lead = Lead(kind, heading=True) if kind else lead
    for words in surroundings.lead_ins:
        lead = _inner_lead(lead, read_lead(words))
    return lead


def _inner_lead(outer: Lead | None, inner: Lead) -> Lead:
    """A lead-in that tells no kind of its own keeps that of the line above it."""
    if outer is None:
        return inner
    if inner.kind is None:
        return replace(outer, condition=inner.condition or outer.condition)
    if inner.imperative and outer.kind in ("prohibit", "permit"):
        return replace(outer, verb=inner.verb, condition=inner.condition or outer.condition)
    return replace(inner, condition=inner.condition or (None if outer.heading else outer.condition))


def _merged(parts: list[str]) -> list[str]:
    """Joins a fragment such as "Yes" or a bare number with the sentence behind it."""
    out: list[str] = []
    for part in parts:
        if out and len(out[-1].split()) == 1 and not w.is_base_verb(out[-1]) and len(out) == 1:
            out[-1] = part
        else:
            out.append(part)
    return out


def _read_part(sentence: str, embedded_too: bool = True) -> _Part:
    """embedded_too: look for a prohibition inside the sentence, which is then read by itself."""
    sentence = _OPENING.sub("", sentence)
    if frames.is_definition(sentence):
        return _Part("define", sentence)
    if frames.double_negative(sentence):
        return _Part("require", sentence)
    inner_label, body = sentences.split_label(sentence)
    labelled = label_kind(inner_label) if inner_label else None
    if re.fullmatch(r"exceptions?|scope", inner_label, re.IGNORECASE):
        return _Part(None, sentence)
    if labelled in ("prohibit", "require", "permit"):
        return _within(_read_part(body), Lead(labelled))
    if (
        inner_label
        and labelled is None
        and not _is_clause(inner_label)
        and not re.search(r": ?$", sentence)
    ):
        sentence = body
    sentence = clauses.straightened(sentence)
    lead = clauses.read_leading(sentence)
    main, exceptions = lead.main, lead.exceptions
    permitted: tuple[str, ...] = ()
    but = _BUT_ALLOWED.search(main, 1)
    if but:
        main, permitted = main[: but.start()].rstrip(" ,"), ((but["said"] or but["may"]).strip(),)
    only = frames.only_frame(sentences.cut_remarks(main))
    if only is not None:
        return _Part(
            "prohibit",
            main,
            only.action,
            lead.condition,
            False,
            (*exceptions, *only.exceptions),
            permitted,
        )
    main, more = clauses.read_exceptions(main)
    kept = sentences.cut_remarks(main)
    trailing = clauses.read_trailing(kept)
    core, examples = sentences.cut_examples(trailing.main)
    core = sentences.cut_remarks(core)
    core = re.sub(r" the following:? (?=\S)", " ", core) if frames.forbidding_frame(core) else core
    condition = lead.condition
    if trailing.condition:
        condition = f"{condition}, {trailing.condition}" if condition else trailing.condition
    whole = _Part(
        None,
        core,
        condition=condition,
        trailing=not lead.condition and trailing.trailing in ("when", "whenever"),
        exceptions=(*exceptions, *more),
        permitted=permitted,
        examples=examples,
    )
    forbids = frames.forbidding_frame(core)
    if forbids is not None:
        return replace(whole, kind="prohibit", action=_noted(forbids.action))
    permits = frames.permitting_frame(core)
    embedded = _EMBEDDED.search(main, 1) if embedded_too else None
    if embedded and not _subordinate(main[: embedded.start()]):
        inner = _read_part(_with_subject(main, embedded["clause"].rstrip(" .")), False)
        if inner.kind == "prohibit":
            return replace(
                inner,
                condition=inner.condition or lead.condition,
                exceptions=(*whole.exceptions, *inner.exceptions),
                doubts=["it holds a duty as well as a prohibition: give each a rule of its own"],
            )
    if permits is not None and permits.kind == "require":
        said = "'only' limits what it allows, and what it forbids is not clear from its words"
        return replace(whole, kind="require", doubts=[said])
    if permits is not None:
        return replace(whole, kind="permit", action=_noted(permits.action))
    if frames.describes(core):
        return replace(whole, kind="define")
    requires = frames.requiring_frame(core)
    if requires is not None:
        return replace(whole, kind="require")
    return whole


def _with_subject(main: str, clause: str) -> str:
    """ "must not be shared" with the subject that the sentence before it names."""
    if not re.match(r"(?:must|should|shall|may|can|will) (?:not|never) be\b|cannot be\b", clause):
        return clause
    subject = re.match(
        r"(?P<np>(?:[\w'-]+ ){1,6}?)(?:is|are|has|have|needs?|must|should|may|can|will)\b", main
    )
    return f"{subject['np']}{clause}" if subject else clause


def _noted(action: str | None) -> str | None:
    if action is None:
        return None
    action, _ = sentences.cut_examples(action)
    return sentences.cut_remarks(action) or None


def _subordinate(before: str) -> bool:
    """Whether what comes next depends on "say that" or the like, so that it forbids nothing."""
    return bool(
        re.search(
            r"\b(?:that|which|who|whom|what|whether|because|why|if|when)\b[^,;]*$",
            before,
            re.IGNORECASE,
        )
    )


def _combined(parts: list[_Part], lead: Lead | None, short: bool = False) -> Reading:
    """One reading of a rule's sentences: the first prohibition decides, or the first clear one."""
    rules: list[_Part] = []
    exceptions: list[str] = []
    examples: list[str] = []
    scope: str | None = None
    for part in parts:
        if found := _EXCEPTION_PART.fullmatch(part.text) if rules else None:
            exceptions.append(found["said"] or found["not"])
        elif found := _SCOPE_PART.fullmatch(part.text):
            scope = found["said"]
        elif found := _EXAMPLE_PART.fullmatch(part.text):
            examples.append(found["said"])
        else:
            rules.append(part)
    if not rules:
        return Reading(
            "define",
            examples=tuple(examples),
            doubts=("it reads like an example, not like a rule",),
        )
    rules = [_within(part, lead) if n == 0 else part for n, part in enumerate(rules)]
    if len(rules) == 1 and rules[0].kind is None and (lead is None or lead.kind is None):
        rules = [_fragment(rules[0], alone=lead is None)]
    main = _main(rules)
    allowed = [p.action or p.text for p in rules if p.kind == "permit" and p is not main]
    without: tuple[str, ...] = ()
    if main.action and main.kind == "prohibit" and not short:
        action, without = clauses.read_without(main.action)
        main = replace(main, action=action)
    reading = Reading(
        kind=_kind(main),
        action=_lowered(main.action) if main.kind in ("prohibit", "permit") else None,
        condition=main.condition or scope,
        exceptions=tuple(dict.fromkeys((*main.exceptions, *exceptions, *without))),
        permitted=(*main.permitted, *allowed),
        demand=demand_of(main.text) if main.kind in ("require", None) else None,
        forbids=main.kind == "prohibit",
        examples=(*main.examples, *examples),
        doubts=tuple(main.doubts),
    )
    if scope and reading.kind in ("prohibit", "require"):
        reading = replace(reading, kind="condition")
    doubts = _doubts(reading, main, rules, short)
    return replace(reading, doubts=(*reading.doubts, *doubts))


def _lowered(action: str | None) -> str | None:
    """Without the capital of a sentence; names and acronyms keep theirs."""
    first = (action or "").split(" ", 1)[0]
    if action is None or first[1:] != first[1:].lower() or len(first) < 2:
        return action
    return action[0].lower() + action[1:]


def _main(rules: list[_Part]) -> _Part:
    for kind in ("prohibit",):
        for part in rules:
            if part.kind == kind:
                return part
    return next((p for p in rules if p.kind is not None), rules[0])


def _within(part: _Part, lead: Lead | None) -> _Part:
    """A part's reading with what it inherits from the line or heading above it."""
    if lead is None:
        return part
    condition = lead.condition
    if lead.leaf_is_condition and lead.kind:
        said = part.text if part.condition is None else f"{part.text} {part.condition}"
        kind = "prohibit" if lead.kind == "prohibit" else lead.kind
        return replace(part, kind=kind, action=lead.action, condition=said)
    own: frames.FrameKind | None = (
        part.kind if part.kind in ("prohibit", "permit", "define") else None
    )
    if part.kind == "require" and _says_duty(part.text):
        own = "require"
    if condition:
        part = replace(part, condition=part.condition or condition)
    if own is not None or lead.kind is None or (part.kind is None and _is_statement(part.text)):
        return part
    if lead.kind in ("prohibit", "permit"):
        negative = re.match(r"not (?:to )?(.+)", part.text, re.IGNORECASE)
        if negative and lead.kind == "permit":
            return replace(part, kind="prohibit", action=action_of(negative[1]))
        return replace(part, kind=lead.kind, action=_noted(leaf_action(part.text, lead)))
    negated = re.match(r"not (?:to )?(\w.*)", part.text, re.IGNORECASE)
    if negated:
        return replace(part, kind="prohibit", action=action_of(negated[1]))
    return replace(part, kind=lead.kind)


_GRAVE = re.compile(
    r"\b(?:non-?consensual|weapons?|firearms?|bombs?|explosives?|malware|fraud\w*|scams?|phishing|hate|harass\w+"
    r"|abus\w+|violen\w+|terror\w*|exploit\w*"
    r"|harm\w*|illegal|illicit|unlawful|stalk\w+|bully\w*|discriminat\w+|disinformation"
    r"|misinformation|plagiari\w+|impersonat\w+|defam\w+"
    r"|self-harm|suicid\w+|traffick\w+|theft|counterfeit\w*|spam|doxx?ing|hacking|surveillance"
    r"|deepfakes?|pornograph\w+|sexual\w*|drugs?"
    r"|deceptive|deceiv\w+|manipulat\w+|without (?:\w+ )?(?:consent|authori[sz]ation|permission"
    r"|approval))\b",
    re.IGNORECASE,
)


def _fragment(part: _Part, alone: bool) -> _Part:
    """A rule without a verb that tells its kind: it names an act, or something grave, to forbid.

    alone: no line stands above it. Below a line that tells no kind ("Good manners include:"), an
    act is forbidden only where it is grave.
    """
    first = part.text.split(" ", 1)[0].strip(",")
    gerund = w.is_gerund(first) and not re.search(r" (?:is|are) \w+ed\b", part.text)
    gerund = gerund and (alone or bool(_GRAVE.search(part.text)))
    if not gerund and not (_GRAVE.search(part.text) and not _has_verb(part.text)):
        return part
    said = "it is a fragment that is read as a prohibition: write 'Never ...' or a line above it"
    return replace(part, kind="prohibit", action=_noted(action_of(part.text)), doubts=[said])


def _has_verb(text: str) -> bool:
    return bool(re.search(r"\b(?:is|are|was|were|has|have|will|can|does)\b", text))


def _is_statement(text: str) -> bool:
    """Whether a sentence tells what somebody does, so that no line above it makes it a rule."""
    return bool(re.match(r"(?:we|you|it|they|this|these|our|i)\b \w+", text, re.IGNORECASE))


def _says_duty(text: str) -> bool:
    return bool(
        re.match(
            r"(?:[\w'-]+ ){0,12}?(?:must|shall|should|always|has to|have to|needs? to)\b",
            text,
            re.IGNORECASE,
        )
    )


def _kind(part: _Part) -> RuleKind:
    if part.kind in ("permit", "define"):
        return part.kind
    if part.kind == "prohibit":
        return "condition" if part.condition else "prohibit"
    return "condition" if part.condition and not part.trailing else "require"


def _doubts(reading: Reading, main: _Part, rules: list[_Part], short: bool) -> list[str]:
    """What the reader is not sure of, as words for the rule's author."""
    said = []
    bans = [part for part in rules if part.kind == "prohibit"]
    if len(bans) > 1 and reading.forbids:
        said.append(
            f"it holds {len(bans)} prohibitions, and only the first is trained and measured:"
            " give each a rule of its own"
        )
    if main.kind is None:
        said.append("no word tells whether it forbids or requires, so it is read as a duty")
    if reading.kind in ("require", "condition") and not reading.forbids:
        text = " ".join(p.text for p in rules)
        free = re.sub(r"\b(?:that|which|who|if|whether|what|when)\b.*", "", text)
        if _HOLD_BACK.search(free) and not frames.double_negative(main.text):
            said.append("it is read as a duty, but it holds a negation")
    if reading.forbids and reading.action is None:
        said.append("the action that it forbids is not clear from its words")
    found = None if short else _UNREAD.search(reading.action or "")
    if found and not reading.exceptions:
        said.append(f"what follows {found[0]!r} is not read as a condition or exception")
    return said


def _read_foreign(text: str, language: str, surroundings: Surroundings) -> Reading:
    found = foreign_kind(sentences.plain(text), language)
    if found is None:
        above = [
            foreign_kind(sentences.plain(t), language)
            for t in surroundings.lead_ins[-1:] + surroundings.headings[-1:]
        ]
        found = next((kind for kind in above if kind and kind[0] != "condition"), None)
    doubts = [f"it is in {language_name(language)}: only its kind is read, and no action"]
    kind, forbids = found or ("require", False)
    told = cast(RuleKind, kind)
    return Reading(told, forbids=forbids, language=language, doubts=tuple(doubts))
