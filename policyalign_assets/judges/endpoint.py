"""Asks a judge at any OpenAI-compatible endpoint: bounded concurrency, a time limit, retries, and then *unscored* with a reason.

The client retries time-outs, lost connections, 408, 409, 429 and 5xx with growing random pauses (and as long as the server
asks for); a reply that is no verdict is asked for once more. The API key is read when the judge is made, from the environment
variable that the settings name, and goes nowhere but into the request.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.judges.tasks import Task, Unreadable
from policyalign_assets.judges.verdict import Dialogue, Verdict
from policyalign_assets.settings import JudgeSettings, SettingsError

REPLIES = 2  # how often an unreadable reply is asked for


class EndpointJudge:
    """A `Judge`. Raises SettingsError where the API key is missing."""

    def __init__(
        self, task: Task, settings: JudgeSettings, report: Callable[[str], None] = lambda _: None
    ):
        self.task, self.settings, self.report = task, settings, report
        self.id, self.revision, self.template = (
            f"{task.name}/{settings.model}",
            settings.revision,
            task.template,
        )
        variable = settings.api_key_variable
        if variable and not os.environ.get(variable):
            raise SettingsError(
                f"judge.api_key_variable names {variable}, which is not set. Mend: set it, or unset the setting."
            )
        self._key = os.environ[variable] if variable else "none"

    def judge_all(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        verdicts = _run(self._all(dialogues))
        faults = Counter(v.reason for v in verdicts if not v.scored)
        if faults:
            self.report(
                f"{self.id}: {faults.total()} of {len(verdicts)} answers unscored: {dict(faults)}"
            )
        return [
            replace(v, judge=self.id, revision=self.revision, template=self.template)
            for v in verdicts
        ]

    async def _all(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        from openai import AsyncOpenAI

        free = asyncio.Semaphore(self.settings.concurrency)
        async with AsyncOpenAI(
            base_url=self.settings.base_url,
            api_key=self._key,
            timeout=self.settings.timeout,
            max_retries=self.settings.retries,
        ) as client:
            return await asyncio.gather(*(self._one(client, free, d) for d in dialogues))

    async def _one(self, client, free: asyncio.Semaphore, dialogue: Dialogue) -> Verdict:
        if not dialogue.response.strip():
            return Verdict(reason="empty response")
        async with free:
            try:
                async with asyncio.timeout(self.settings.deadline):
                    for _ in range(REPLIES):
                        try:
                            return self.task.read(await self._reply(client, dialogue))
                        except Unreadable as error:
                            reason = str(error)
                    return Verdict(reason=reason)
            except _Fault as error:
                return Verdict(reason=str(error))
            except TimeoutError:
                return Verdict(reason="the judge gave no reply in time")

    async def _reply(self, client, dialogue: Dialogue) -> str:
        """The text of the judge's reply, without its reasoning. Raises Unreadable or _Fault."""
        import openai

        try:
            completion = await client.chat.completions.create(
                model=self.settings.model,
                messages=self.task.messages(dialogue),
                temperature=0,
                max_tokens=self.settings.max_tokens,
            )
            choice = completion.choices[0]
            text, finish = choice.message.content, choice.finish_reason
        except openai.APITimeoutError:
            raise _Fault("the judge gave no reply in time") from None
        except openai.APIConnectionError:
            raise _Fault("the judge's endpoint cannot be reached") from None
        except openai.APIStatusError as error:
            raise _Fault(f"the judge's endpoint answers with HTTP {error.status_code}") from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, IndexError):
            raise Unreadable("the endpoint's reply is not that of a chat completion") from None
        if finish == "length":
            raise Unreadable("the judge's reply was cut off at judge.max_tokens")
        if not isinstance(text, str) or not text.strip():
            raise Unreadable("the judge's reply is empty")
        text = text.rpartition("</think>")[2]
        if finish == "content_filter" or ("{" not in text and RuleBasedJudge().judge(text).refused):
            raise Unreadable("the judge declined to judge")
        return text


def _run(work: Coroutine[Any, Any, list[Verdict]]) -> list[Verdict]:
    """In this thread, where an interruption ends it at once; inside a notebook's loop, in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


class _Fault(Exception):
    """The endpoint failed, after all retries."""
