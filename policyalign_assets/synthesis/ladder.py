"""Asks a generator for drafts, and asks again in other ways where it refuses.

The steps are the plain prompt, a defensive framing, a prefilled answer, and worked examples. A
draft that the generator still refuses at the last step stays refused; nothing takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from policyalign_assets.engine.base import (
    Chat,
    Engine,
    Generation,
    Message,
    Sampling,
    TokenEngine,
    chat,
)
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.synthesis import grid

STEPS = ("plain", "defensive", "prefill", "few_shot")
_LABEL = re.compile(
    r"^(?:\s*(?:\d+[.)]|[-*•])\s+|\s*(?:\*\*)?(?:user )?request(?:\*\*)?:\s*(?:\*\*)?)+",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "“": "”", "«": "»", "'": "'", "`": "`"}

Ask = Callable[[Sequence[str], Sampling], list[Generation]]


class Draft(NamedTuple):
    """`step`: the step of the ladder that wrote it; None where no ladder is used."""

    text: str
    finish: str
    step: str | None
    refused: tuple[str, ...]  # the steps at which the generator refused


def draft_with_ladder(engine: Engine, prompts: Sequence[str], sampling: Sampling) -> list[Draft]:
    """One draft per prompt, in order. A step that the engine does not support is skipped."""
    judge = RuleBasedJudge()
    drafts = [Draft("", "stop", STEPS[0], ())] * len(prompts)
    todo = list(range(len(prompts)))
    for number, step in enumerate(STEPS):
        ask = _asking(engine, step) if todo else None
        if ask is None:
            continue
        seeded = replace(sampling, seed=sampling.seed + number)
        refused_again = []
        for i, generation in zip(todo, ask([prompts[i] for i in todo], seeded), strict=True):
            declined = generation.finish == "declined"  # the provider refused without words
            refused = declined or bool(judge.judge(generation.text).refused)
            steps = (*drafts[i].refused, step) if refused else drafts[i].refused
            drafts[i] = Draft(without_label(generation.text), generation.finish, step, steps)
            if refused:
                refused_again.append(i)
        todo = refused_again
    return drafts


def without_label(text: str) -> str:
    """A request without the number, label or quotation marks that models put around it."""
    text = _LABEL.sub("", text.strip()).strip()
    if len(text) > 2 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def _asking(engine: Engine, step: str) -> Ask | None:
    """How `engine` is asked at `step`; None where it cannot be."""
    if step == "prefill":
        return _prefilled(engine)
    as_chat: dict[str, Callable[[str], Chat]] = {
        "plain": chat,
        "defensive": lambda prompt: chat(grid.defensive(prompt)),
        "few_shot": _with_examples,
    }
    return lambda prompts, sampling: engine.generate(
        [as_chat[step](prompt) for prompt in prompts], sampling
    )


def _with_examples(prompt: str) -> Chat:
    turns = [
        message
        for request, reply in grid.examples()
        for message in (Message("user", request), Message("assistant", reply))
    ]
    return (*turns, Message("user", prompt))


def _prefilled(engine: Engine) -> Ask | None:
    """An engine over token ids can continue a started answer; a chat endpoint cannot."""
    if not hasattr(engine, "generate_ids"):
        return None
    token_engine = cast(TokenEngine, engine)

    def ask(prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        from policyalign_assets.engine.chat import content_ids, render

        tokenizer = token_engine.tokenizer
        start = content_ids(tokenizer, grid.prefill())
        return token_engine.generate_ids(
            [render(tokenizer, chat(grid.defensive(p))) + start for p in prompts], sampling
        )

    return ask
