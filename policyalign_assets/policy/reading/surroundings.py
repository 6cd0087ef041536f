"""What the line above a list, a heading or a label says of the rules below it."""

import re
from dataclasses import dataclass
from typing import Literal

from policyalign_assets.policy.reading import clauses, frames
from policyalign_assets.policy.reading import words as w
from policyalign_assets.policy.reading.actions import may_be_noun


@dataclass(frozen=True)
class Lead:
    """What the rules below inherit: a kind, a verb for noun phrases ("share"), a condition."""

    kind: frames.FrameKind | None
    verb: str | None = None
    condition: str | None = None
    action: str | None = None
    leaf_is_condition: bool = False  # "Escalate to a person when:"
    leaf_is_exception: bool = False  # "Never share records, except:"
    heading: bool = False
    imperative: bool = False  # "Disclose any of these:", which a heading may turn into a ban
    nominal: bool = False  # "You may not use it for:", whose leaves are no verbs
    template: str | None = None  # "enter SLOT into an AI tool", where the rule fills the slot


SLOT = "slotword"
_DUTY = re.compile(r"\b(?:must|shall|should|always|has to|have to|needs? to|required)\b", re.I)
_OPEN_END = re.compile(
    r"\b(?:not|never|to|for|from|must|shall|should|may|can|following|these|includ\w+|are|is"
    r"|prohibited|forbidden|allowed|permitted)\W*$",
    re.IGNORECASE,
)

_PROHIBITS = re.compile(
    r"\b(?:prohibit\w*|prohibitions?|forbidden|forbids?|disallow\w*|banned|unacceptable"
    r"|impermissible|don'?ts?|do not|must ?n[o']t|may not|can ?not"
    r"|can'?t|never|(?:not|isn't|aren't|n't) (?:be )?(?:allow\w*|permi\w+|accept\w+|do|use|share"
    r"|tolerated)|off[- ]limits|red lines?|no[- ]gos?|refus(?:e|es|al|als|ed)|declin(?:e|es|ed)"
    r"|restrictions|restricted (?:uses?|activit\w+|content|topics)|what not to|avoid|violations?"
    r"|hard limits|bright lines|misuse|abuses?)\b",
    re.IGNORECASE,
)
_PERMITS = re.compile(
    r"\b(?:permitted|allowed|acceptable|permissible|permissions?|may(?: do)?|can(?: do)?"
    r"|encouraged|okay|allowances?|exceptions?|exemptions?)\b",
    re.IGNORECASE,
)
_REQUIRES = re.compile(
    r"\b(?:requirements?|required|must(?: do)?|duties|duty|obligations?|do'?s|dos|do|always"
    r"|responsibilit\w+|expectations?|should|shall)\b",
    re.IGNORECASE,
)
_DEFINES = re.compile(
    r"\b(?:definitions?|glossary|terms(?: used)?|terminology|meaning of terms|key terms)\b",
    re.IGNORECASE,
)
_UN = re.compile(r"\b(?:dos|do'?s) and don'?ts|acceptable use(?: policy)?\b", re.IGNORECASE)
_EXAMPLES = re.compile(
    r"(?:(?:bad |good )?examples?|e\.g\.|violates|violation example|allowed example|note"
    r"|rationale|reason|why|background|see also|source|scope|purpose)$",
    re.IGNORECASE,
)
_FOLLOWING = re.compile(
    r"(?: do| engage in| perform)?(?: any of| either of| all of| each of)? (?:the following|these"
    r"|the below)(?: (?:[\w-]+ )?(?:things|ways|purposes?|activities|uses|actions|topics"
    r"|content|details?|types of [\w ]+|items?|cases|categories|kinds of [\w ]+|requests?"
    r"|information|data|tasks))?(?: below)?$",
    re.IGNORECASE,
)
# "Content that:", but not "Requests that:", whose leaves name what is asked for
_RELATIVE_END = re.compile(
    r"(?P<main>.*?\b(?:content|materials?|activit(?:y|ies)|outputs?|texts?|images?|media|videos?"
    r"|information|messages?|products?|services?|software|code|data|files?|advice|answers?"
    r"|responses?|speech|language|statements?|claims?|posts?)(?: [\w'-]+){0,5}?)"
    r" (?P<who>that|which)(?: (?P<be>is|are))?",
    re.IGNORECASE,
)
_MIDDLE = re.compile(
    r" (?:any of |either of |all of )?(?:the following|these|those)(?: (?!are\b|is\b|must\b|may\b"
    r"|to\b|for\b|in\b|into\b|with\b)[\w-]+)?(?= (?:to|for|in|into|with|from|on|at|without|by"
    r"|when|if)\b)",
    re.IGNORECASE,
)
_CONDITION_END = re.compile(
    r",? (?:if|when|whenever|where|in case|in the following (?:cases|situations|circumstances)"
    r"|under the following (?:circumstances|conditions))$",
    re.IGNORECASE,
)
_EXCEPTION_END = re.compile(
    r"(?:,? (?:unless|except(?: for| in| when| where| if| that)?|other than|save for|apart from"
    r"|only if|only when|with the following exceptions?|with these exceptions?|subject to "
    r"(?:these|the following) exceptions?))$"
    r"|^(?:the only )?(?:exceptions?|exemptions?)(?: are| include)?$",
    re.IGNORECASE,
)


def heading_kind(text: str) -> frames.FrameKind | None:
    """The kind that a heading gives to the fragments below it; None where it names a topic only."""
    parts = text.split(" / ")  # headings above each other, as a draft writes them
    if len(parts) > 1:
        return next((kind for part in reversed(parts) if (kind := heading_kind(part))), None)
    text = re.sub(r"^[\d.]+\s*", "", text.strip(" *_#:"))
    if _UN.search(text):
        return None
    if _DEFINES.search(text):
        return "define"
    if _PROHIBITS.search(text):
        return "prohibit"
    if _PERMITS.search(text):
        return "permit"
    if _REQUIRES.search(text):
        return "require"
    return None


def label_kind(label: str) -> frames.FrameKind | Literal["lead", "example"] | None:
    """What the words before a rule's first colon are: None for a plain name ("Privacy")."""
    if _EXAMPLES.fullmatch(label.strip()):
        return "example"
    if len(label.split()) <= 3:
        bare = label.strip().lower()
        if re.fullmatch(
            r"(?:do|dos|do's|must|always|required?|requirements?|should|mandatory)", bare
        ):
            return "require"
        if re.fullmatch(
            r"(?:don'?ts?|do not|must not|never|prohibited|forbidden|not allowed|not permitted"
            r"|disallowed|banned|should not|may not|(?:prohibited|forbidden|banned|disallowed"
            r"|unacceptable) [\w-]+|no)",
            bare,
        ):
            return "prohibit"
        if re.fullmatch(
            r"(?:allowed|permitted|may|can|ok|okay|acceptable|permitted uses?|allowed uses?)", bare
        ):
            return "permit"
        if re.fullmatch(r"(?:definitions?)", bare):
            return "define"
    lead = read_lead(label)
    open_end = lead.verb or lead.template or lead.leaf_is_condition or _OPEN_END.search(label)
    return "lead" if lead.kind is not None and open_end and len(label.split()) > 1 else None


def binding(lead_ins: tuple[str, ...], leaf: str) -> tuple[str, ...]:
    """The lead-ins that a leaf inherits from.

    A parent that is a whole sentence ("Never share data.") binds fragments below it ("Names"), and
    no sentence of its own ("Staff who share it will be dismissed.").
    """
    if not any(_is_sentence(lead) for lead in lead_ins):
        return lead_ins
    words = re.sub(r"[*_`]", "", leaf).strip()
    alone = _is_clause(words)
    return tuple(lead for lead in lead_ins if not (alone and _is_sentence(lead)))


def _is_clause(text: str) -> bool:
    """Whether a text says something by itself, as "Phone numbers" does not."""
    if w.starts_as_verb(text) and not may_be_noun(text):
        return True
    later = [token.strip(",").lower() for token in text.split(" ")[1:]]
    return bool(_MODAL.search(text)) or any(
        token in clauses.FINITE or ("VERB" in w.lemmas(token) and not w.is_noun(token))
        for token in later
        if not token.endswith("ing") and "ADJ" not in w.lemmas(token)
    )


_MODAL = re.compile(r"\b(?:must|shall|should|may|can|cannot|will|never|not|is|are)\b", re.I)


def _is_sentence(lead: str) -> bool:
    ended = lead.rstrip(" *_").endswith((".", "!"))
    return ended and not re.search(
        r"\b(?:following|these|below|any of (?:these|those|this|the)|this list)\b", lead, re.I
    )


def read_lead(text: str) -> Lead:
    """Reads a line that introduces a list: "You may not use the service for:"."""
    line = re.sub(r"\s+", " ", text).strip(" *_:.;–—-").replace("’", "'")
    line = re.sub(r",? (?:but|and)(?: is| are)? not limited to(?: the following)?$", "", line)
    merged = _merged_lead(line)
    whole_sentence = _is_sentence(text) or line.startswith(f"{merged}.")
    line = merged
    if _EXCEPTION_END.search(line):
        inner = (
            read_lead(_EXCEPTION_END.sub("", line))
            if _EXCEPTION_END.sub("", line).strip()
            else Lead(None)
        )
        return Lead(inner.kind, leaf_is_exception=True)
    if _CONDITION_END.search(line):
        main = _CONDITION_END.sub("", line)
        if main.strip():
            frame = _frame(main)
            kind, action = frame if frame else ("require", None)
            return Lead(kind, action=action, leaf_is_condition=True)
    leading = (
        clauses.read_leading(f"{line}, do it")
        if re.match(r"(?:if|when|whenever|where|in case)\b", line, re.IGNORECASE)
        else None
    )
    if leading is not None and leading.condition and leading.main == "do it":
        return Lead(None, condition=leading.condition)
    cut = clauses.read_leading(line)
    middle = _MIDDLE.search(cut.main)
    if middle:
        frame = _frame(f"{cut.main[: middle.start()]} {SLOT} {cut.main[middle.end() :]}")
        if frame and frame[1] and SLOT in frame[1]:
            return Lead(frame[0], condition=cut.condition, template=frame[1])
    relative = _RELATIVE_END.fullmatch(cut.main)
    if relative:
        frame = _frame(relative["main"])
        if frame and frame[1]:
            be = f"{relative['be']} " if relative["be"] else ""
            template = f"{frame[1]} {relative['who']} {be}{SLOT}"
            return Lead(frame[0], condition=cut.condition, template=template)
    if whole_sentence and (whole := _frame(cut.main)):
        # "Never share a guest's data." above "Phone numbers": its verb is theirs
        verb = (whole[1] or "").split(" ", 1)[0]
        return Lead(whole[0], verb if w.is_base_verb(verb) else None, cut.condition)
    main = _FOLLOWING.sub("", cut.main).strip(" ,:") or cut.main
    found = _frame(main) or _frame(f"{main} x")
    if found is None and _FOLLOWING.search(cut.main) is None and main == cut.main:
        above: frames.FrameKind | None = None
        if (
            re.match(
                r"(?:the )?(?:following|these|this|examples?|below|such)\b", main, re.IGNORECASE
            )
            or len(main.split()) <= 5
        ):
            above = heading_kind(main)
        return Lead(above, condition=cut.condition)
    if found is None:
        return Lead(heading_kind(cut.main), condition=cut.condition)
    plain = found[0] == "require" and not _DUTY.search(main)
    nominal = bool(re.search(r"\b(?:for|of|about|with|involving|as)$", line))
    return Lead(found[0], _last_verbs(main), cut.condition, imperative=plain, nominal=nominal)


_INCLUDES = re.compile(
    r"(?P<first>.+?[.!]) (?:this|that|these|those|it|examples|such \w+) (?:also )?includes?:?"
    r"(?: (?P<rest>.+))?",
    re.IGNORECASE,
)


def _merged_lead(line: str) -> str:
    """ "Do not break the law. This includes making content that" as "Do not make content that"."""
    found = _INCLUDES.fullmatch(line)
    if found is None:
        parts = re.split(r"(?<=[.!?]) +(?=[A-Z])", line)
        return parts[-1] if len(parts) > 1 and heading_or_frame(parts[-1]) else line
    frame = _frame(found["first"].rstrip(".!"))
    if not found["rest"] or not w.is_gerund(found["rest"].split(" ")[0]):
        return found["first"].rstrip(".!")
    start = "Never" if frame and frame[0] == "prohibit" else "You may"
    if frame is None or frame[0] not in ("prohibit", "permit"):
        return line
    return f"{start} {w.verb_list_to_base(found['rest'])}"


def heading_or_frame(text: str) -> bool:
    """Whether a line by itself tells a kind."""
    return _frame(text.rstrip(" :.")) is not None or heading_kind(text) is not None


def _frame(main: str) -> tuple[frames.FrameKind, str | None] | None:
    if re.match(
        r"(?:the following|these|prohibited|forbidden|disallowed|permitted|allowed|examples? of)\b",
        main,
        re.IGNORECASE,
    ):
        kind = heading_kind(main)
        return (kind, None) if kind else None
    if re.search(
        r"(?:must|shall|should|may|can|do|does|will|is to|are to) ?(?:not|never|n't)$|\b(?:never"
        r"|don't|cannot|not to|refuse to|avoid|refrain from|decline to)$",
        main,
        re.IGNORECASE,
    ):
        return "prohibit", None
    if re.search(
        r"\b(?:may|can|is allowed to|are allowed to|are permitted to|free to)$", main, re.IGNORECASE
    ):
        return "permit", None
    if re.search(
        r"\b(?:must|shall|should|always|need to|needs to|will|required to)$", main, re.IGNORECASE
    ):
        return "require", None
    for read in (frames.forbidding_frame, frames.permitting_frame, frames.requiring_frame):
        frame = read(main)
        if frame is not None:
            return frame.kind, frame.action
    return None


def _last_verbs(main: str) -> str | None:
    """The verbs at the end of a line: "create or share" of "Never create or share:"."""
    passive = re.search(r"\bbe ((?:\w+(?:, | or | and ))*\w+)$", main)
    if passive:
        verbs = passive[1].split(" ")
        if all(w.is_participle(v.strip(",")) or v in w.CONJUNCTIONS for v in verbs):
            made = " ".join(
                v
                if v in w.CONJUNCTIONS
                else w.base_form(v.strip(",")) + ("," if v.endswith(",") else "")
                for v in verbs
            )
            return None if made in ("use", "allow", "permit") else made
    found = re.search(
        r"(?:.*\b(?:not|never|don't|to|avoid|from|may|can|must|should|always|shall) |^)(.+)$",
        main,
        re.IGNORECASE,
    )
    if not found:
        return None
    verbs = found[1].split(" ")
    if verbs and w.is_gerund(verbs[0]):
        verbs = w.verb_list_to_base(found[1]).split(" ")
    plain = [v.strip(",").lower() for v in verbs if v not in w.CONJUNCTIONS]
    if len(plain) > 4 or not all(
        w.is_base_verb(v) or v in ("in", "about", "on", "with") for v in plain
    ):
        return None
    said = " ".join(verbs)
    return (
        None
        if said.lower() in ("do", "use it", "engage", "refuse", "decline", "avoid", "be", "help")
        else said
    )
