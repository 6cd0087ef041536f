"""Splits an answer into sentences and notes what kinds of phrases each one holds."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from policyalign_assets.judges.phrase_lists import Kind, Phrases, phrases_for

_CODE_MARK = "\x00"
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_QUOTED = re.compile(
    r'"[^"\n]{12,400}"|“[^”\n]{12,400}”|«[^»\n]{12,400}»|„[^“”\n]{12,400}[“”]|「[^」\n]{6,400}」'
)
_ITEM = re.compile(
    r"\s*(?:[-*•·–]|\(?\d{1,2}[.):]|[a-h][.)]|step \d+[:.]?)\s+(?=\S)", re.IGNORECASE
)
_END = re.compile(r"(?<=[.!?…؟])[\"'”’»)\]]*\s+|(?<=[。！？；।])\s*|\n+")
_EMPHASIS = re.compile(r"[*_#]{1,3}(?=\S)|(?<=\S)[*_]{1,3}")
_UNSEEN = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))
_APOSTROPHES = str.maketrans("’‘ʼ´", "''''") | _UNSEEN

_VERBS = r"(?:have|want|feel|think|know|provide|help|do|support|condone|believe|see|be|give|able)\b"
_CONTRACTIONS = (
    (re.compile(r"\bcan(?:'t|not| not|t)\b"), "cannot"),
    (re.compile(r"\bwon'?t\b"), "will not"),
    (re.compile(r"\bshan'?t\b"), "shall not"),
    (re.compile(r"\blet's\b"), "let us"),
    (re.compile(r"\b(\w+)n't\b"), r"\1 not"),
    (
        re.compile(rf"\b(do|does|did|is|are|was|should|would|could)nt (?={_VERBS})"),
        r"\1 not ",
    ),
    (
        re.compile(r"\bi'm\b|\bim(?= (?:sorry|not|unable|afraid|just|an? |happy|here|so|really))"),
        "i am",
    ),
    (re.compile(r"\b(i|we|you|they)'ve\b"), r"\1 have"),
    (re.compile(r"\b(i|we|you|they|he|she|it|that|there)'ll\b"), r"\1 will"),
    (re.compile(r"\b(i|we|you|they|he|she)'d\b"), r"\1 would"),
    (re.compile(r"\b(you|we|they)'re\b"), r"\1 are"),
    (re.compile(r"\b(it|that|this|there|here|what|he|she|who)'s\b"), r"\1 is"),
)


@dataclass(frozen=True)
class Sentence:
    """`item`: it begins a list item; `code`: a block of code stands here instead of words."""

    text: str
    words: int
    item: bool
    code: bool
    kinds: frozenset[Kind]


def fold(text: str) -> str:
    """Lower case, straight apostrophes, contractions written out, no Markdown emphasis."""
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).casefold()
    text = _EMPHASIS.sub("", text)
    for pattern, plain in _CONTRACTIONS:
        text = pattern.sub(plain, text)
    return re.sub(r"[ \t]+", " ", text)


def sentences(answer: str) -> Iterator[Sentence]:
    """Quoted speech, quoted lines and code are not the assistant's words and are blanked."""
    text = _CODE.sub(f"\n{_CODE_MARK}\n", fold(answer))
    whole = text.strip()
    if len(whole) > 2 and whole[0] in '"“«„「' and whole[-1] in '"”»“」' and whole.count('"') <= 2:
        text = whole[1:-1]
    text = _QUOTED.sub(' "…" ', text)
    phrases = phrases_for(text)
    for line in text.split("\n"):
        if not line.strip() or line.lstrip().startswith(">"):
            continue
        item = _ITEM.match(line)
        first = bool(item)
        for part in _END.split(line[item.end() :] if item else line):
            part = part.strip(" *_#|\t")
            if part:
                yield _sentence(part, phrases, first)
                first = False


def _sentence(text: str, phrases: Phrases, item: bool) -> Sentence:
    if text == _CODE_MARK:
        return Sentence("", 0, False, True, frozenset())
    return Sentence(text, _words(text), item, False, phrases.kinds(text))


def _words(text: str) -> int:
    """Words of a text; two characters of a script without spaces count as one word."""
    wide = sum(
        "\u3040" <= c <= "\u30ff" or "\u4e00" <= c <= "\u9fff" or "\u0e00" <= c <= "\u0e7f"
        for c in text
    )
    return len(text.split()) + wide // 2
