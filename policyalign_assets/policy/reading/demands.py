"""What a duty demands: "cite sources" of "The assistant must always cite sources."."""

import re

from policyalign_assets.policy.reading import forms
from policyalign_assets.policy.reading import words as w
from policyalign_assets.policy.reading.actions import passive_action

_ADVERBS = re.compile(
    r"(?:(?:please|always|also|still|then|instead|at all times|in all cases|where possible"
    r"|wherever possible|whenever possible),? )+",
    re.IGNORECASE,
)
_REQUIRED = re.compile(
    r"(?P<subject>.+?) (?:is|are) (?:always )?(?:required|mandatory|obligatory|compulsory"
    r"|essential)(?: (?P<to>to) (?P<rest>.+)| (?P<place>.+))?",
    re.IGNORECASE,
)
_RESPONSIBLE = re.compile(r"(?:.+ )?(?:is|are) responsible for (?P<rest>.+)", re.IGNORECASE)

_IS_DONE = re.compile(r"(?P<subject>(?:[\w'/-]+ ){1,8}?)(?:is|are) (?:\w+ly )?(?P<done>.+)")
_MODAL_FIRST = re.compile(r"(?:must|shall|should|will|may|can)\b", re.IGNORECASE)


def demand_of(clause: str) -> str | None:
    """The verb phrase, in its base form, that a clause demands; the clause itself at worst.

    None where the clause holds no words.
    """
    clause = re.sub(r"^please,? ", "", clause.strip(" ,.;:!*_"), flags=re.IGNORECASE)
    if not re.search(r"\w", clause):
        return None
    said = _demand(_ADVERBS.sub("", clause, count=1) if _ADVERBS.match(clause) else clause)
    said = re.sub(r"^(?:always|also|still|first|then) ", "", said.strip(), flags=re.IGNORECASE)
    first = said.split(" ", 1)[0]
    return said if first[1:] != first[1:].lower() or len(first) < 2 else said[0].lower() + said[1:]


def _demand(clause: str) -> str:
    double = forms.DOUBLE.fullmatch(clause)
    if double:
        return double["rest"]
    responsible = _RESPONSIBLE.fullmatch(clause)
    if responsible:
        return w.verb_list_to_base(responsible["rest"])
    required = _REQUIRED.fullmatch(clause)
    if required:
        if required["to"] and forms.AGENT.match(required["subject"]):
            return required["rest"]
        behind = f"to {required['rest']}" if required["to"] else required["place"] or ""
        return f"require {_lower(required['subject'])} {behind}".strip()
    only = forms.PERMIT.fullmatch(clause)
    if only and only["rest"].startswith("only "):
        return only["rest"]
    modal = forms.REQUIRE.fullmatch(clause)
    starts = w.starts_as_verb(clause) and not _MODAL_FIRST.match(clause)
    if starts:
        return clause
    if modal:
        return _modal(modal["subject"] or "", modal["rest"])
    if w.is_gerund(clause.split(" ", 1)[0]):
        return w.verb_list_to_base(clause)
    return _third_person(clause)


def _modal(subject: str, rest: str) -> str:
    """ "Consent", "be documented in the file" -> "document consent in the file"."""
    rest = _ADVERBS.sub("", rest, count=1) if _ADVERBS.match(rest) else rest
    passive = re.match(r"be (?:\w+ly )?(.+)", rest)
    if passive and subject and w.is_participle(passive[1].split(" ")[0].strip(",")):
        return passive_action(_lower(subject), passive[1]) or rest
    if subject.strip() and not forms.AGENT.match(subject.strip()) and rest.startswith("be "):
        return f"ensure that {_lower(subject).strip()} must {rest}".replace(" must be ", " are ")
    return rest


def _third_person(clause: str) -> str:
    """ "The assistant confirms the amount" -> "confirm the amount"."""
    words = clause.split(" ")
    for at in range(1, min(len(words), 6)):
        verb = w.base_form(words[at].lower())
        inflected = words[at].lower().endswith("s") and verb != words[at].lower()
        named = words[0].lower() in w.DETERMINERS and not w.is_noun(words[at])
        agent = named or forms.AGENT.match(" ".join(words[:at]))
        if agent and (inflected and w.is_base_verb(verb)):
            return " ".join([verb, *words[at + 1 :]])
    passive = _IS_DONE.fullmatch(clause)
    if passive and w.is_participle(passive["done"].split(" ")[0].strip(",")):
        return passive_action(_lower(passive["subject"]), passive["done"]) or clause
    return clause


def _lower(text: str) -> str:
    first = text.split(" ", 1)[0]
    return text if first[1:] != first[1:].lower() else text[:1].lower() + text[1:]
