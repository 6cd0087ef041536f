"""Reads a main clause: what kind of clause it is, and what it forbids or allows."""

import re

from policyalign_assets.policy.reading import forms
from policyalign_assets.policy.reading import words as w
from policyalign_assets.policy.reading.actions import (
    action_of,
    passive_action,
    verb_phrase_action,
)
from policyalign_assets.policy.reading.forbidding import forbidding_frame
from policyalign_assets.policy.reading.forms import Frame, FrameKind

__all__ = [
    "Frame",
    "FrameKind",
    "describes",
    "double_negative",
    "forbidding_frame",
    "is_definition",
    "only_frame",
    "permitting_frame",
    "requiring_frame",
]


def double_negative(main: str) -> bool:
    """Whether the clause requires by two negations: "Never fail to ..."."""
    return bool(forms.DOUBLE.fullmatch(main))


def only_frame(main: str) -> Frame | None:
    """ "Give dosing advice only if a clinician asks" forbids everything but that case."""
    who = forms.ONLY_WHO.fullmatch(main)
    if who:
        return Frame("prohibit", _limited_action(who["who"], who["rest"]), (who["who"],))
    modal = forms.ONLY_MODAL.fullmatch(main)
    if modal and not re.match(
        r"(?:use|contain|include|answer|discuss)\b(?!.* (?:if|when|after|with)\b)", modal["rest"]
    ):
        split = re.match(
            r"(?P<main>.+?) (?P<link>if|when|where|after|once|with|to|for|by|upon|under|on|in"
            r"|within|through|from|as) (?P<limit>.+)",
            modal["rest"],
        )
        if (
            split
            and not _BROKEN_OFF.search(split["main"])
            and (
                modal["modal"].lower() in ("may", "can", "could", "is", "are")
                or _is_tight(split["link"], split["limit"])
            )
        ):
            subject = modal["subject"].strip()
            passive = re.search(r"\b(?:be|is|are) only$", main[: modal.start("rest")].strip())
            said = split["main"]
            if said.startswith("be ") and w.is_participle(said.split(" ")[1]):
                passive, said = re.match("be ", said), said[3:]
            action = passive_action(subject, said) if passive else verb_phrase_action(split["main"])
            return Frame("prohibit", action, (_limit(split["link"], split["limit"]),))
    restricted = modal and modal["modal"].lower() in ("may", "can", "could")
    if modal and restricted and (frame := _only_use(modal)):
        return frame
    first = forms.ONLY_FIRST.fullmatch(main)
    if (
        first
        and w.is_base_verb(first["main"].split(" ")[0])
        and (
            _is_tight(first["link"], first["limit"])
            or first["main"].split(" ")[0].lower() in forms.DISCLOSES
        )
    ):
        return Frame(
            "prohibit", verb_phrase_action(first["main"]), (_limit(first["link"], first["limit"]),)
        )
    found = forms.ONLY.fullmatch(main)
    if found is None or _BROKEN_OFF.search(found["main"]) or forbidding_frame(found["main"]):
        return None
    permitted = forms.PERMIT.fullmatch(found["main"])
    required = forms.REQUIRE.fullmatch(found["main"])
    phrase = permitted["rest"] if permitted else required["rest"] if required else found["main"]
    if not found["tight"]:
        verb = re.sub(r"^be ", "", phrase).split(" ")[0].lower()
        discloses = w.base_form(verb) in forms.DISCLOSES
        if not (permitted or discloses or forms.CONSENT.search(found["limit"])):
            return None
    link = (
        ""
        if found["tight"] and found["tight"].lower() in ("only if", "only when", "only where")
        else ((found["prep"] or found["tight"].split(" ", 1)[1]) + " ")
    )
    subject = (permitted or required or {"subject": ""})["subject"] or ""
    be = re.match(r"be (.+)", phrase)
    action = passive_action(subject.strip(), be[1]) if be else action_of(phrase)
    return Frame("prohibit", action, (f"{link}{found['limit']}",))


# Before "if": what follows begins a sentence of its own ("..., and if you do, ...")
_BROKEN_OFF = re.compile(r"(?:,|\b(?:and|or|but))$")


def _limited_action(who: str, rest: str) -> str | None:
    """What others must not do: of "only approved tools may be used", to use tools."""
    if re.search(r"\bdo so$", rest):
        return None
    be = re.match(r"be (.+)", rest)
    if be is None:
        return verb_phrase_action(rest)
    others = _unlimited(who) or "anything else"
    used = re.match(r"used (.+)", be[1])
    return f"use {others} {used[1]}" if used else passive_action(others, be[1])


def _unlimited(phrase: str) -> str | None:
    """ "Tools" of "approved tools" or "tools that IT knows"; None where nothing limits it."""
    relative = re.match(
        r"(.+?),? (?:that|which|who|whose|approved|listed|provided|owned)\b", phrase
    )
    if relative:
        return relative[1]
    first, _, others = phrase.partition(" ")
    if re.match(r"(?:one|two|three|\d)", first, re.IGNORECASE):
        return None
    limits = w.is_participle(first) or "ADJ" in w.lemmas(first.lower()) or "-" in first
    return others if others and limits else None


def _only_use(found: re.Match[str]) -> Frame | None:
    """ "Staff may only use approved tools" forbids to use others."""
    words = re.match(r"(?P<verb>[\w-]+) (?P<object>.+)", found["rest"])
    if words is None or not w.is_base_verb(words["verb"]):
        return None
    wider = _unlimited(words["object"])
    if wider is None:
        return None
    return Frame("prohibit", verb_phrase_action(f"{words['verb']} {wider}"), (words["object"],))


def _is_tight(link: str, limit: str) -> bool:
    return link in ("if", "when", "where", "after", "once", "upon", "unless") or bool(
        forms.CONSENT.search(limit)
    )


def _limit(link: str, limit: str) -> str:
    return limit if link in ("if", "when", "where") else f"{link} {limit}"


def permitting_frame(main: str) -> Frame | None:
    """The frame of a clause that allows, or None."""
    it_is = forms.IT_IS_ALLOWED.fullmatch(main)
    if it_is:
        return Frame("permit", action_of(it_is["rest"] or it_is["free"] or it_is["we"]))
    free = forms.NOT_NEEDED.fullmatch(main)
    if free:
        return Frame("permit", None)
    unforbidden = forms.NOT_FORBIDDEN.fullmatch(main)
    if unforbidden:
        return Frame("permit", action_of(unforbidden["rest"]))
    found = forms.PERMIT.fullmatch(main)
    if found:
        subject = (found["subject"] or "").strip()
        if _OTHER_CLAUSE.search(subject):
            return None  # "may" stands in a clause of its own: "holes that can be exploited"
        if re.match(r"(?:some|many|most)\b", subject, re.IGNORECASE):
            return None  # "Some questions may need a doctor." allows nothing
        if re.search(r"\b(?:what|whether|how|why|if|when|because)\b", subject, re.IGNORECASE):
            return None
        be = re.match(r"be (.+)", found["rest"])
        if (
            be
            and (passive := passive_action(subject, be[1]))
            and w.is_participle(be[1].split(" ")[0].strip(","))
        ):
            return Frame("permit", passive)
        told = re.match(r"(?:you|staff|users)\b", subject, re.IGNORECASE)
        if subject and not told and _HAPPENS.match(found["rest"]):
            return None
        if (
            not subject
            or forms.AGENT.match(re.sub(r",.*", "", subject))
            or _may_act(subject, found["rest"])
        ):
            if found["rest"].startswith("only "):
                return Frame("require", phrase=found["rest"])
            return Frame("permit", verb_phrase_action(found["rest"]))
    allowed = forms.BE_ALLOWED.fullmatch(main)
    if allowed and not re.match(r"(?:if|when)\b", main, re.IGNORECASE):
        return Frame("permit", _said(allowed["subject"]))
    return None


_OTHER_CLAUSE = re.compile(
    r"\b(?:must|shall|should|means?|so that|where)\b"
    r"|(?<!that )(?<!which )(?<!who )\b(?:is|are|was|were)\b"
    r"|\b(?:that|which|who|what)$",
    re.IGNORECASE,
)
_HAPPENS = re.compile(
    r"(?:be|contain|include|vary|change|cause|differ|lead|result|take|have|seem|mean|depend|require"
    r"|apply|also|need|occur|make (?:mistakes|errors)|hallucinate"
    r"|produce (?:errors|wrong|false|inaccurate))\b"
)


def _may_act(subject: str, rest: str) -> bool:
    """Whether a plural subject is allowed to do something ("Librarians can recommend ...")."""
    last = subject.split(" ")[-1]
    return len(subject.split()) <= 3 and w.is_plural(last) and not _HAPPENS.match(rest)


def _said(subject: str) -> str:
    first = subject.split(" ", 1)[0]
    if w.is_gerund(first):
        return action_of(subject) or subject
    return subject


def requiring_frame(main: str) -> Frame | None:
    """The frame of a clause that requires in so many words, or by an imperative; or None."""
    found = forms.REQUIRE.fullmatch(main)
    if found:
        return Frame("require", phrase=found["rest"])
    if forms.REQUIRED.fullmatch(main) or w.starts_as_verb(main):
        return Frame("require", phrase=main)
    return None


def describes(main: str) -> bool:
    """Whether a clause tells what something is or has, and asks for nothing."""
    found = forms.DESCRIBE.fullmatch(main)
    if found is None:
        return False
    subject = (found["subject"] or "").strip()
    if not subject:
        return True
    if forms.MODAL_WORD.search(main):
        return False
    return bool(re.match(r"(?:each|every|all)\b", subject, re.I)) or not forms.AGENT.match(subject)


def is_definition(sentence: str) -> bool:
    return bool(forms.DEFINE.fullmatch(sentence)) and not re.match(
        r"(?:it|this|that|which|these|you|we|they)\b", sentence, re.IGNORECASE
    )
