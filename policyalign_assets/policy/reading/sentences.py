"""Cuts a rule's text into its parts: label, sentences, examples, remarks at the end."""

import re

_MARKS = (
    (re.compile(r"!?\[([^\]\n]*)\]\([^)\s]*\)"), r"\1"),  # links and pictures
    (re.compile(r"\[\^?\w{1,3}\](?!:)"), ""),  # footnotes
    (re.compile(r"(?<![\w*])\*{1,3}(?=\S)|(?<=\S)\*{1,3}(?!\w)"), ""),
    (re.compile(r"(?<![\w_])_{1,3}(?=\w)|(?<=[\w.!?:])_{1,3}(?!\w)"), ""),
    (re.compile(r"`"), ""),
    (re.compile(r"[‘’ʼ]"), "'"),
    (re.compile(r"[“”]"), '"'),
    (re.compile(r"^\s*[✅❌✔✘✗🚫⛔👍👎☑☒✓×•]️?\s*"), ""),
    (re.compile(r"\s+"), " "),
    (
        re.compile(
            r"\b([Ii]t|[Tt]here|[Tt]hat)'s (?=not|never|no |forbidden|prohibited|strictly|wrong"
            r"|against|un|ok|fine|your|im|il|al)"
        ),
        r"\1 is ",
    ),
    (re.compile(r"\b(they|we|you)'re\b", re.IGNORECASE), r"\1 are"),
)
_ABBREVIATIONS = re.compile(
    r"\b(e\.g|i\.e|etc|vs|v|cf|Dr|Mr|Mrs|Ms|Prof|St|No|Art|Sec|U\.S|U\.K|approx|incl|resp)\.(?=\s"
    r"|,|\))"
)
_DOT = "․"  # stands for the full stop of an abbreviation while sentences are cut
_BREAK = re.compile(r"(?<=[.!?;])[\"')]* +(?=\S)|(?<=\w) ?[;]$")
_LABEL = re.compile(
    r"(?P<label>[A-Z][^.:;!?]{1,140}?)(?:\s*:| [–—-]{1,2}) +(?P<rest>\S.*)", re.DOTALL
)
_BOLD_LABEL = re.compile(
    r"\s*(?:\*\*|__)(?P<label>[^*_]{2,80}?)[.:]?(?:\*\*|__)[.:]?\s+(?:[–—-]\s+)?(?P<rest>\S.*)"
)
_BOLD_END = re.compile(r"[.:]\s*(?:\*\*|__)|(?:\*\*|__)\s*[.:–—-]")
_NEGATED = re.compile(
    r"\b(?:not|never|no|n't|must|may|should|can|cannot|do|don't)\b", re.IGNORECASE
)
_EXAMPLES = re.compile(
    r",? *(?:\(|–|—)? *\b(?:e\․g․|e\.g\.|for example|for instance|i\․e․|i\.e\.|such as"
    r"|including(?: but not limited to)?"
    r"|including, but not limited to|among (?:them|others)|like (?=\w+(?:, | or | and ))"
    r"|namely),? +(?P<examples>.+?)\)?$",
    re.IGNORECASE,
)  # fmt: skip
_GOES_ON = re.compile(
    r"\)?,? (?=(?:is|are|was|were|must|shall|should|may|can|cannot|will|do|does|has|have|needs?)\b)"
)
_PARENTHESES = re.compile(r" *\((?:[^()]|\([^()]*\))*\)")
_TAIL = re.compile(
    r",? +(?:even (?:if|when|though|where|for|in|to|as|with|while|after)|regardless|irrespective"
    r"|no matter"
    r"|whether or not|under any (?:circumstances?|conditions?|pretext)|in any circumstances?|at "
    r"any time"
    r"|at all times|in all (?:its )?forms|in any (?:way|form|case|situation)|for any (?:reason"
    r"|purpose|cause)|ever|whatsoever"
    r"|without exception|at all|in all cases|by any means|whoever asks|however)\b.*$"
    r"|, (?:whether|because|since|as (?:it|this|they|that|these|doing)|so (?:that )?(?=\w)|which"
    r"|instead|nor|however"
    r"|always|please|to (?:protect|avoid|prevent|ensure|keep)|in order to|not even|as required"
    r"|in (?:line|accordance) with"
    r"|in keeping with|as (?:defined|set out|described))\b.*$"
    r"| (?:–|—|--) .*$"
    r"|,? \b(?:and|but) (?:(?:instead|then|always|you|it|they|the (?:assistant|agent|model)) "
    r")*(?:(?:must|should|shall|will) )?"
    r"(?:instead|redirect|refer|point|direct (?:them|the|users)|offer|suggest|recommend|decline"
    r"|refuse|escalate|explain (?:that|why)"
    r"|tell (?:the user|them|users) (?:that|to)|say (?:so|that|which)|encourage (?:them|the user"
    r"|users)|route|guide|ask (?:them|the user)|notify"
    r"|report (?:it|them|this)|should|must)\b.*$"
    r"|,? (?:or|nor) (?:help|assist|let) (?:any\w+|others|users|someone|people)(?: to| in)? "
    r"(?:do(?:ing)? (?:so|this|that|it)|with (?:this|that|it))\b.*$"
    r"|, but (?:only|not|rather)\b.*$",
    re.IGNORECASE,
)  # fmt: skip


def plain(text: str) -> str:
    """The text without Markdown marks, with straight quotes, for reading only."""
    for pattern, new in _MARKS:
        text = pattern.sub(new, text)
    return text.strip()


def split_label(text: str) -> tuple[str, str]:
    """("Privacy", "Never reveal an address.") for "Privacy: Never ..."; ("", text) without one."""
    bold = _BOLD_LABEL.fullmatch(text)
    if bold and _BOLD_END.search(text[: bold.start("rest")]):
        label = plain(bold["label"])
        if not re.match(r"(?:not|never)\b", label, re.IGNORECASE):
            return label, plain(bold["rest"])
    text = plain(text)
    found = _LABEL.fullmatch(text)
    if found is None or len(found["label"].split()) > 18 or found["label"].count(",") > 2:
        return "", text
    dashed = not text[found.end("label") :].lstrip().startswith(":")
    if dashed and (len(found["label"].split()) > 5 or _NEGATED.search(found["label"])):
        return "", text
    return found["label"].strip(), found["rest"].strip()


def sentences(text: str) -> list[str]:
    """The sentences of a text; a semicolon ends one too. Outer full stops are cut."""
    guarded = _ABBREVIATIONS.sub(lambda m: m[1].replace(".", _DOT) + _DOT, text)
    parts = [p.strip(" ;'") for p in _BREAK.split(guarded)]
    return [p.replace(_DOT, ".").rstrip(".!; ") for p in parts if re.search(r"\w", p)]


def cut_examples(text: str) -> tuple[str, tuple[str, ...]]:
    """The text before "e.g." or "including", and the examples behind it."""
    found = _EXAMPLES.search(text)
    if found is None or not text[: found.start()].strip():
        return text, ()
    goes_on = _GOES_ON.search(found["examples"])
    if goes_on:  # "All staff, including contractors, must ..."
        return (
            f"{text[: found.start()]} {found['examples'][goes_on.end() :]}",
            (found["examples"][: goes_on.start()],),
        )
    return text[: found.start()].rstrip(" ,(–—"), (found["examples"].rstrip(" .)"),)


def cut_remarks(text: str) -> str:
    """The text without parentheses and remarks such as "under any circumstances"."""
    text = _PARENTHESES.sub("", text)
    while True:
        shorter = _TAIL.sub("", text, count=1).rstrip(" ,;:")
        if shorter == text or not shorter:
            return text.rstrip(" ,;:")
        text = shorter
