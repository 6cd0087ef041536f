"""Asks the teachers of a deployment's policies: the base model with one of them in its prompt."""

from __future__ import annotations

from collections.abc import Sequence

from policyalign_assets.distillation.routing import Declines
from policyalign_assets.engine.base import Engine, Sampling, chat
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.judges.verdict import Dialogue
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import Settings


def declines_of(policies: Sequence[PolicyDocument], engine: Engine, settings: Settings) -> Declines:
    """What tells whether the teacher that reads `policies[i]` declines requests."""
    judge = judge_for(settings.model.id)
    sampling = Sampling(settings.deployment.answer_tokens)

    def declines(policy: int, texts: Sequence[str]) -> list[bool | None]:
        if not texts:
            return []
        prompt = policies[policy].prompt_text
        answers = engine.generate([chat(text, prompt) for text in texts], sampling)
        verdicts = judge.judge_all(
            [Dialogue(text, a.text) for text, a in zip(texts, answers, strict=True)]
        )
        return [verdict.refused for verdict in verdicts]

    return declines
