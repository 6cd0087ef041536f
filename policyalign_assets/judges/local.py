"""A judge in this process: any guard or instruct model, through the engine that answers too.

The model is opened when verdicts are asked for and freed afterwards, so the judged model and the
judge need not fit into memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from policyalign_assets.engine.base import (
    Chat,
    Engine,
    Generation,
    Message,
    PromptTooLong,
    Sampling,
)
from policyalign_assets.judges.replies import read_reply, signed, unasked
from policyalign_assets.judges.tasks import Messages, Task, Unreadable
from policyalign_assets.judges.verdict import Dialogue, Verdict
from policyalign_assets.settings import JudgeSettings, ModelSettings

TOO_LONG = "the dialogue does not fit into the judge's context"
NO_TEMPLATE = "the judge's chat template does not take the request"

OpenEngine = Callable[[], AbstractContextManager[Engine]]


class LocalModel:
    """The judge's weights: opened for each use, or once for many uses inside `held`."""

    def __init__(self, open_engine: OpenEngine) -> None:
        self._open = open_engine
        self._engine: Engine | None = None

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        if self._engine is not None:
            yield self._engine
            return
        with self._open() as engine:
            yield engine

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the model open, for callers that judge in many small steps."""
        with self._open() as engine:
            self._engine = engine
            try:
                yield
            finally:
                self._engine = None


class EngineJudge:
    """A `Judge` over an `Engine`. A reply that is no verdict leaves its case unscored.

    The model's own errors (it cannot be loaded, it holds NaN) are raised by `judge_all`.
    """

    def __init__(
        self,
        task: Task,
        settings: JudgeSettings,
        model: LocalModel,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.task, self.settings, self.model, self.report = task, settings, model, report
        name = settings.model or ""
        self.id = f"{task.name}/{Path(name).name if Path(name).is_dir() else name}"
        self.revision: str | None = settings.revision
        self.template: str | None = task.template

    def judge_all(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        """One verdict per dialogue, in order."""
        verdicts = [unasked(d) or Verdict(reason=TOO_LONG) for d in dialogues]
        todo = [i for i, d in enumerate(dialogues) if unasked(d) is None]
        if todo:
            with self.model.engine() as engine:
                self.revision = engine.revision
                chats = [_chat(self.task.messages(dialogues[i])) for i in todo]
                sampling = Sampling(self.settings.max_tokens, self.settings.temperature)
                for i, made in zip(todo, _generate(engine, chats, sampling), strict=True):
                    verdicts[i] = self._read(made)
        return signed(verdicts, self.id, self.revision, self.template, self.report)

    def _read(self, made: Generation | str) -> Verdict:
        if isinstance(made, str):
            return Verdict(reason=made)
        try:
            return read_reply(self.task, made.text, cut=made.finish == "length")
        except Unreadable as error:
            return Verdict(reason=str(error))


def _generate(engine: Engine, chats: Sequence[Chat], sampling: Sampling) -> list[Generation | str]:
    """A reply per chat, or the reason why there is none. An engine refuses a whole call for one
    chat that it cannot take, before any work; halves find that chat."""
    from jinja2.exceptions import TemplateError

    from policyalign_assets.engine.chat import NoChatTemplate

    try:
        return list(engine.generate(chats, sampling))
    except PromptTooLong:
        fault = TOO_LONG
    except (TemplateError, NoChatTemplate):
        fault = NO_TEMPLATE
    if len(chats) == 1:
        return [fault]
    middle = len(chats) // 2
    return [
        *_generate(engine, chats[:middle], sampling),
        *_generate(engine, chats[middle:], sampling),
    ]


def _chat(messages: Messages) -> Chat:
    return tuple(Message(m["role"], m["content"]) for m in messages)  # type: ignore[arg-type]


def local_model(settings: JudgeSettings) -> LocalModel:
    """The model that the settings name, on the transformers engine."""

    @contextmanager
    def opened_judge() -> Iterator[Engine]:
        from policyalign_assets.engine.generation.opening import opened

        model = ModelSettings.model_validate(
            {
                "id": settings.model,
                "revision": settings.revision,
                "dtype": settings.dtype,
                "device": settings.device,
                "batch_tokens": settings.batch_tokens,
            }
        )
        with opened(model) as engine:
            yield engine

    return LocalModel(opened_judge)
