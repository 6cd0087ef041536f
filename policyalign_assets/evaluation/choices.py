"""The choices of a multiple-choice question, and which of them is right.

Homes write the right choice as its place, its letter, its text, or in a column of its own. These
look like each other: a choice can be "2" or "B". So the manifest says which form a home uses
(`answer_form`), and nothing is guessed.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
AnswerForm = Literal["index", "letter", "text", "column"]

MAX_LITERAL = 200_000  # characters of a list that is written as text
MAX_DEPTH = 20
_LETTER = re.compile(r"\(?([A-Z])[).]?", re.IGNORECASE)


class NoSingleAnswer(ValueError):
    """The row does not say which one of its choices is right. The message says what is wrong."""


def named_choices(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, str]:
    """{letter: choice} in order, from one column that lists them or from one column for each.

    A list may be a list, an object by letter, or either written as text. Missing choices at the end
    are left out. Raises NoSingleAnswer.
    """
    listed = row[columns[0]] if len(columns) == 1 else [row[name] for name in columns]
    if isinstance(listed, str):
        listed = _literal(listed)
    if isinstance(listed, Mapping):
        # Parquet gives every row the letters of all rows, so absent choices are None.
        pairs = [(str(key).strip().upper(), value) for key, value in listed.items()]
        pairs = [(key, value) for key, value in pairs if value is not None]
        if [key for key, _ in pairs] != list(LETTERS[: len(pairs)]):
            raise NoSingleAnswer("its choices are not named A, B, C and so on")
        values = [value for _, value in pairs]
    elif isinstance(listed, (list, tuple)):
        values = list(listed)
        while values and (values[-1] is None or values[-1] == ""):
            values.pop()
    else:
        raise NoSingleAnswer("its choices are no list")
    if not 2 <= len(values) <= len(LETTERS) or any(v is None for v in values):
        raise NoSingleAnswer(f"it has {len(values)} choices")
    return dict(zip(LETTERS, (str(value) for value in values)))


def right_choice(choices: Mapping[str, str], said: object, form: AnswerForm) -> int:
    """The place of the right choice, counted from 0. Raises NoSingleAnswer.

    form: how `said` names it. For `column`, `said` is the text, as for `text`.
    """
    texts = list(choices.values())
    match form:
        case "index":
            place = _index(said)
        case "letter":
            found = _LETTER.fullmatch(str(said).strip())
            place = LETTERS.index(found[1].upper()) if found else -1
        case _:
            same = [i for i, text in enumerate(texts) if text.strip() == str(said).strip()]
            place = same[0] if len(same) == 1 else -1
    if not 0 <= place < len(texts):
        raise NoSingleAnswer("no choice is the one that its answer names")
    if texts.count(texts[place]) > 1:
        raise NoSingleAnswer("another choice has the same text as the right one")
    return place


def _index(said: object) -> int:
    """A whole number from a number or its text; spreadsheets write 2 as 2.0. -1 if it is none."""
    if isinstance(said, bool):
        return -1
    if isinstance(said, (int, float)):
        return int(said) if said == int(said) else -1
    text = str(said).strip()
    return int(text.removesuffix(".0")) if re.fullmatch(r"\d{1,3}(\.0)?", text) else -1


def _literal(text: str) -> object:
    """A list or object written as text in Python or JSON. Never evaluates anything else."""
    if len(text) > MAX_LITERAL or _depth(text) > MAX_DEPTH:
        raise NoSingleAnswer("its choices are too long or nested too deeply")
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise NoSingleAnswer("its choices are no list") from None


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    # Signs can be nested too: "----1" is four operations deep.
    return max(deepest, len(max(re.findall(r"[-+~]+", text), key=len, default="")))
