"""Generation at any OpenAI-compatible endpoint: bounded concurrency, retries, then a clear failure.

The client retries time-outs, lost connections and the statuses 408, 409, 429 and 5xx, with growing
random pauses (and for as long as the server asks). If a generation is still missing then, or is no
chat completion, the whole call fails. Generations are never empty unless the model's own answer is.
The API key is read when the engine is made and is sent in requests only.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from policyalign_assets.engine.base import Chat, Generation, Progress, Sampling
from policyalign_assets.settings import GeneratorSettings, SettingsError

# Stands for the answer of a provider that refuses without words. Callers retry or drop refusals.
FILTERED = "I cannot help with that."
ATTEMPTS = 2  # requests before a reply that is no chat completion counts as a failure


class EndpointDown(ConnectionError):
    """The endpoint cannot be reached or is overloaded; the same call may succeed later."""


class EndpointRefuses(ValueError):
    """The endpoint rejects the request, or does not speak the protocol."""


class EndpointEngine:
    """An `Engine` whose generations have text but no token ids.

    Raises SettingsError if the API key is missing.
    """

    def __init__(self, settings: GeneratorSettings):
        variable = settings.api_key_variable
        if variable and not os.environ.get(variable):
            raise SettingsError(
                f"generator.api_key_variable names {variable}, which is not set. Fix: set it, or "
                "unset the setting."
            )
        self.settings, self._key = settings, os.environ[variable] if variable else "none"
        self.model_id, self.revision = settings.model, settings.revision or "not stated"

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generation]:
        """Raises EndpointDown or EndpointRefuses if any generation is missing in the end."""
        # An event loop in its own thread, so that this also works inside a notebook's loop.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._all(chats, sampling, progress)).result()

    async def _all(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None
    ) -> list[Generation]:
        from openai import AsyncOpenAI

        free, done = asyncio.Semaphore(self.settings.concurrency), 0

        async def one(n: int, chat: Chat) -> Generation:
            nonlocal done
            async with free:
                generation = await self._one(client, chat, sampling, n)
            done += 1
            if progress:
                progress(done, len(chats))
            return generation

        async with AsyncOpenAI(
            base_url=self.settings.base_url,
            api_key=self._key,
            timeout=self.settings.timeout,
            max_retries=self.settings.retries,
        ) as client:
            tasks = [asyncio.create_task(one(n, chat)) for n, chat in enumerate(chats)]
            try:
                return list(await asyncio.gather(*tasks))
            finally:  # the first failure cancels the other requests
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, client: Any, chat: Chat, sampling: Sampling, n: int) -> Generation:
        import openai

        where = f"the generator {self.model_id!r}"
        for _ in range(ATTEMPTS):
            try:
                completion = await client.chat.completions.create(
                    model=self.settings.model,
                    messages=[{"role": m.role, "content": m.content} for m in chat],
                    temperature=sampling.temperature,
                    max_tokens=sampling.max_new_tokens,
                    seed=_seed(sampling.seed, n),
                )
                return _read(completion.choices[0])
            except openai.APIConnectionError as error:
                what = (
                    "gave no reply in time"
                    if isinstance(error, openai.APITimeoutError)
                    else "cannot be reached"
                )
                raise EndpointDown(
                    f"{where} {what}, after {self.settings.retries + 1} attempts. Fix: check "
                    "generator.base_url and the server, or raise generator.timeout; finished rules "
                    "are kept."
                ) from None
            except openai.APIStatusError as error:
                passing = error.status_code in (408, 409, 429) or error.status_code >= 500
                raise (EndpointDown if passing else EndpointRefuses)(
                    f"{where} answers with HTTP {error.status_code}. Fix: "
                    + (
                        "try again later, or lower generator.concurrency; finished rules are kept."
                        if passing
                        else "check generator.base_url, generator.model and "
                        "generator.api_key_variable."
                    )
                ) from None
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, IndexError):
                continue
        raise EndpointRefuses(
            f"{where} does not reply with a chat completion. Fix: generator.base_url must name an "
            "OpenAI-compatible endpoint, usually one that ends in /v1."
        )


def _read(choice: Any) -> Generation:
    """Raises ValueError if the choice has neither text nor a refusal."""
    text, refusal = choice.message.content, getattr(choice.message, "refusal", None)
    if choice.finish_reason == "content_filter" or (not text and refusal):
        return Generation(refusal if isinstance(refusal, str) and refusal else FILTERED, (), "stop")
    if not isinstance(text, str):
        raise ValueError("no text")
    return Generation(
        text.rpartition("</think>")[2].strip(),
        (),
        "length" if choice.finish_reason == "length" else "stop",
    )


def _seed(seed: int, n: int) -> int:
    """A different seed for each place in a call.

    The same prompt may occur several times, and must not give the same draft each time.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{n}".encode()).digest()[:4], "big") >> 1
