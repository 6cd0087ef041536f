"""Generation at any OpenAI-compatible endpoint: bounded concurrency, retries, then a clear failure.

The client retries time-outs, lost connections, 408, 409, 429 and 5xx with growing random pauses (and as long as the server
asks for). What is still missing then, or is no chat completion, ends the whole call: a generation is never made up, and never
empty unless the model's own answer is. The API key is read when the engine is made and goes nowhere but into the request.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from policyalign_assets.engine.base import Chat, Generation, Progress, Sampling
from policyalign_assets.settings import GeneratorSettings, SettingsError

FILTERED = "I cannot help with that."  # what a provider that refuses without words is taken to say; refusals are asked again or dropped
REPLIES = 2  # how often a reply that is no chat completion is asked for


class EndpointDown(ConnectionError):
    """The endpoint cannot be reached, or has no time; the same call may succeed later."""


class EndpointRefuses(ValueError):
    """The endpoint does not take the request as it is, or does not speak the protocol."""


class EndpointEngine:
    """An `Engine` without token ids: generations carry their text only. Raises SettingsError where the API key is missing."""

    def __init__(self, settings: GeneratorSettings):
        variable = settings.api_key_variable
        if variable and not os.environ.get(variable):
            raise SettingsError(
                f"generator.api_key_variable names {variable}, which is not set. Mend: set it, or unset the setting."
            )
        self.settings, self._key = settings, os.environ[variable] if variable else "none"
        self.model_id, self.revision = settings.model, settings.revision or "not stated"

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generation]:
        """Raises EndpointDown or EndpointRefuses if any generation cannot be had."""
        with ThreadPoolExecutor(
            1
        ) as thread:  # a loop of its own, so that this also works inside a notebook's
            return thread.submit(asyncio.run, self._all(chats, sampling, progress)).result()

    async def _all(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None
    ) -> list[Generation]:
        from openai import AsyncOpenAI

        free, done = asyncio.Semaphore(self.settings.concurrency), 0

        async def one(n: int, chat: Chat) -> Generation:
            nonlocal done
            async with free:
                made = await self._one(client, chat, sampling, n)
            done += 1
            if progress:
                progress(done, len(chats))
            return made

        async with AsyncOpenAI(
            base_url=self.settings.base_url,
            api_key=self._key,
            timeout=self.settings.timeout,
            max_retries=self.settings.retries,
        ) as client:
            tasks = [asyncio.create_task(one(n, chat)) for n, chat in enumerate(chats)]
            try:
                return list(await asyncio.gather(*tasks))
            finally:  # the first failure ends the others
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, client, chat: Chat, sampling: Sampling, n: int) -> Generation:
        import openai

        where = f"the generator {self.model_id!r}"
        for _ in range(REPLIES):
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
                    f"{where} {what}, after {self.settings.retries + 1} attempts. Mend: check generator.base_url and the "
                    "server, or raise generator.timeout; rules that are done are kept."
                ) from None
            except openai.APIStatusError as error:
                passing = error.status_code in (408, 409, 429) or error.status_code >= 500
                raise (EndpointDown if passing else EndpointRefuses)(
                    f"{where} answers with HTTP {error.status_code}. Mend: "
                    + (
                        "try again later, or lower generator.concurrency; rules that are "
                        "done are kept."
                        if passing
                        else "check generator.base_url, generator.model and generator.api_key_variable."
                    )
                ) from None
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, IndexError):
                continue
        raise EndpointRefuses(
            f"{where} does not reply with a chat completion. Mend: generator.base_url must name an OpenAI-compatible "
            "endpoint, mostly one that ends in /v1."
        )


def _read(choice) -> Generation:
    """Raises ValueError where the choice holds no text and no refusal."""
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
    """Another seed for each place of a call: the same prompt may be asked several times, and must not give the same draft."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{n}".encode()).digest()[:4], "big") >> 1
