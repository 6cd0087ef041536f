"""Answers of many rows by several servers: saved in parts, the same whatever served them."""

import math

import pyarrow as pa
import pytest
from fake_vllm import FakeVllm, Weights, fake_replicas, fake_vllm, settings_of
from helpers import REQUESTS, medical_policy, one_thread

from policyalign_assets.doctor.examine import examine
from policyalign_assets.engine.base import NotFinite
from policyalign_assets.engine.generation import replicas
from policyalign_assets.engine.generation.opening import opened, opened_servers
from policyalign_assets.engine.generation.replicas import ServersDown
from policyalign_assets.engine.generation.server_requests import ServerRefuses
from policyalign_assets.files import location
from policyalign_assets.sensitivity.partial_scores import PartialScores
from policyalign_assets.sensitivity.score import score_instructions
from policyalign_assets.sensitivity.served import estimated, score_by_servers
from policyalign_assets.settings import SensitivitySettings, SettingsError, load_settings
from policyalign_assets.stages import sensitivity_scores
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.tables import INSTRUCTIONS

POLICY = medical_policy()
SETTINGS = SensitivitySettings(max_new_tokens=8, temperature=1.0)
FIGURES = ["reverse_kl", "reverse_kl_p90", "forward_kl", "js", "jeffreys"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(replicas, "FIRST_PAUSE", 0.05)
    with one_thread():
        yield


@pytest.fixture(scope="module")
def weights():
    return Weights()


def table(texts) -> pa.Table:
    row = {f.name: "x" if pa.types.is_string(f.type) else None for f in INSTRUCTIONS}
    rows = [row | {"instruction_id": f"i{n}", "text": t} for n, t in enumerate(texts)]
    return pa.Table.from_pylist(rows, schema=INSTRUCTIONS)


def score(weights, servers, folder=None, progress=None) -> pa.Table:
    with opened(settings_of(*servers), weights.loaded) as engine:
        return score_instructions(
            POLICY,
            table(REQUESTS[:10]),
            weights.loaded,
            engine,
            SETTINGS,
            16_384,
            progress,
            PartialScores(folder, rows=4),
        )


def test_scores_do_not_depend_on_the_servers_and_go_on_after_the_last_part(weights, tmp_path):
    with fake_replicas(weights, 1) as servers:
        whole = score(weights, servers)
    done = []
    with fake_replicas(weights, 3) as servers:

        def die(rows: int, _: int) -> None:
            done.append(rows)
            for server in servers[: 1 if rows == 4 else 3]:  # one after a part, then all
                server.stop()

        with pytest.raises(ServersDown, match="parts are kept"):
            score(weights, servers, tmp_path, die)
    assert done == [4, 8] and len(list(tmp_path.glob("*.arrow"))) == 2
    with fake_replicas(weights, 2) as servers:
        again = score(weights, servers, tmp_path, lambda rows, _: done.append(rows))
        assert [len(server.asked) for server in servers] == [2, 2]  # of both sides of rows 8 and 9
    assert done == [4, 8, 10]
    texts = ["student_response", "teacher_response"]
    assert again.select(texts) == whole.select(texts)
    for name in ("reverse_kl", "forward_kl"):
        assert again[name].to_pylist() == pytest.approx(whole[name].to_pylist(), abs=1e-5)


# ---- no weights in this process -----------------------------------------------------------------


def by_servers(servers, top: int, folder=None, progress=None, rows: int = 10) -> pa.Table:
    with opened_servers(settings_of(*servers, weights="servers")) as engine:
        return score_by_servers(
            POLICY,
            table(REQUESTS[:rows]),
            engine,
            SETTINGS.model_copy(update={"top_logprobs": top}),
            progress,
            PartialScores(folder, rows=4),
        )


@pytest.mark.slow
def test_servers_that_list_every_token_give_the_scores_of_the_weights(weights, monkeypatch):
    monkeypatch.setattr(replicas, "MAX_REPLY", 1 << 30)
    vocabulary = weights.loaded.model.config.vocab_size
    with fake_replicas(weights, 2) as servers:
        exact = score(weights, servers)
        listed = by_servers(servers, vocabulary, rows=1)
        guessed = by_servers(servers, 20)
    assert listed.drop(FIGURES).equals(exact.slice(0, 1).drop(FIGURES))
    assert guessed.drop(FIGURES).equals(exact.drop(FIGURES))
    for name in FIGURES:
        true = exact[name].to_pylist()
        assert listed[name].to_pylist() == pytest.approx(true[:1], abs=1e-3)
        assert guessed[name].to_pylist() == pytest.approx(true, rel=0.1, abs=0.02)


def test_scores_by_servers_go_on_after_the_last_part(weights, tmp_path):
    done = []
    with fake_replicas(weights, 3) as servers:
        whole = by_servers(servers, 20)

        def die(rows: int, _: int) -> None:
            done.append(rows)
            for server in servers[: 1 if rows == 4 else 3]:
                server.stop()

        with pytest.raises(ServersDown, match="parts are kept"):
            by_servers(servers, 20, tmp_path, die)
    assert done == [4, 8]
    with fake_replicas(weights, 1) as servers:
        again = by_servers(servers, 20, tmp_path)
        assert len(servers[0].asked) == 8  # two rows: each side writes one and reads one
    assert again.drop(FIGURES).equals(whole.drop(FIGURES))
    for name in FIGURES:
        assert again[name].to_pylist() == pytest.approx(whole[name].to_pylist(), abs=1e-5)


def test_a_token_that_one_side_does_not_list_still_counts():
    """The true distributions over four tokens; each side lists its two likeliest ones."""
    student, teacher = [0.9, 0.06, 0.03, 0.01], [0.01, 0.03, 0.06, 0.9]

    def listed(p: list[float], top: int) -> list[dict[int, float]]:
        best = sorted(range(4), key=lambda i: -p[i])[:top]
        return [{i: math.log(p[i]) for i in best}]

    exact = estimated(listed(student, 4), listed(teacher, 4), 4)
    true = sum(p * math.log(p / q) for p, q in zip(student, teacher, strict=True))
    assert exact.reverse_M.item() == pytest.approx(true, abs=1e-4)
    guess = estimated(listed(student, 2), listed(teacher, 2), 2)
    assert 0.5 * true < guess.reverse_M.item() < true
    assert 0 < guess.js_M.item() <= exact.js_M.item() < math.log(2)
    same = estimated(listed(student, 2), listed(student, 2), 2)
    assert same.reverse_M.item() == pytest.approx(0, abs=1e-9)
    assert estimated([], [], 2) is None
    # The response's own token is very unlikely for the teacher. That bounds no other token.
    own = [listed(teacher, 2)[0] | {9: math.log(1e-12)}]
    wider = estimated([listed(student, 2)[0] | {9: math.log(1e-6)}], own, 2)
    assert wider.reverse_M.item() == pytest.approx(guess.reverse_M.item(), rel=0.05)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda c: c.pop("prompt_logprobs"), ServerRefuses, "log-probabilities of a prompt"),
        (lambda c: c["prompt_logprobs"].pop(), ServerRefuses, "log-probabilities of a prompt"),
        (lambda c: c["prompt_logprobs"][-1].clear(), ServerRefuses, "of a prompt"),
        (lambda c: c["prompt_logprobs"][-1].popitem(), ServerRefuses, "of a prompt"),
        (lambda c: c["prompt_token_ids"].reverse(), ServerRefuses, "other tokens"),
        (lambda c: _spoil(c["prompt_logprobs"][-1]), NotFinite, "not numbers"),
    ],
)
def test_a_reply_without_the_right_log_probabilities_is_refused(weights, change, error, says):
    server = FakeVllm(weights)

    def fault(path, request):
        if not request.get("prompt_logprobs"):
            return None
        status, reply = server._complete(request)
        reply["choices"][0]["prompt_token_ids"] = list(request["prompt"])
        change(reply["choices"][0])
        return status, reply

    server.fault = fault
    with fake_vllm(server), pytest.raises(error, match=says):
        by_servers([server], 5)


def _spoil(of_token: dict) -> None:
    for entry in of_token.values():
        entry["logprob"] = None


def test_the_stages_but_training_load_no_weights(weights, tmp_path, monkeypatch):
    from policyalign_assets.engine import loading

    def refuse(*_, **__):
        pytest.fail("weights were loaded")

    with fake_replicas(weights, 2) as servers:
        settings = load_settings(
            "bundled",
            {
                "model": settings_of(*servers, weights="servers").model_dump(),
                "sensitivity": {"max_new_tokens": 16},
            },
            environ={},
        )
        monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", refuse)
        result = examine(settings, POLICY, location(str(tmp_path)))
        assert result.ok, result.errors
        found = {f.check: f for f in result.findings}
        assert found["loading"].level == "not checked"
        assert "read again" in found["served log-probabilities"].detail
        assert found["policy in the prompt"].level == found["LoRA"].level == "ok"
        context = StageContext(settings, location(str(tmp_path)))
        made = sensitivity_scores.make(context, POLICY, table(REQUESTS[:4]))
        assert made.value.num_rows == 4 and min(made.value["reverse_kl"].to_pylist()) >= 0
        assert "estimates" in made.facts["log-probabilities"]
    for server in servers:
        server.stop()


def test_weights_at_servers_need_servers():
    with pytest.raises(SettingsError, match="model.weights='servers' needs servers.*Fix: "):
        load_settings(overrides={"model": {"weights": "servers"}}, environ={})
    plain = load_settings(environ={})
    assert "weights" not in plain.model.shaping()
    assert "top_logprobs" not in plain.sensitivity.shaping()
