"""How near an endpoint was to a kept answer that it did not give, from its log-probabilities.

Another engine or number format gives another answer where two tokens are nearly as likely. Another
model gives another answer although its own token is far likelier. So at the first token where an
answer leaves the kept one, the gap between the two tokens tells the two cases apart. No tokenizer
is needed: the kept answer's token is the one among the likeliest that continues its text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from policyalign_assets.endpoint import Token

Closeness = Literal["same", "near", "far", "different", "unknown"]
NEAR = 1.0  # nats: a token at most so much less likely than the one that was chosen
TOP = 5  # how many of the likeliest tokens are asked for: the least that common servers allow
_END = re.compile(r"|<[^<>\s]+>|\[[A-Z_/]+\]")  # how servers write the token that ends an answer


def closeness(kept: str | None, given: str, tokens: Sequence[Token] | None) -> Closeness:
    """How an answer relates to a kept one.

    "same" to the letter; else, by the gap where it leaves the kept answer, "near" or "far", or
    "different" where the gap is not known. "unknown" where nothing is kept.
    """
    if kept is None:
        return "unknown"
    if kept == given:
        return "same"
    gap = gap_to(kept, tokens) if tokens else None
    if gap is None:
        return "different"
    return "near" if gap <= NEAR else "far"


def gap_to(kept: str, tokens: Sequence[Token]) -> float | None:
    """By how many nats the token of the kept answer was less likely where the answer left it.

    Where it is not among the likeliest tokens, the gap to the last of these, which is a lower
    bound. None where the place cannot be found, or such a bound is too low to say anything.
    """
    begun = "".join(token.text for token in tokens)
    at = len(begun.lstrip()) - len(begun)  # kept answers have no blanks around them
    passed: list[tuple[int, Token]] = []
    for number, token in enumerate(tokens):
        if "\ufffd" in token.text:  # a part of a character
            return None
        start, shown = max(0, at), token.text[max(0, -at) :]
        rest = kept[start:]
        over = not rest and all(_is_blank(later.text) for later in tokens[number:])
        if over:
            return None
        if (shown and rest.startswith(shown)) or (at < 0 and not shown):
            passed.append((start, token))
            at += len(token.text)
            continue
        return _gap(kept, start + _common(rest, shown), [*passed[-3:], (start, token)])
    return None


def _gap(kept: str, left_at: int, places: Sequence[tuple[int, Token]]) -> float | None:
    """places: where the last tokens begin, that of the answer's own way last. The kept answer may
    have left one token earlier, by a longer one.
    """
    gaps = []
    for start, token in places:
        rest = kept[start:]
        for text, value in token.likeliest.items():
            ends = not rest and bool(_END.fullmatch(text))
            if ends or (text and rest.startswith(text) and start + len(text) > left_at):
                gaps.append(token.log_probability - value)
    if gaps:
        return min(gaps)
    _, last = places[-1]
    if not last.likeliest:
        return None
    bound = last.log_probability - min(last.likeliest.values())
    return bound if bound > NEAR else None


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return same


def _is_blank(text: str) -> bool:
    return not text.strip() or bool(_END.fullmatch(text))
