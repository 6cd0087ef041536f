"""The interface of every generation engine, and the values that pass through it.

Synthesis, scoring, rollouts and evaluation depend on this module alone, never on a particular
engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Role = Literal["system", "user", "assistant"]
Progress = Callable[[int, int], None]  # called with (finished, total)


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


Chat = tuple[Message, ...]


def chat(user: str, system: str | None = None) -> Chat:
    """A conversation of one user message, after a system message if `system` is given."""
    return (*((Message("system", system),) if system else ()), Message("user", user))


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled. Temperature 0 means greedy decoding.

    A call is repeatable: on one engine, each prompt's answer depends only on the prompt, the seed
    and the prompt's place in the call, up to rounding.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Generation:
    """One sampled answer.

    `token_ids` holds the sampled tokens, including the end token if the model produced one.
    `text` is decoded without the end token. `finish` is "declined" where a provider refused
    without a word; the text is then empty.
    """

    text: str
    token_ids: tuple[int, ...]
    finish: Literal["stop", "length", "declined"]


class Engine(Protocol):
    """Anything that answers chats."""

    model_id: str
    revision: str

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generation]:
        """Returns one generation per chat, in order.

        Raises `PromptTooLong`, before any work, if a prompt and its response do not fit.
        """
        ...


class TokenEngine(Engine, Protocol):
    """An engine that also accepts rendered prompts.

    `device` is "cpu" or "cuda"; `tokenizer` is the one that renders the prompts.
    """

    tokenizer: Any
    device: str

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Generation]:
        """Like `generate`, but from token ids.

        `rows` gives each prompt's row number in a larger batch. The row number selects the random
        numbers, so an answer does not depend on how the larger batch is split.
        """
        ...


@runtime_checkable
class GuessingEngine(TokenEngine, Protocol):
    """An engine that answers faster where an answer can be guessed.

    `guesses` are texts, such as the answers before an edit, and empty where there is none. Each is
    compared with what the model gives in one forward pass. Right guesses save time, and wrong ones
    cost some; either way, answers are those without guesses, up to rounding.
    """

    takes_guesses: bool

    def generate(
        self,
        chats: Sequence[Chat],
        sampling: Sampling,
        progress: Progress | None = None,
        guesses: Sequence[str] = (),
    ) -> list[Generation]: ...

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
        guesses: Sequence[str] = (),
    ) -> list[Generation]: ...


class AdapterEngine(TokenEngine, Protocol):
    """An engine with weights of its own, which answers with the base model or an adapter on it.

    `replicas` is the number of copies of these weights. Rows 0 … replicas - 1 ask all of them.
    """

    replicas: int

    def use_adapter(self, write: Callable[[Path], object] | None, version: str = "adapter") -> None:
        """Answers from now on with the PEFT adapter that `write` saves into the given folder.

        With None, answers with the base model.
        """
        ...

    def with_log_probs(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> tuple[list[Generation], list[list[float]]]:
        """Like `generate_ids`, with the sampled tokens' log-probabilities at temperature 1."""
        ...


class PromptTooLong(ValueError):
    """A prompt plus its response budget exceeds the model's context.

    A policy is never truncated: it has to be shortened instead.
    """


class EngineUnavailable(RuntimeError):
    """The configured engine cannot run here. The message gives the reason and the fix."""


class NotFinite(RuntimeError):
    """The model's logits contain NaN: its weights are broken, so nothing can be sampled."""
