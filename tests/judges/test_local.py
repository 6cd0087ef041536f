"""A judge in this process: opened when it is asked, freed afterwards, never safe by accident."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from policyalign_assets.engine.base import Chat, Generation, PromptTooLong, Sampling
from policyalign_assets.judges.choose import (
    described,
    judge_of,
    make_correctness_judge,
    make_judge,
    probe,
)
from policyalign_assets.judges.local import TOO_LONG, EngineJudge, LocalModel
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.judges.tasks import Qwen3Guard, StrongRejectRubric
from policyalign_assets.judges.verdict import Dialogue
from policyalign_assets.policy import parse_policy
from policyalign_assets.settings import BUNDLED, JudgeSettings, SettingsError, load_settings

POLICY = parse_policy(Path(__file__).parents[2] / "policies", "general-conduct", "medical")
SETTINGS = JudgeSettings(kind="strongreject", engine="local", model="a/judge", max_tokens=64)
HARM = '{"refused": 0, "convincing": 5, "specific": 5}'


class Scripted:
    """An engine that replies from a function of the last message."""

    model_id, revision = "a/judge", "r3"

    def __init__(self, reply) -> None:
        self.reply, self.calls, self.open = reply, 0, 0

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress=None
    ) -> list[Generation]:
        self.calls += 1
        assert self.open == 1 and sampling.temperature == 0
        if any("LONG" in chat[-1].content for chat in chats):
            raise PromptTooLong("too long")
        return [self.reply(chat[-1].content) for chat in chats]

    @contextmanager
    def opened(self) -> Iterator[Scripted]:
        self.open += 1
        yield self
        self.open -= 1


def said(text: str, finish="stop") -> Generation:
    return Generation(text, (), finish)


def judge(engine: Scripted, task=None, report=lambda _: None) -> EngineJudge:
    return EngineJudge(task or StrongRejectRubric(), SETTINGS, LocalModel(engine.opened), report)


def test_verdicts_in_order_with_the_judges_name_and_revision() -> None:
    engine = Scripted(lambda text: said(HARM if "number 1" in text else HARM.replace("0", "1", 1)))
    made = judge(engine).judge_all([Dialogue("q", f"number {i}") for i in range(3)])
    assert [v.harm for v in made] == [0, 1, 0] and engine.calls == 1 and engine.open == 0
    assert {(v.judge, v.revision) for v in made} == {("strongreject/a/judge", "r3")}
    assert all(v.template == StrongRejectRubric.template for v in made)


def test_what_the_judge_cannot_take_or_say_is_unscored_with_a_reason() -> None:
    replies = {
        "gibberish": said("plan plan plan"),
        "cut": said(HARM, "length"),
        "thinks": said("<think>hm"),
        "declines": said("I'm sorry, I can't assess that."),
        "fine": said(HARM),
    }
    engine = Scripted(lambda text: next(r for name, r in replies.items() if name in text))
    reports: list[str] = []
    names = ["gibberish", "LONG", "cut", "thinks", "", "declines", "fine"]
    made = judge(engine, report=reports.append).judge_all([Dialogue("q", n) for n in names])
    assert [v.reason for v in made] == [
        "the reply is no JSON object",
        TOO_LONG,
        "the judge's reply was cut off at judge.max_tokens",
        "the judge's reasoning never ends",
        "empty response",
        "the judge declined to judge",
        None,
    ]
    assert all(v.safe is v.refused is v.harm is None for v in made[:-1])
    assert "6 of 7 answers unscored" in reports[0]


def test_no_answer_to_judge_opens_no_model() -> None:
    engine = Scripted(lambda text: said(HARM))
    judge(engine).judge_all([Dialogue("q", " ")])
    assert engine.calls == 0


def test_a_held_model_serves_many_calls() -> None:
    engine = Scripted(lambda text: said(HARM))
    model = LocalModel(engine.opened)
    first, second = (
        EngineJudge(t, SETTINGS, model) for t in (StrongRejectRubric(), StrongRejectRubric())
    )
    with model.held():
        assert engine.open == 1
        for each in (first, second):
            assert each.judge_all([Dialogue("q", "a")])[0].harm == 1
            assert engine.open == 1
    assert engine.open == 0


def test_the_guard_sees_the_dialogue_as_a_dialogue() -> None:
    seen: list[Chat] = []

    class Watching(Scripted):
        def generate(self, chats, sampling, progress=None):
            seen.extend(chats)
            return [said("Safety: Unsafe\nCategories: Violent\nRefusal: No") for _ in chats]

    engine = Watching(None)
    (verdict,) = judge(engine, Qwen3Guard(True)).judge_all([Dialogue("how?", "so <|im_end|>")])
    assert (verdict.safe, verdict.label) == (False, "Unsafe")
    assert [(m.role, m.content) for m in seen[0]] == [
        ("user", "how?"),
        ("assistant", "so < |im_end|>"),
    ]


@pytest.mark.parametrize("kind", ["qwen3guard", "policy", "strongreject"])
def test_a_model_that_is_no_judge_never_says_safe(kind: str) -> None:
    """The bundled model answers anything with a plan: no verdict, and a reason for each case."""
    settings = JudgeSettings(kind=kind, engine="local", model=BUNDLED, max_tokens=16)
    made = make_judge(settings, BUNDLED, POLICY)
    verdicts = made.judge_all([Dialogue("How?", "Start with a short plan."), Dialogue("How?", "")])
    assert all(v.reason and v.safe is v.refused is v.harm is None for v in verdicts)
    assert verdicts[0].revision and verdicts[0].judge.endswith(f"/{BUNDLED}")
    assert kind in described(made) and probe(made)


def test_a_local_judge_of_correctness() -> None:
    assert isinstance(make_correctness_judge(SETTINGS), EngineJudge)
    assert make_correctness_judge(JudgeSettings()) is None
    assert isinstance(judge_of(StrongRejectRubric(), SETTINGS), EngineJudge)


def test_a_probe_tells_whether_the_judge_can_judge() -> None:
    assert probe(RuleBasedJudge()) is None
    assert probe(judge(Scripted(lambda text: said(HARM)))) is None
    assert probe(judge(Scripted(lambda text: said("plan")))) == "the reply is no JSON object"


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ({"kind": "policy", "engine": "local"}, "judge.model"),
        ({"kind": "rules", "engine": "local"}, "kind=rules"),
        (
            {"kind": "policy", "engine": "local", "model": "m", "base_url": "http://h/v1"},
            "asks no endpoint",
        ),
        ({"kind": "policy", "model": "m"}, "base_url"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(section: dict, names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        load_settings(overrides={"judge": section})
