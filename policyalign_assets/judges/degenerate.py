"""Tells text that is no answer (empty, repeating itself, gibberish) and text that is cut off.

It reads plain text, knows no model and no request, and errs on the side of calling text sound: a
list of names, code, a poem or another language must pass. Gates count what it finds; synthesis
drops it.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from policyalign_assets.files import parse_shipped_yaml

EMPTY = "empty response"
REPEATS = "the response repeats itself"
GIBBERISH = "the response is gibberish"

WORDS_FILE = Path(__file__).with_name("function_words.yaml")
READ = 20_000  # characters
LOOP_TIMES = 4  # the same passage this often in a row, at the end of the text
LOOP_SHARE = 0.5  # of the text that the loop makes up
LOOP_WORDS = 12  # least words of all turns of a loop together
SQUEEZED = 0.16  # compressed size over size, below which text repeats itself
SQUEEZED_FROM = 600  # characters; shorter text compresses badly whatever it says
DISTINCT = 0.35  # share of different word triples
DISTINCT_FROM = 60  # words
LETTERS = 0.35  # share of letters and digits among the visible characters
LETTERS_FROM = 24  # characters
ODD_WORDS = 0.3  # share of words that no language writes
ODD_FROM = 6  # words
FUNCTION_WORDS = 0.06  # share of small words in running text
FUNCTION_FROM = 16  # words


@lru_cache(8192)  # a report reads each answer several times
def degenerate(text: str) -> str | None:
    """The reason why `text` is no answer, or None: EMPTY, REPEATS or GIBBERISH."""
    text = text[:READ].strip()
    if not any(c.isalnum() for c in text) and len(text) < LETTERS_FROM:
        return EMPTY
    if repeats(text):
        return REPEATS
    if gibberish(text):
        return GIBBERISH
    return None


# ---- repetition ----------------------------------------------------------------------------------
def repeats(text: str) -> bool:
    """Does the text go in circles? A refrain or a table with equal cells does not."""
    compact = " ".join(text.casefold().split())
    if re.search(r"(.)\1{39,}", compact) and not re.fullmatch(r"[\w\s]*[-=_*]{3,}[\w\s]*", compact):
        run = max((len(m[0]) for m in re.finditer(r"(\w)\1{39,}", compact)), default=0)
        if run > 0.3 * len(compact):
            return True
    units = _units(compact)
    if _loop(units) or _loop(
        [line.strip() for line in text.casefold().split("\n") if line.strip()]
    ):
        return True
    if len(units) >= DISTINCT_FROM:
        triples = list(zip(units, units[1:], units[2:], strict=False))
        if len(set(triples)) < DISTINCT * len(triples):
            return True
    raw = compact.encode()
    return len(raw) >= SQUEEZED_FROM and len(zlib.compress(raw, 6)) < SQUEEZED * len(raw)


def _units(compact: str) -> list[str]:
    """Words; characters where a script has no spaces."""
    words = compact.split()
    if words and len(compact) / len(words) > 25:
        return [c for c in compact if not c.isspace()]
    return words


def _loop(units: Sequence[str]) -> bool:
    """Does the text end in the same passage over and over (its last turn may be cut)?"""
    n = len(units)
    for length in range(1, n // LOOP_TIMES + 1):
        same = 0
        while same + length < n and units[n - 1 - same] == units[n - 1 - same - length]:
            same += 1
        turns = (same + length) / length
        words = sum(len(u.split()) or 1 for u in units[n - same - length :])
        if turns >= LOOP_TIMES and words >= LOOP_WORDS and same + length >= LOOP_SHARE * n:
            return True
    return False


# ---- gibberish -----------------------------------------------------------------------------------
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+|\S+@\S+\.\w+", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_VOWELS = frozenset("aeiouyäöüåæøœáàâãéèêëíìîïıóòôõúùûýÿąęěůőűășțñ")
_LOOKS_LIKE_CODE = re.compile(
    r"[{};]\s*$|^\s*(?:def |class |import |#include|<\w+|SELECT |\$ )|\|.*\|", re.M
)


def gibberish(text: str) -> bool:
    """Is this no language? Code, formulas, tables and numbers are none either, and pass."""
    if "\ufffd" in text and text.count("\ufffd") > 0.05 * len(text):
        return True
    prose = _CODE.sub(" ", text)
    if not prose.strip() or len(_LOOKS_LIKE_CODE.findall(prose)) >= 3:
        return False
    visible = [c for c in prose if not c.isspace()]
    if len(visible) >= LETTERS_FROM:
        spoken = sum(1 for c in visible if unicodedata.category(c)[0] in "LNM")
        if spoken < LETTERS * len(visible):
            return True
    words = _WORD.findall(prose)
    if len(words) >= ODD_FROM and sum(map(_odd, words)) > ODD_WORDS * len(words):
        return True
    if _many_scripts(prose):
        return True
    return _salad(prose, words)


@lru_cache(65536)
def _odd(word: str) -> bool:
    """A word that no language with the Latin script writes, or one that mixes scripts."""
    if len({_script(c) for c in word if c.isalpha()} - {"other"}) > 1:
        return True
    if not word.isascii() and not any(_script(c) == "latin" for c in word):
        return False
    low = word.casefold()
    letters = [c for c in low if c.isalpha()]
    vowels = sum(c in _VOWELS for c in letters)
    if len(letters) > 34:
        return True
    if len(letters) > 2 and vowels == 0 and not word.isupper():
        return len(letters) > 4 or not {"r", "l"} & set(letters)  # Czech: "prst", "vlk"
    if re.search(r"[^\Waeiouyäöüåæøáéíóúàèìòùâêîôûëïı\d_]{7,}", low):
        return True
    inner = sum(a.islower() and b.isupper() for a, b in pairwise(word))
    return inner >= 3 or bool(re.search(r"(\w)\1\1\1", low))


def _script(char: str) -> str:
    code = ord(char)
    if code < 0x250 or 0x1E00 <= code < 0x1F00:
        return "latin"
    for name, low, high in _SCRIPTS:
        if low <= code <= high:
            return name
    return "other"


_SCRIPTS = (
    ("greek", 0x370, 0x3FF),
    ("cyrillic", 0x400, 0x52F),
    ("armenian", 0x530, 0x58F),
    ("hebrew", 0x590, 0x5FF),
    ("arabic", 0x600, 0x77F),
    ("indic", 0x900, 0xDFF),
    ("thai", 0xE00, 0xEFF),
    ("georgian", 0x10A0, 0x10FF),
    ("hangul", 0x1100, 0x11FF),
    ("cjk", 0x2E80, 0x9FFF),
    ("hangul", 0xAC00, 0xD7AF),
)


def _many_scripts(text: str) -> bool:
    """Four scripts or more, none of them a guest: a sampler that has lost its way."""
    counts = Counter(_script(c) for c in text if c.isalpha())
    counts.pop("other", None)
    total = counts.total()
    return total >= 40 and sum(n >= 0.06 * total for n in counts.values()) >= 4


def _salad(prose: str, words: Sequence[str]) -> bool:
    """Running text without any small words. Lists, headings and names have none either."""
    latin = [w.casefold() for w in words if w.isascii() or _script(w[0]) == "latin"]
    if len(latin) < FUNCTION_FROM or len(latin) < 0.7 * len(words):
        return False
    lines = [line for line in prose.split("\n") if line.strip()]
    if len(latin) / len(lines) < 6 or prose.count(",") > len(latin) / 4:
        return False
    found = languages(prose)
    best = max(found.values(), default=0.0)
    return best < FUNCTION_WORDS


@lru_cache(maxsize=1)
def function_words() -> dict[str, frozenset[str]]:
    """{language: its commonest small words}."""
    data = parse_shipped_yaml(WORDS_FILE.read_text(encoding="utf-8"))
    return {language: frozenset(words.split()) for language, words in data.items()}


def languages(text: str) -> dict[str, float]:
    """{language: share of the words of `text` that are among its small words}."""
    words = [w.casefold() for w in re.findall(r"[^\W\d_]+", text)]
    if not words:
        return {}
    counts = Counter(words)
    return {
        language: sum(counts[w] for w in small if w in counts) / len(words)
        for language, small in function_words().items()
    }


# ---- cut -----------------------------------------------------------------------------------------
_ENDS = re.compile(
    r"""(?:[.!?…。！？।؟;)\]}"'”’»」』>|`*_~—%°€$]|[\U0001F000-\U0001FAFF\u2600-\u27BF]️?)\s*\Z"""
)
_ITEM = re.compile(r"^\s*(?:[-*•·–+]|\(?\d{1,3}[.):]|[a-z][.)])\s+\S|^\s*#|^\s*\|", re.IGNORECASE)


def cut(text: str) -> bool:
    """Does the text stop in mid-sentence? A short answer without a full stop does not, nor does a
    list."""
    text = text.rstrip()
    if not text or text.count("```") % 2:
        return bool(text)
    if _ENDS.search(text):
        return False
    lines = [line for line in text.split("\n") if line.strip()]
    last = lines[-1]
    if _ITEM.match(last) and len(lines) > 1:
        done = [line for line in lines[:-1] if _ITEM.match(line)]
        unended = sum(not _ENDS.search(line) for line in done)
        return not done or unended < 0.5 * len(done)
    if re.search(
        r"[,;:(/&+=-]\Z|\b(?:the|a|an|of|to|and|or|with|for|in|that|is|are|your|their)\Z", last
    ):
        return True
    return len(text.split()) >= 12 and bool(re.search(r"[.!?。！？।؟]", text))
