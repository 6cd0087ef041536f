"""Reads a rule's sentence: does it forbid or require, and what does it forbid?"""

import re

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


def classify(sentence: str) -> tuple[RuleKind, str | None]:
    """The rule's kind, and the action that a prohibition names in its base form (None where no known stem fits)."""
    if not _PROHIBITS.match(sentence):
        return "require", None
    stem = _STEM.fullmatch(sentence)
    # An action becomes part of other sentences, so one that runs over a full stop is of no use.
    if stem is None or _SECOND_SENTENCE.search(stem["action"]):
        return "prohibit", None
    return "prohibit", stem["action"]
