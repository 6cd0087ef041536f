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
        return Frame("prohibit", _limited_action(who["rest"]), (who["who"],))
    modal = forms.ONLY_MODAL.fullmatch(main)
    if modal and not re.match(
        r"(?:use|contain|include|answer|discuss)\b(?!.* (?:if|when|after|with)\b)", modal["rest"]
    ):
        split = re.match(
            r"(?P<main>.+?) (?P<link>if|when|where|after|once|with|to|for|by|upon|under|on|in"
            r"|within|through|from|as) (?P<limit>.+)",
            modal["rest"],
        )
        if split and (
            modal["modal"].lower() in ("may", "can", "could", "is", "are")
            or _is_tight(split["link"], split["limit"])
        ):
            subject = modal["subject"].strip()
            passive = re.search(r"\b(?:be|is|are) only$", main[: modal.start("rest")].strip())
            action = (
                passive_action(subject, split["main"])
                if passive
                else verb_phrase_action(split["main"])
            )
            return Frame("prohibit", action, (_limit(split["link"], split["limit"]),))
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
    if found is None or forbidding_frame(found["main"]):
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


def _limited_action(rest: str) -> str | None:
    if re.search(r"\bdo so$", rest):
        return None
    be = re.match(r"be (.+)", rest)
    return None if be else verb_phrase_action(rest)


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
    found = forms.PERMIT.fullmatch(main)
    if found:
        subject = (found["subject"] or "").strip()
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
            return Frame("permit", verb_phrase_action(found["rest"]))
    allowed = forms.BE_ALLOWED.fullmatch(main)
    if allowed and not re.match(r"(?:if|when)\b", main, re.IGNORECASE):
        return Frame("permit", _said(allowed["subject"]))
    return None


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


def is_definition(sentence: str) -> bool:
    return bool(forms.DEFINE.fullmatch(sentence)) and not re.match(
        r"(?:it|this|that|which|these|you|we|they)\b", sentence, re.IGNORECASE
    )
