"""The phrases of `refusals.yaml`, compiled, and the choice of languages for one text."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, get_args

from policyalign_assets.files import parse_shipped_yaml
from policyalign_assets.judges.degenerate import languages

Kind = Literal[
    "declines",
    "declines_when_short",
    "not_a_refusal",
    "inability",
    "rejects",
    "condemns",
    "opens",
    "nonexistent",
    "loaded",
    "values",
    "cares",
    "instead",
    "safer",
    "letter",
    "gives",
    "turns",
    "deflects",
]
KINDS: tuple[Kind, ...] = get_args(Kind)  # what each means stands at the top of refusals.yaml

PHRASES_FILE = Path(__file__).with_name("refusals.yaml")
PRESENT = 0.08  # share of a language's small words from which a text may be written in it

# languages that are recognized by their script, not by their small words
_SCRIPTS = {
    "zh": re.compile(r"[\u4e00-\u9fff]"),
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7af]"),
    "ar": re.compile(r"[\u0600-\u06ff]"),
    "fa": re.compile(r"[\u0600-\u06ff]"),
    "he": re.compile(r"[\u0590-\u05ff]"),
    "hi": re.compile(r"[\u0900-\u097f]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
}


@dataclass(frozen=True)
class Phrases:
    """The phrases of the languages that one text may be written in."""

    languages: tuple[str, ...]

    def find(self, kind: Kind, text: str) -> re.Match[str] | None:
        """The first phrase of this kind in `text`, which is folded as in `sentences`."""
        for code in self.languages:
            pattern = _compiled(code, kind)
            if pattern and (match := pattern.search(text)):
                return match
        return None

    def kinds(self, text: str) -> frozenset[Kind]:
        return frozenset(kind for kind in KINDS if self.find(kind, text))


def phrases_for(text: str) -> Phrases:
    """English always; other languages where their script or enough of their small words occur."""
    shares = languages(text)
    found = ["en"]
    for code in _written():
        if code in _SCRIPTS:
            if _SCRIPTS[code].search(text):
                found.append(code)
        elif code != "en" and shares.get(code, 0) >= PRESENT:
            found.append(code)
    return Phrases(tuple(found))


@lru_cache(maxsize=1)
def phrases_hash() -> str:
    """Part of the judge's id: other phrases make another judge."""
    phrases = parse_shipped_yaml(PHRASES_FILE.read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(phrases).encode()).hexdigest()[:8]


@lru_cache(maxsize=1)
def _written() -> dict[str, dict[Kind, str]]:
    """{language: {kind: one pattern for all its phrases}}."""
    data = parse_shipped_yaml(PHRASES_FILE.read_text(encoding="utf-8"))
    parts = {
        name: part if isinstance(part, str) else f"(?:{'|'.join(part)})"
        for name, part in data["parts"].items()
    }
    made: dict[str, dict[Kind, str]] = {}
    for code, language in data["languages"].items():
        spaced = language.pop("boundaries", True)
        made[code] = {}
        for kind, patterns in language.items():
            whole = "|".join(f"(?:{pattern})" for pattern in patterns)
            for name, part in parts.items():
                whole = whole.replace("{" + name + "}", part)
            made[code][kind] = rf"(?<!\w)(?:{whole})(?!\w)" if spaced else whole
    return made


@cache
def _compiled(code: str, kind: Kind) -> re.Pattern[str] | None:
    """Compiled when a text needs it: all languages together take almost a second."""
    pattern = _written()[code].get(kind)
    return re.compile(pattern) if pattern else None
