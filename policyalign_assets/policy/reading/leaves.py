"""The action of a fragment that stands below a line such as "You may not use it for:"."""

from policyalign_assets.policy.reading import words as w
from policyalign_assets.policy.reading.actions import (
    action_of,
    may_be_noun,
    noun_phrase_action,
)
from policyalign_assets.policy.reading.surroundings import SLOT, Lead


def leaf_action(text: str, lead: Lead) -> str | None:
    """The action of a leaf: "Requests that: / Asks for a weapon" gives "ask for a weapon"."""
    if lead.template and not (lead.template.endswith(f" is {SLOT}") and _names_act(text)):
        return lead.template.replace(SLOT, text[:1].lower() + text[1:])
    third = _third_person(text)
    first = third.split(" ", 1)[0]
    if lead.kind == "permit" and not (w.is_gerund(first) or w.starts_as_verb(third) or lead.verb):
        return third[:1].lower() + third[1:]
    if lead.nominal and may_be_noun(text):
        return noun_phrase_action(text[:1].lower() + text[1:], lead.verb)
    return action_of(third, lead.verb)


def _names_act(text: str) -> bool:
    """Whether a leaf below "content that is:" names an act or a thing ("Spamming") instead."""
    first = text.split(" ", 1)[0].strip(",").lower()
    described = "ADJ" in w.lemmas(first) or "ADV" in w.lemmas(first) or w.is_participle(first)
    return w.is_gerund(first) or (w.is_noun(first) and not described)


def _third_person(text: str) -> str:
    """ "Asks for a weapon" as "ask for a weapon": a leaf below "Refuse requests that:"."""
    first, _, rest = text.partition(" ")
    low = first.lower()
    verb = w.base_form(low)
    if low.endswith("s") and verb != low and rest and w.is_base_verb(verb) and not w.is_plural(low):
        return f"{verb} {rest}"
    return text
