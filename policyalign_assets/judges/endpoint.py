"""A judge at an OpenAI-compatible endpoint.

Concurrency, time and size are bounded, requests are tried again, and what fails all the same is
*unscored* with a reason: never safe, never unsafe. A reply that is no verdict is asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from policyalign_assets.endpoint import (
    Asker,
    Endpoint,
    EndpointDown,
    EndpointRefuses,
    NotACompletion,
)
from policyalign_assets.judges.replies import read_reply, signed, unasked
from policyalign_assets.judges.tasks import Task, Unreadable
from policyalign_assets.judges.verdict import Dialogue, Verdict
from policyalign_assets.settings import JudgeSettings

REPLIES = 2  # how often an unreadable reply is asked for
LATE = "the judge gave no reply in time"


class EndpointJudge:
    """A `Judge`. Raises SettingsError where the API key is missing or the host is not allowed."""

    def __init__(
        self, task: Task, settings: JudgeSettings, report: Callable[[str], None] = lambda _: None
    ) -> None:
        self.task, self.settings, self.report = task, settings, report
        self.id = f"{task.name}/{settings.model}"
        self.revision: str | None = settings.revision
        self.template: str | None = task.template
        self._endpoint = Endpoint(settings, "judge", "the judge")

    def judge_all(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        """One verdict per dialogue, in order."""
        verdicts = self._endpoint.run(lambda asker: self._all(asker, dialogues))
        return signed(verdicts, self.id, self.revision, self.template, self.report)

    async def _all(self, asker: Asker, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        free = asyncio.Semaphore(self.settings.concurrency)
        return list(await asyncio.gather(*(self._one(asker, free, d) for d in dialogues)))

    async def _one(self, asker: Asker, free: asyncio.Semaphore, dialogue: Dialogue) -> Verdict:
        if known := unasked(dialogue):
            return known
        async with free:
            try:
                async with asyncio.timeout(self.settings.deadline):
                    return await self._verdict(asker, dialogue)
            except TimeoutError:
                return Verdict(reason=LATE)

    async def _verdict(self, asker: Asker, dialogue: Dialogue) -> Verdict:
        reason = ""
        for _ in range(REPLIES):
            try:
                made = await asker.ask(
                    self.task.messages(dialogue),
                    self.settings.max_tokens,
                    self.settings.temperature,
                )
                return read_reply(self.task, made.text or "", made.cut, made.declined)
            except (Unreadable, NotACompletion) as error:
                reason = str(error)
            except (EndpointDown, EndpointRefuses) as error:
                return Verdict(reason=str(error))
        return Verdict(reason=reason)
