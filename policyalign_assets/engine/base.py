"""What every generation engine offers. Synthesis, rollouts and evaluation know this interface and nothing behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Role = Literal["system", "user", "assistant"]
Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


Chat = tuple[Message, ...]


def chat(user: str, system: str | None = None) -> Chat:
    return (*((Message("system", system),) if system else ()), Message("user", user))


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. With `seed` a call is repeatable, and each prompt's answer depends on the prompt and its place in
    the call alone, up to rounding (on the same engine)."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Generation:
    """`token_ids` are the sampled tokens, the end token included when the model produced one; `text` is without it."""

    text: str
    token_ids: tuple[int, ...]
    finish: Literal["stop", "length"]


class Engine(Protocol):
    model_id: str
    revision: str

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generation]:
        """One generation per chat, in order. Raises `PromptTooLong` before any work if a prompt and its response do not fit."""
        ...


class TokenEngine(Engine, Protocol):
    """An engine that takes rendered prompts too. `device`: "cpu" or "cuda"; `tokenizer`: of `render`."""

    tokenizer: Any
    device: str

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Generation]:
        """As `generate`, from token ids. `rows`: which row of a larger batch each prompt is; its random numbers are that row's,
        and the same in any part of the batch."""
        ...


class PromptTooLong(ValueError):
    """A prompt plus its response budget exceeds the model's context. A policy is never truncated: shorten it instead."""


class EngineUnavailable(RuntimeError):
    """The engine that the settings name cannot run here. The message says why, and the mend."""


class NotFinite(RuntimeError):
    """The model's logits hold NaN: its weights are broken, and nothing can be sampled."""
