"""Characters that would deceive a reader: invisible ones, and letters that look like others."""

import re
import unicodedata

# Control characters, bidirectional overrides, tag characters and zero-width spaces. The joiners
# U+200C and U+200D stay: Persian and emoji need them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069"
    "\ufff9-\ufffb\U000e0000-\U000e007f]|(?<!^)\ufeff"
)
_LOOKALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d\u0442"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    "\u03bf\u03bd\u03b9\u03ba\u03c1\u03c5\u03b1\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",
    "aeopcyxijshdqwtABEKMHOPCTYXIJSovikpuaABEZHIKMNOPTYX",
)
_WORD = re.compile(r"[^\W\d_]+")


def invisible(text: str) -> str | None:
    """The name of the first character that may not stand in a policy, or None."""
    found = _INVISIBLE.search(text)
    if found is None:
        return None
    code = ord(found[0])
    return f"U+{code:04X} {unicodedata.name(found[0], 'control character')}"


def mixed_words(text: str) -> list[str]:
    """Words that mix Latin letters with look-alikes of another script ("N\u0435ver")."""
    return [word for word in _WORD.findall(text) if _is_mixed(word)]


def latin(text: str) -> str:
    """The text with the look-alikes in mixed words as the Latin letters that a reader sees."""
    return _WORD.sub(lambda m: m[0].translate(_LOOKALIKES) if _is_mixed(m[0]) else m[0], text)


def _is_mixed(word: str) -> bool:
    return any(c.isascii() for c in word) and word.translate(_LOOKALIKES) != word
