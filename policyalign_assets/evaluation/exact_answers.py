"""Compares an answer with a short right answer: what it says counts, not in which words.

A number is right if it is the answer's result: the number after "is", "=" or "answer", else the
only number that the question does not name, else the last number. A word is right if the answer
names it and none of the wrong answers that the question offers; where it names several, the
sentence about what was asked decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?"
_RESULT = re.compile(
    rf"(?:\banswer\b[^\d\n]{{0,20}}|\bis\b[^\w\n]{{0,8}}|\bequals\b[^\w\n]{{0,8}}|=[^\w\n]{{0,8}})"
    rf"({_NUMBER})",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def is_right(question: str, answer: str, right: str, wrong: Sequence[str] = ()) -> bool:
    """Whether `answer` gives `right`. `wrong`: other answers that the question offers."""
    if re.fullmatch(_NUMBER, right):
        return _result(question, answer) == _value(right)
    return _names_only(question, answer, right, wrong)


def _result(question: str, answer: str) -> float | None:
    stated = [_value(found) for found in _RESULT.findall(answer)]
    if stated:
        return stated[-1]
    numbers = [_value(found) for found in re.findall(_NUMBER, answer)]
    asked = {_value(found) for found in re.findall(_NUMBER, question)}
    new = set(numbers) - asked
    if len(new) == 1:
        return new.pop()
    return numbers[-1] if numbers else None


def _value(text: str) -> float:
    return float(text.replace(",", ""))


def _names_only(question: str, answer: str, right: str, wrong: Sequence[str]) -> bool:
    named = _named(answer, (right, *wrong))
    if len(named) < 2:
        return named == {right}
    # Several answers are named, so only sentences about the thing that was asked for count. The
    # question names that thing last: "Which key does Anna have?"
    subject = _subject(question)
    about = [s for s in _SENTENCE.split(answer) if subject and subject in s]
    return bool(about) and _named(" ".join(about), (right, *wrong)) == {right}


def _named(text: str, answers: Sequence[str]) -> set[str]:
    return {a for a in answers if re.search(rf"\b{re.escape(a)}\b", text, re.IGNORECASE)}


def _subject(question: str) -> str:
    """The last capitalised word of the last sentence that is not its first word, or ""."""
    last = _SENTENCE.split(question.strip())[-1]
    names = re.findall(r"(?<=\s)[A-Z]\w*", last)
    return names[-1] if names else ""
