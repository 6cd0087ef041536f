"""Asks a judge whether a draft fits its rule. The judge answers yes, no, or cannot be understood.

A violating request must break its rule, and a request for a duty must call for it. A twin or a
neighbour must not break the rule. Drafts are dropped as `not_entailed` or `breaks_rule`. Where the
judge fails they are dropped as `unjudged`, unless the settings keep such drafts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from policyalign_assets.judges.tasks import Messages, read_json
from policyalign_assets.judges.untrusted import block, harmless
from policyalign_assets.judges.verdict import Dialogue, Judge, Verdict
from policyalign_assets.policy import Rule
from policyalign_assets.synthesis.texts import load_yaml

NOT_ENTAILED, BREAKS_RULE, UNJUDGED = "not_entailed", "breaks_rule", "unjudged"


class RuleEntailment:
    """The question to a judge about drafts for one rule.

    The verdict's `safe` is false where the judge answers yes.
    """

    name = "entailment"

    class Reply(BaseModel):
        model_config = ConfigDict(extra="forbid")
        answer: Literal["yes", "no"]

    def __init__(self, rule: Rule, kind: Literal["violating", "duty"]):
        """kind: what the rule's main requests are. Those for a duty must call for it."""
        texts = load_yaml("entailment.yaml")
        questions = texts["questions"]
        self.template = hashlib.sha256(
            (
                texts["system"] + texts["user"] + questions["breaks"] + questions["calls_for"]
            ).encode()
        ).hexdigest()[:16]
        self._user = texts["user"]
        self._system = texts["system"].format(
            rule=harmless(rule.text),
            question=questions["calls_for" if kind == "duty" else "breaks"],
        )

    def messages(self, dialogue: Dialogue) -> Messages:
        request = block("request", dialogue.response, dialogue)
        return [
            {"role": "system", "content": self._system},
            {"role": "user", "content": self._user.format(request=request)},
        ]

    def read(self, reply: str) -> Verdict:
        """Raises Unreadable."""
        return Verdict(safe=read_json(reply, self.Reply).answer == "no")


def faults(judge: Judge, rule: Rule, kind: str, drafts: Sequence[str]) -> dict[str, str | None]:
    """For each draft, the reason why it is no request of `kind`, or None.

    A text that occurs several times is judged once.
    """
    texts = list(dict.fromkeys(drafts))
    verdicts = judge.judge_all([Dialogue(rule.text, text) for text in texts])
    return {text: _fault(kind, verdict) for text, verdict in zip(texts, verdicts, strict=True)}


def _fault(kind: str, verdict: Verdict) -> str | None:
    if not verdict.scored:
        return UNJUDGED
    if kind in ("violating", "duty"):
        return NOT_ENTAILED if verdict.safe else None
    return None if verdict.safe else BREAKS_RULE
