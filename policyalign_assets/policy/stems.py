"""Compiles a rule's sentence: does it forbid or require, under which condition, with which exceptions, and what does it permit?

Only what the words say: "If a user is a minor, never …" is conditional, "… unless a notary is present" an exception, and
"You may explain how signatures are checked." a permitted neighbour. A sentence that says none of this is all rule.
"""

import re
from dataclasses import dataclass

from policyalign_assets.policy.model import RuleKind

_PROHIBITS = re.compile(r"(never|do not|refuse)\b", re.IGNORECASE)

# The words shut out after the stem would make "{p}" something other than a verb phrase ("Never help anyone who lies.").
_STEM = re.compile(
    r"(?:never help anyone|do not help anyone|never assist anyone who wants to|refuse to help anyone|never explain how to) "
    r"(?!(?:who|whom|whose|that|which|to|with|in|into|by|for|from|at|on|if|when|while|without|or|and)\b)"
    r"(?P<action>[a-z][a-z'-]*(?: .+?)?)\.?",
    re.IGNORECASE,
)
_SECOND_SENTENCE = re.compile(r"[.!?] ")
_SENTENCE_END = re.compile(r"(?<=[.!?;]) +")
_CONDITION = re.compile(
    r"(?:if|when|whenever|where|while|before|after|in case) (?P<condition>[^,]+), +(?:then )?(?P<duty>.+)",
    re.IGNORECASE,
)
_ONLY = re.compile(r"(?P<duty>.+?),? only (?:if|when|after|where) (?P<condition>.+)", re.IGNORECASE)
_EXCEPTION = re.compile(
    r",? *\b(?:unless|except(?: that| when| where| if| for| to| in)?|other than|apart from) (?P<exception>.+)",
    re.IGNORECASE,
)
_MAY = re.compile(
    r"(?:,? *\bbut |^)(?:you|it|(?:the|this) assistant) (?:may|can)(?! not\b) (?:still |always )?(?P<permitted>.+)",
    re.IGNORECASE,
)
_ALLOWED = re.compile(
    r"(?P<permitted>.+?) (?:is|are) (?:always )?(?:allowed|permitted|fine)", re.IGNORECASE
)


@dataclass(frozen=True)
class Compiled:
    """`action`: what a prohibition forbids, in its base form (None where no known stem fits)."""

    kind: RuleKind
    action: str | None
    condition: str | None = None
    exceptions: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    forbids: bool = False


def compile_rule(sentence: str) -> Compiled:
    permitted, rest = [], []
    for part in _SENTENCE_END.split(sentence):
        body = part.rstrip(".!;")
        found = _MAY.match(body) or _ALLOWED.fullmatch(body)
        (permitted if found else rest).append(found["permitted"] if found else part)
    main = " ".join(rest) or sentence
    main, inline = _cut(_MAY, main)
    main, exceptions = _cut(_EXCEPTION, main)
    conditional = _CONDITION.fullmatch(main)
    only = None if conditional or _PROHIBITS.match(main) else _ONLY.fullmatch(main)
    duty = (conditional or only or {"duty": main})["duty"]
    forbids = bool(_PROHIBITS.match(duty)) or only is not None  # "only when" forbids the rest
    condition = (conditional or only or {"condition": ""})["condition"].rstrip(".!;") or None
    kind = "condition" if condition else "prohibit" if forbids else "require"
    stem = _STEM.fullmatch(main) if kind == "prohibit" else None
    # An action becomes part of other sentences, so one that runs over a full stop is of no use.
    action = None if stem is None or _SECOND_SENTENCE.search(stem["action"]) else stem["action"]
    return Compiled(kind, action, condition, exceptions, (*permitted, *inline), forbids)


def _cut(pattern: re.Pattern, text: str) -> tuple[str, tuple[str, ...]]:
    """`text` without what `pattern` finds after its first word, and what it found."""
    found = pattern.search(text, 1)
    if found is None:
        return text, ()
    return text[: found.start()].rstrip(" ,"), (found[found.lastgroup].rstrip(".!;"),)
