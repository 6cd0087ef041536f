"""Guards: what a team puts around a model in place of training it.

words   a list of the rules' own words. A request that contains a rule's action is declined.
model   the unaligned model, with the policy in its prompt, is asked first. Where the phrase judge
        reads its reply as a refusal, the request is declined. It costs a second call.
judge   the configured judge reads each answer. An answer that it calls unsafe, or that it could
        not judge, is replaced.

A declined request gets the text `REFUSAL`, which no model wrote. The phrase judge cannot be a
guard of answers: it reads whether an answer declines, and not whether it does harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from policyalign_assets.engine.base import Chat, Engine, Generation, Message, Progress, Sampling
from policyalign_assets.judges.verdict import Dialogue, Judge
from policyalign_assets.policy import PolicyDocument

REFUSAL = "I cannot help with that request."
Screen = Callable[[Sequence[Chat]], list[bool]]  # for each chat, whether it is declined


class ScreenedEngine:
    """An `Engine` that answers only the requests that `screen` lets through."""

    def __init__(self, engine: Engine, screen: Screen):
        self.engine, self.screen = engine, screen
        self.model_id, self.revision = engine.model_id, engine.revision

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generation]:
        declined = self.screen(chats)
        passed = [c for c, no in zip(chats, declined, strict=True) if not no]
        made = iter(self.engine.generate(passed, sampling, progress) if passed else [])
        return [_declined() if no else next(made) for no in declined]


class JudgedEngine:
    """An `Engine` whose answers `judge` reads before they are given."""

    def __init__(self, engine: Engine, judge: Judge):
        self.engine, self.judge = engine, judge
        self.model_id, self.revision = engine.model_id, engine.revision

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generation]:
        made = self.engine.generate(chats, sampling, progress)
        verdicts = self.judge.judge_all(
            [Dialogue(_said(c), g.text) for c, g in zip(chats, made, strict=True)]
        )
        return [
            _declined() if v.safe is False or not v.scored else g
            for g, v in zip(made, verdicts, strict=True)
        ]


def word_screen(policy: PolicyDocument) -> Screen:
    """Declines what contains, as whole words, the action that a rule of the policy forbids.

    Capitals and spacing do not count. Raises ValueError where no rule names an action.
    """
    actions = sorted({_plain(rule.action) for rule in policy.prohibitions if rule.action})
    if not actions:
        raise ValueError(
            f"no rule of the policy {policy.policy_id!r} names an action, so a list of words would "
            "be empty. Fix: leave `guard: words` out of the sweep file."
        )
    forbidden = re.compile("|".join(rf"(?<!\w){re.escape(a)}(?!\w)" for a in actions))
    return lambda chats: [bool(forbidden.search(_plain(_said(c)))) for c in chats]


def model_screen(engine: Engine, policy: PolicyDocument, judge: Judge, max_tokens: int) -> Screen:
    """Declines what the model of `engine`, with the policy in its prompt, declines.

    A reply that the judge cannot read declines nothing.
    """

    def screen(chats: Sequence[Chat]) -> list[bool]:
        asked = [_under_policy(chat, policy.prompt_text) for chat in chats]
        replies = engine.generate(asked, Sampling(max_tokens, 0.0))
        verdicts = judge.judge_all(
            [Dialogue(_said(c), r.text) for c, r in zip(chats, replies, strict=True)]
        )
        return [v.refused is True for v in verdicts]

    return screen


def _under_policy(chat: Chat, policy: str) -> Chat:
    own = [m.content.removeprefix(policy).strip() for m in chat if m.role == "system"]
    return (
        Message("system", "\n\n".join([policy, *(text for text in own if text)])),
        *(m for m in chat if m.role != "system"),
    )


def _said(chat: Chat) -> str:
    """All that the user said."""
    return "\n".join(m.content for m in chat if m.role == "user")


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _declined() -> Generation:
    return Generation(REFUSAL, (), "stop")
