"""Generation at any OpenAI-compatible endpoint: bounded concurrency, retries, then a clear failure.

What is still missing after all retries, or is no chat completion, ends the whole call: a
generation is never made up, and never empty unless the model's own answer is.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from policyalign_assets.endpoint import (
    NO_COMPLETION,
    Asker,
    Completion,
    Endpoint,
    EndpointDown,
    EndpointRefuses,
    NotACompletion,
)
from policyalign_assets.engine.base import Chat, Generation, Progress, Sampling
from policyalign_assets.settings import GeneratorSettings

REPLIES = 2  # how often a reply that is no chat completion is asked for

__all__ = ["EndpointDown", "EndpointEngine", "EndpointRefuses"]


class EndpointEngine:
    """An `Engine` without token ids: generations carry their text only.

    Raises SettingsError where the API key is missing or the host is not allowed.
    """

    def __init__(self, settings: GeneratorSettings) -> None:
        self.settings = settings
        self.model_id = settings.model or ""
        self.revision = settings.revision or "not stated"
        self._endpoint = Endpoint(settings, "generator", f"the generator {self.model_id!r}")

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generation]:
        """Raises EndpointDown or EndpointRefuses if any generation cannot be had."""
        return self._endpoint.run(lambda asker: self._all(asker, chats, sampling, progress))

    async def _all(
        self, asker: Asker, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None
    ) -> list[Generation]:
        free, done = asyncio.Semaphore(self.settings.concurrency), 0

        async def one(n: int, chat: Chat) -> Generation:
            nonlocal done
            async with free:
                made = await self._one(asker, chat, sampling, n)
            done += 1
            if progress:
                progress(done, len(chats))
            return made

        tasks = [asyncio.create_task(one(n, chat)) for n, chat in enumerate(chats)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:  # the first failure ends the others
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, asker: Asker, chat: Chat, sampling: Sampling, n: int) -> Generation:
        fault = ""
        for _ in range(REPLIES):
            try:
                return _generation(
                    await asker.ask(
                        [{"role": m.role, "content": m.content} for m in chat],
                        sampling.max_new_tokens,
                        sampling.temperature,
                        _seed(sampling.seed, n),
                    )
                )
            except EndpointDown as error:
                raise EndpointDown(
                    f"{error}, after {self.settings.retries + 1} attempts. Fix: check "
                    "generator.base_url and the server, raise generator.timeout, lower "
                    "generator.concurrency, or try again later; rules that are done are kept."
                ) from None
            except EndpointRefuses as error:
                raise EndpointRefuses(
                    f"{error}. Fix: check generator.base_url, generator.model and "
                    "generator.api_key_variable."
                    if "Fix:" not in str(error)
                    else f"{error}."
                ) from None
            except NotACompletion as error:
                fault = str(error)
        raise EndpointRefuses(
            f"the generator {self.model_id!r} does not reply with a chat completion ({fault}). "
            "Fix: generator.base_url must name an OpenAI-compatible endpoint, mostly one that "
            "ends in /v1."
        )


def _generation(made: Completion) -> Generation:
    if made.text is None and not made.declined:
        raise NotACompletion(NO_COMPLETION)
    if not made.text and made.declined:
        return Generation("", (), "declined")
    text = (made.text or "").rpartition("</think>")[2].strip()
    if text.startswith("<think>"):  # the limit came before the answer
        return Generation("", (), "length")
    return Generation(text, (), "length" if made.cut else "stop")


def _seed(seed: int, n: int) -> int:
    """Another seed for each place of a call: the same prompt may be asked several times, and must
    not give the same draft."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{n}".encode()).digest()[:4], "big") >> 1
