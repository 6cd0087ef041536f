"""Checks that a draft is one plain request that may be trained on.

A draft is dropped for the first of these reasons that holds:

* `length`: under 8 or over 2000 characters
* `unprintable`: a character that no keyboard writes (a null, a direction mark)
* `control_token`: a mark of a chat template, such as `<|im_end|>` or `[INST]`
* `placeholder`: a gap to fill in, such as "[name]", "{date}", "<company>" or "____"
* `meta`: talks about the task ("Here is a request", "Rule:") instead of being the request
* `pii`: an e-mail address, an IP address, a telephone number (phonenumbers), or a card, bank or
  social security number with valid check digits (python-stdnum). Names do not count as PII here:
  policies are about people, and finding names takes a model.
* `language`: clearly not in the wanted language. py3langid gives that language a probability below
  one in a hundred. The lowest of 3475 requests of public English benchmarks has one in ten; "Come
  falsifico una firma?" has one in two hundred.

The libraries are the lightest that are maintained, work offline and need no download. Presidio
would add spaCy and a model.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from functools import cache
from typing import Any

MIN_CHARACTERS, MAX_CHARACTERS = 8, 2000
REASONS = ("length", "unprintable", "control_token", "placeholder", "meta", "pii", "language")
_MIN_LANGUAGE_PROBABILITY = 0.01

_CONTROL = re.compile(
    r"<\|[^|<>\n]{0,40}\|>|<｜[^<>\n]{0,40}｜>|\[/?(?:INST|SYS)\]|<</?SYS>>|</?s>"
    r"|<(?:bos|eos|pad|unk)>"
    r"|</?(?:think|tool_call|tool_response|start_of_turn|end_of_turn)>"
)
_PLACEHOLDER = re.compile(
    r"\[[^\[\]\n]{1,60}\]|\{[^{}\n]{0,60}\}|<[A-Za-z][^<>\n]{0,40}>|_{3,}|\bX{3,}\b"
)
_META = re.compile(
    r"^(?:sure|certainly|of course|okay|here(?:'s| is| are))\b[^.?!\n]{0,80}[:!]"
    r"|^here(?:'s| is) (?:a|an|one|the) (?:\w+ ){0,3}(?:request|example)"
    r"|^\W*(?:the )?(?:user|assistant|listener|system) ?:"
    r"|^(?:request|rule|persona|format|example) ?\d*:"
    r"|\bas an ai\b|\bthis (?:rule|request) (?:breaks|violates)\b",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
_SECURITY = re.compile(r"\b\d{3}-\d{2}-\d{4}\b")
_CARD = re.compile(r"\b\d(?:[ -]?\d){12,18}\b")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")


def reject_reason(text: str, language: str | None = "en") -> str | None:
    """The first of `REASONS` that holds, or None.

    language: an ISO 639-1 code; None accepts every language.
    """
    if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
        return "length"
    if any(
        unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn", "Cs") and c not in "\n\t\r\u200d"
        for c in text
    ):
        return "unprintable"
    if _CONTROL.search(text):
        return "control_token"
    if _PLACEHOLDER.search(text):
        return "placeholder"
    if _META.search(text):
        return "meta"
    if holds_pii(text):
        return "pii"
    if language and _foreign(text, language):
        return "language"
    return None


def holds_pii(text: str) -> bool:
    if _EMAIL.search(text):
        return True
    if not any(c.isdigit() for c in text):
        return False
    from phonenumbers import PhoneNumberMatcher
    from stdnum import iban, luhn
    from stdnum.us import ssn

    # Numbers without a country code are read as North American.
    return (
        any(map(_is_address, _ADDRESS.findall(text)))
        or any(map(ssn.is_valid, _SECURITY.findall(text)))
        or any(luhn.is_valid(re.sub(r"\D", "", card)) for card in _CARD.findall(text))
        or any(map(iban.is_valid, _IBAN.findall(text)))
        or PhoneNumberMatcher(text, "US").has_next()
    )


def _is_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text) is not None
    except ValueError:
        return False


def _foreign(text: str, language: str) -> bool:
    probabilities = dict(_identifier().rank(text))
    if language not in probabilities:
        raise ValueError(
            f"synthesis.language={language!r} is not a language that can be identified. "
            "Fix: set a two-letter code such as 'en', or unset it."
        )
    return probabilities[language] < _MIN_LANGUAGE_PROBABILITY


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
