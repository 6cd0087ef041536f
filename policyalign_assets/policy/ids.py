"""Ids of rules: those that an organisation writes ("3.2.1", "PRIV-1"), and derived ones."""

import hashlib
import re

_ID = re.compile(
    r"(?:\*\*|__)?[\[(]?(?:(?:Rule|Section|Article|Policy|Requirement|Control|Standard) "
    r"(?=[\dA-Z]))?"
    r"(?:(?P<named>R-[0-9a-f]{5}(?:-[0-9]+)?"
    r"|[A-Za-z]{1,8}[-.]?[0-9]{1,4}(?:[.-][0-9]{1,4})*[a-z]?"
    r"|(?:[A-Z]{1,8}[-.])+[0-9]{1,4}(?:[.-][0-9]{1,4})*[a-z]?"
    r"|[a-z]+(?:-[a-z]+)*-[0-9]{1,4})(?:[\])]? ?[:.)|]|[\])]|\*\*:?|__| [–—-](?= ))"
    r"|(?P<paragraph>§ ?[0-9]+[a-z]?(?:[. ]\([0-9a-z]+\)|\.[0-9]+)*)[:.)]?"
    r"|(?P<number>[0-9]{1,3}(?:\.[0-9]{1,3})+[a-z]?(?:\([a-z0-9]{1,4}\))*)[\])]?[:.)]?(?= |\*))"
    r"(?:\*\*|__)?[:.]? +(?P<text>\S.*)",
    re.DOTALL,
)  # fmt: skip
_PLAIN_WORDS = re.compile(
    r"(?:ISO|GPT|COVID|COPPA|Covid|Windows|Phase|HTTP|SHA|UTF|MP)[-.]?\d", re.ASCII
)


def split_id(text: str) -> tuple[str | None, str]:
    """("3.2.1", "Never lie.") for "3.2.1 Never lie."; (None, text) where the text has no id."""
    found = _ID.fullmatch(text)
    if found is None:
        return None, text
    name = found["named"] or found["paragraph"] or found["number"]
    if _PLAIN_WORDS.match(name):
        return None, text
    return name.replace(" ", ""), found["text"]


def derived_id(text: str, taken: set[str]) -> str:
    """An id from a rule's words alone, so that edits elsewhere keep it: "R-3f9c2"."""
    words = re.sub(r"\W+", " ", text.lower()).strip()
    digest = hashlib.sha256(words.encode()).hexdigest()
    name = f"R-{digest[:5]}"
    count = 1
    while name in taken:
        count += 1
        name = f"R-{digest[:5]}-{count}"
    return name
