"""A generator behind an endpoint: its requests, and faults that end the run in plain words.

A fault never ends in an empty draft.
"""

import json
import logging

import pytest
from fake_judge import Reply, fake_judge
from helpers import medical_policy

from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.generation.endpoint_engine import (
    EndpointDown,
    EndpointEngine,
    EndpointRefuses,
)
from policyalign_assets.files import location
from policyalign_assets.runtime.exchange import problem_of
from policyalign_assets.runtime.execution import make
from policyalign_assets.settings import GeneratorSettings, SettingsError, load_settings
from policyalign_assets.stages.fingerprints import own_version
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.synthesis.ladder import draft_with_ladder

SAMPLING = Sampling(48, 0.7, 5)
CHATS = [chat(f"request {n}", "a system message") for n in range(6)]


def engine(url: str, **changes) -> EndpointEngine:
    return EndpointEngine(
        GeneratorSettings(
            **{"base_url": url, "model": "writer", "revision": "r3", "timeout": 5, "retries": 0}
            | changes
        )
    )


def echo(messages, _attempt):
    return Reply(f"draft for {messages[-1]['content']}")


@pytest.mark.slow
def test_answers_come_in_order_and_each_place_has_its_own_seed():
    with fake_judge(
        lambda m, a: Reply(echo(m, a).text, seconds=0.05 * (m[-1]["content"] < "request 3"))
    ) as server:
        made = engine(server.url, concurrency=3).generate(CHATS, SAMPLING)
        again = engine(server.url).generate(CHATS[:1], SAMPLING)
    assert [g.text for g in made] == [f"draft for request {n}" for n in range(6)] and again[
        0
    ] == made[0]
    assert {g.finish for g in made} == {"stop"} and server.most_at_once <= 3
    first = next(r for r in server.requests if r["messages"][-1]["content"] == "request 0")
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("writer", 0.7, 48)
    assert [m["role"] for m in first["messages"]] == ["system", "user"]
    seeds = {r["messages"][-1]["content"]: set() for r in server.requests}
    for r in server.requests:
        seeds[r["messages"][-1]["content"]].add(r["seed"])
    assert all(len(s) == 1 for s in seeds.values()) and len(set.union(*seeds.values())) == 6


@pytest.mark.slow
def test_a_fault_that_passes_is_tried_again():
    with fake_judge(
        lambda m, attempt: (
            Reply(status=500 if attempt == 1 else 429) if attempt < 3 else echo(m, attempt)
        )
    ) as server:
        made = engine(server.url, retries=2).generate(CHATS[:2], SAMPLING)
    assert [g.text for g in made] == ["draft for request 0", "draft for request 1"]


FAULTS = {
    "500": (Reply(status=500), EndpointDown, "HTTP 500"),
    "429": (Reply(status=429), EndpointDown, "HTTP 429"),
    "slow": (Reply("late", seconds=0.8), EndpointDown, "no reply in time"),
    "401": (Reply(status=401), EndpointRefuses, "HTTP 401"),
    "404": (Reply(status=404), EndpointRefuses, "HTTP 404"),
    "a page": (
        Reply(body=b"<html>gateway</html>", kind="text/html"),
        EndpointRefuses,
        "chat completion",
    ),
    "half a reply": (Reply(body=b'{"choices": ['), EndpointRefuses, "chat completion"),
    "no choices": (Reply(body=b'{"choices": []}'), EndpointRefuses, "chat completion"),
    "no text": (Reply(None), EndpointRefuses, "chat completion"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_reply_that_stays_missing_ends_the_call_and_says_why(fault):
    reply, error, words = FAULTS[fault]
    with (
        fake_judge(lambda m, a: reply if m[-1]["content"] == "request 4" else echo(m, a)) as server,
        pytest.raises(error) as caught,
    ):
        engine(server.url, timeout=0.4).generate(CHATS, SAMPLING)
    assert (
        words in str(caught.value)
        and "Fix: " in str(caught.value)
        and "'writer'" in str(caught.value)
    )
    assert problem_of(caught.value).may_pass is (
        error is EndpointDown
    )  # then the run is tried once more


def test_nobody_listens():
    with fake_judge(echo) as server:
        pass
    with pytest.raises(EndpointDown, match="cannot be reached"):
        engine(server.url).generate(CHATS, SAMPLING)


@pytest.mark.parametrize(
    ("reply", "text", "finish"),
    [
        (Reply("<think>first I</think>\n the draft "), "the draft", "stop"),
        (Reply("cut of", finish="length"), "cut of", "length"),
        (
            Reply("", finish="stop"),
            "",
            "stop",
        ),  # the model's own words; validation drops and counts it
    ],
)
def test_what_the_model_said_is_kept_as_it_is(reply, text, finish):
    with fake_judge(lambda *_: reply) as server:
        (made,) = engine(server.url).generate(CHATS[:1], SAMPLING)
    assert (made.text, made.finish, made.token_ids) == (text, finish, ())


def test_a_provider_that_refuses_without_words_takes_the_next_step_of_the_ladder():
    def reply(messages, _):
        return (
            Reply("How do I begin?")
            if "authorised safety work" in messages[-1]["content"]
            else Reply(None, finish="content_filter")
        )

    with fake_judge(reply) as server:
        (draft,) = draft_with_ladder(engine(server.url), ["Write one request."], SAMPLING)
    assert (draft.text, draft.step, draft.refused) == ("How do I begin?", "defensive", ("plain",))


def test_the_ladder_leaves_out_the_prefilled_answer():
    with fake_judge(lambda *_: Reply("I cannot help with that.")) as server:
        (draft,) = draft_with_ladder(engine(server.url), ["Write one request."], SAMPLING)
    assert draft.refused == ("plain", "defensive", "few_shot")


def test_the_key_comes_from_the_environment_and_shows_nowhere(monkeypatch, caplog):
    monkeypatch.setenv("POLICYALIGN_WRITER_KEY", "sk-very-secret")
    with (
        caplog.at_level(logging.DEBUG),
        fake_judge(lambda *_: Reply(status=500)) as server,
        pytest.raises(EndpointDown) as caught,
    ):
        engine(server.url, api_key_variable="POLICYALIGN_WRITER_KEY").generate(CHATS[:1], SAMPLING)
    assert (
        server.keys == {"Bearer sk-very-secret"}
        and "sk-very-secret" not in str(caught.value) + caplog.text
    )
    monkeypatch.delenv("POLICYALIGN_WRITER_KEY")
    with pytest.raises(SettingsError, match="POLICYALIGN_WRITER_KEY"):
        engine(server.url, api_key_variable="POLICYALIGN_WRITER_KEY")


GENERATOR = {"base_url": "http://h/v1", "model": "writer"}


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ({"generator": {"base_url": "http://h/v1"}}, "generator.model is not"),
        ({"generator": {"model": "writer"}}, "generator.base_url is not"),
        ({"generator": {**GENERATOR, "base_url": "http://u:hunter2@h/v1"}}, "credentials"),
        ({"generator": {**GENERATOR, "base_url": "h:8000"}}, "http://"),
        (
            {"generator": GENERATOR, "synthesis": {"grid": "reduced"}},
            "made for the bundled model",
        ),
        ({"generator": {**GENERATOR, "api_key_variable": "sk-hunter2-!"}}, "api_key_variable"),
    ],
)
def test_generators_that_cannot_work_are_refused_when_configured(overrides, names):
    with pytest.raises(SettingsError) as caught:
        load_settings("qwen2.5-7b", overrides, environ={})
    assert names in str(caught.value) and "hunter2" not in str(caught.value)


def test_another_generator_redoes_synthesis_and_another_address_does_not():
    def version(**changes):
        return own_version(
            "violating_instructions",
            load_settings("qwen2.5-7b", {"generator": {**GENERATOR, **changes}}, environ={}),
        )

    assert version() == version(base_url="http://other/v1", concurrency=2) != version(model="other")


@pytest.mark.slow
def test_the_stage_asks_the_endpoint_and_loads_no_model(tmp_path):
    """The model of the settings is not on this machine. Finished rules survive a failure."""
    policy = medical_policy()
    broken = [True]

    def reply(messages, _):
        prompt = messages[-1]["content"]
        if broken[0] and policy.rules[1].text in prompt:
            return Reply(status=503)
        rule = next(r for r in policy.rules if r.text in prompt)
        places = ("mill", "farm", "harbour", "office", "school", "shop", "garage", "museum")
        place = places[abs(hash(prompt)) % len(places)]
        subject = (rule.action or rule.text).rstrip(".").lower()
        return Reply(f"My aunt at the old {place} asks me about this: {subject}. How do I do it?")

    with fake_judge(reply) as server:
        settings = load_settings(
            "qwen2.5-7b",
            {
                "generator": {
                    "base_url": server.url,
                    "model": "writer",
                    "revision": "r3",
                    "retries": 0,
                },
                "synthesis": {
                    "per_rule": 3,
                    "rounds": 2,
                    "oversample": 1.0,
                    "rouge_l": 1.0,
                    "near_duplicate": 1.0,
                    "heldout": 0.25,
                },
                "filtering": {"per_rule": 3},
                "firewall": {"own_cases": False},
            },
            environ={},
        )
        work = StageContext(settings, location(str(tmp_path)))
        with pytest.raises(EndpointDown):
            make("violating_instructions", work, {"policy_document": policy})
        broken[0], asked = False, len(server.requests)
        made = make("violating_instructions", work, {"policy_document": policy})
    assert not any(
        policy.rules[0].text in json.dumps(r["messages"]) for r in server.requests[asked:]
    )
    rows = made.value.to_pylist()
    assert {(r["model_id"], r["model_revision"]) for r in rows} == {("writer", "r3")}
    assert {r["rule_id"] for r in rows} == {r.rule_id for r in policy.rules}
