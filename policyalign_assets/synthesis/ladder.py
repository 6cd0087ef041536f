"""Asks a generator for drafts, and again in other ways where it refuses: defensive framing, a prefilled answer, examples.

A draft that is still refused after the last step stays refused; nothing is made up for it and no other rule fills its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from policyalign_assets.engine.base import Chat, Engine, Generation, Message, Sampling, chat
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.synthesis import grid

STEPS = ("plain", "defensive", "prefill", "few_shot")
_LABEL = re.compile(
    r"^(?:\s*(?:\d+[.)]|[-*•])\s+|\s*(?:\*\*)?(?:user )?request(?:\*\*)?:\s*(?:\*\*)?)+",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "“": "”", "«": "»", "'": "'", "`": "`"}


class Draft(NamedTuple):
    text: str
    finish: str
    step: str  # the step of the ladder that it comes from
    refused: tuple[str, ...]  # the steps at which the generator refused


def climb(engine: Engine, prompts: Sequence[str], sampling: Sampling) -> list[Draft]:
    """One draft per prompt, in order. A step that the engine cannot take is left out."""
    judge = RuleBasedJudge()
    drafts = [Draft("", "stop", STEPS[0], ())] * len(prompts)
    todo = list(range(len(prompts)))
    for number, step in enumerate(STEPS):
        ask = _asks(engine, step) if todo else None
        if ask is None:
            continue
        still = []
        for i, made in zip(
            todo,
            ask([prompts[i] for i in todo], replace(sampling, seed=sampling.seed + number)),
            strict=True,
        ):
            refused = bool(judge.judge(made.text).refused)
            drafts[i] = Draft(
                bare(made.text),
                made.finish,
                step,
                (*drafts[i].refused, step) if refused else drafts[i].refused,
            )
            if refused:
                still.append(i)
        todo = still
    return drafts


def bare(text: str) -> str:
    """A request without the number, label or quotes that models put around it."""
    text = _LABEL.sub("", text.strip()).strip()
    if len(text) > 2 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def _asks(
    engine: Engine, step: str
) -> Callable[[Sequence[str], Sampling], list[Generation]] | None:
    if step == "plain":
        return lambda prompts, sampling: engine.generate([chat(p) for p in prompts], sampling)
    if step == "defensive":
        return lambda prompts, sampling: engine.generate(
            [chat(grid.defensive(p)) for p in prompts], sampling
        )
    if step == "few_shot":
        return lambda prompts, sampling: engine.generate(
            [_with_examples(p) for p in prompts], sampling
        )
    return _prefilled(engine)


def _with_examples(prompt: str) -> Chat:
    turns = [
        Message(role, text)
        for pair in grid.examples()
        for role, text in zip(("user", "assistant"), pair)
    ]
    return (*turns, Message("user", prompt))


def _prefilled(engine: Engine) -> Callable[[Sequence[str], Sampling], list[Generation]] | None:
    """An engine over token ids can go on from the beginning of an answer; one behind a chat endpoint cannot."""
    if not hasattr(engine, "generate_ids"):
        return None

    def ask(prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        from policyalign_assets.engine.chat import content_ids, render

        begun = content_ids(engine.tokenizer, grid.prefill())
        return engine.generate_ids(
            [render(engine.tokenizer, chat(grid.defensive(p))) + begun for p in prompts], sampling
        )

    return ask
