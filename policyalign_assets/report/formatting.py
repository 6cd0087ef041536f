"""Numbers and untrusted text, in the one form in which every output shows them."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from typing import TYPE_CHECKING

# Dagster's definitions escape cells with this module, and must not load scipy.
if TYPE_CHECKING:
    from policyalign_assets.statistics import GradedDifference, Interval, PairedDifference

NOT_MEASURED = "not measured"
_BEGINNING = 40  # characters of a harmful text that a report shows
_SPACE = "\u00a0"  # keeps a number and its unit on one line
# Line ends, tabs, and the two joiners: they spell words in several scripts and hide nothing.
_ALLOWED = "\n\t\u200c\u200d"


def visible(text: str) -> str:
    """The text with control, format, bidi and lone surrogate characters shown as symbols.

    No text can then restyle or hide itself.
    """
    # Python's printable characters are none of those, and looking at them one by one takes long.
    if text.replace("\n", "").replace("\t", "").replace(_SPACE, "").isprintable():
        return text
    return "".join(map(_visible_character, text))


def percent(share: float | None, digits: int = 1) -> str:
    return NOT_MEASURED if share is None else f"{_signed(100 * share, digits)}{_SPACE}%"


def share_with_interval(interval: Interval) -> str:
    if interval.estimate is None or interval.low is None or interval.high is None:
        return NOT_MEASURED
    return f"{percent(interval.estimate)} ({100 * interval.low:.1f}–{100 * interval.high:.1f})"


def points(paired: PairedDifference | GradedDifference) -> str:
    """The difference in percentage points, with its interval."""
    if paired.difference is None or paired.low is None or paired.high is None:
        return NOT_MEASURED
    low, high = _signed(100 * paired.low, 1), _signed(100 * paired.high, 1)
    sign = "+" if paired.difference > 0 else ""
    return f"{sign}{_signed(100 * paired.difference, 1)} ({low} to {high})"


def moment(iso: str) -> str:
    """An ISO time as people write it, to the minute: 2026-11-29 08:36 UTC. Other text stays."""
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    zone = when.tzname() or ""
    return f"{when:%Y-%m-%d}{_SPACE}{when:%H:%M}{_SPACE}{zone}".rstrip() if len(iso) > 10 else iso


def p_value(p: float | None) -> str:
    if p is None:
        return NOT_MEASURED
    return "<" + _SPACE + "0.001" if p < 0.001 else f"{p:.3f}"


def markdown_cell(text: str) -> str:
    """Text for one cell of a Markdown table: no markup, no HTML, no cell or line break."""
    text = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]!|~])", r"\\\1", text).replace("\n", " ").replace("\t", " ")


def redacted(text: str) -> str:
    """The beginning alone, never more than half, and how much is left out."""
    shown = text[: min(_BEGINNING, len(text) // 2)]
    return f"{shown.rstrip()} … [redacted: {len(text) - len(shown)} characters]" if text else text


def _visible_character(character: str) -> str:
    if character in _ALLOWED:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode has a picture for each: escape is ␛
    if code == 0x7F:
        return "\u2421"
    # Cc: control. Cf: format, which includes all bidi controls, zero-width and tag characters.
    # Cs: surrogate. Zl and Zp: line and paragraph separators.
    return (
        f"⟨U+{code:04X}⟩"
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else character
    )


def _signed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\u2212")
