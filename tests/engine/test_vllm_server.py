"""The engine that asks `vllm serve` processes, over servers in threads with real weights.

What a real `vllm serve` answers is tested in test_real_vllm_server.py.
"""

import threading
import time

import pytest
import torch
from fake_vllm import DROP, FakeVllm, Weights, completion, fake_replicas, fake_vllm, settings_of
from helpers import REQUESTS, one_thread

from policyalign_assets.distillation.adapters import add_adapters, save_student, student_parameters
from policyalign_assets.doctor.connections import servers_check
from policyalign_assets.engine.base import NotFinite, PromptTooLong, Sampling, chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.generation import adapter_versions, replicas
from policyalign_assets.engine.generation.opening import opened, opened_vllm
from policyalign_assets.engine.generation.replicas import ServersDown
from policyalign_assets.engine.generation.server_requests import ServerRefuses
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.runtime.exchange import problem_of
from policyalign_assets.settings import (
    DistillationSettings,
    ModelSettings,
    Settings,
    SettingsError,
    load_settings,
)
from policyalign_assets.stages.fingerprints import own_version

GREEDY, SAMPLED = Sampling(12), Sampling(12, 1.0, 5)
LORA = DistillationSettings(lora_rank=2, lora_alpha=4)


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_versions, "IN_MEMORY", tmp_path)
    monkeypatch.setattr(replicas, "FIRST_PAUSE", 0.05)
    with one_thread():
        yield


@pytest.fixture(scope="module")
def weights():
    return Weights()


@pytest.fixture()
def two(weights):
    with fake_replicas(weights) as servers:
        yield servers


@pytest.fixture(scope="module")
def prompts(weights):
    return [render(weights.loaded.tokenizer, chat(r)) for r in REQUESTS[:8]]


@pytest.fixture(scope="module")
def students():
    """Two adapters that have moved, with the greedy answers that they give here."""
    made = []
    for seed in (1, 2):
        loaded = load_model(ModelSettings(device="cpu"))
        model = add_adapters(loaded.model, LORA).eval()
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in student_parameters(model).values():
                p.add_(0.05 * torch.randn(p.shape, generator=rng))
        made.append(LoadedModel(model, loaded.tokenizer, loaded.model_id, loaded.revision))
    return made


def hand_over(engine, student) -> None:
    engine.use_adapter(lambda folder: save_student(student.model, folder))


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "distillation", "names"),
    [
        ({"engine": "vllm-server"}, {}, ["model.servers", "http://gpu1:8000", "Fix: "]),
        ({"servers": ["http://localhost:8000"]}, {}, ["model.engine='transformers'", "Fix: "]),
        ({"adapters_dir": "/shared"}, {}, ["model.adapters_dir", "asks no server"]),
        (
            {"engine": "vllm-server", "servers": ["localhost:8000"]},
            {},
            ["model.servers must begin with http://"],
        ),
        (
            {"engine": "vllm-server", "servers": ["http://me:secret@localhost:8000"]},
            {},
            ["model.servers contains credentials", "model.server_key_variable"],
        ),
        (
            {"engine": "vllm-server", "servers": ["http://localhost:8000/v1"]},
            {},
            ["ends in /v1", "leave out"],
        ),
        (
            {"engine": "vllm-server", "servers": ["http://localhost:1", "http://localhost:1/"]},
            {},
            ["names a server twice"],
        ),
        (
            {"engine": "vllm-server", "servers": ["http://gpu1:8000"]},
            {},
            ["another machine", "model.adapters_dir"],
        ),
        (
            {
                "engine": "vllm-server",
                "servers": ["http://gpu1:8000"],
                "adapters_dir": "adapters",
            },
            {},
            ["'adapters'", "no absolute path"],
        ),
        (
            {"engine": "vllm-server", "servers": ["http://localhost:8000"]},
            {"lora_rank": 513},
            ["'vllm-server'", "512", "lora_rank=513"],
        ),
        (
            {"engine": "vllm-server", "servers": ["http://localhost:8000"]},
            {"tuning": "full"},
            ["tuning='full'", "'vllm-server'"],
        ),
    ],
)
def test_servers_that_cannot_work_are_refused_in_plain_words(model, distillation, names):
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides={"model": model, "distillation": distillation}, environ={})
    said = str(caught.value)
    assert [n for n in names if n not in said] == [] and "secret" not in said


def test_servers_come_from_the_environment_and_shape_no_data_while_their_engine_does():
    environ = {
        "POLICYALIGN_MODEL__ENGINE": "vllm-server",
        "POLICYALIGN_MODEL__SERVERS": "http://localhost:8000/, http://localhost:8001",
        "POLICYALIGN_DISTILLATION__PROCESSES": "2",  # which the engine `vllm` cannot serve
    }
    two = load_settings(environ=environ)
    assert two.model.servers == ("http://localhost:8000", "http://localhost:8001")
    one = load_settings(environ=environ | {"POLICYALIGN_MODEL__SERVERS": "http://127.0.0.1:9"})
    versions = [own_version("violating_instructions", s) for s in (one, two)]
    assert versions[0] == versions[1]
    assert own_version("violating_instructions", load_settings(environ={})) not in versions


def test_a_host_that_is_not_allowed_is_refused_before_anything_is_sent(monkeypatch):
    monkeypatch.setenv("POLICYALIGN_ENDPOINT_HOSTS", "*.models.example")
    with (
        pytest.raises(SettingsError, match=r"model.servers names the host '127\.0\.0\.1'.*Fix"),
        opened(settings_of("http://127.0.0.1:9")),
    ):
        pass


# ---- answers -------------------------------------------------------------------------------------


def test_answers_are_those_of_the_model_in_order_from_all_servers(two, weights, prompts):
    seen = []
    with opened(settings_of(*two)) as engine:
        made = engine.generate_ids(prompts, GREEDY, lambda done, total: seen.append((done, total)))
        assert engine.generate([], GREEDY) == []
        assert engine.generate([chat(REQUESTS[0])], GREEDY) == made[:1]
        assert (engine.model_id, engine.revision) == ("bundled", weights.loaded.revision)
    assert made == TransformersEngine(weights.loaded, 4_096).generate_ids(prompts, GREEDY)
    assert seen == [(n, 8) for n in range(1, 9)]
    assert [server.answered for server in two] == [5, 4]  # rows 0, 2, 4, 6 and the single one


def test_samples_depend_on_seed_and_row_and_on_nothing_else(two, prompts):
    with opened_vllm(settings_of(*two)) as engine:
        made, log_probs = engine.with_log_probs(prompts, SAMPLED)
        part = engine.with_log_probs(prompts[3:5], SAMPLED, rows=[3, 4])
        assert part == (made[3:5], log_probs[3:5])
        assert engine.generate_ids(prompts, Sampling(12, 1.0, 6)) != made
    with opened_vllm(settings_of(two[1], server_concurrency=1)) as engine:
        assert engine.with_log_probs(prompts, SAMPLED) == (made, log_probs)
    # what the server's own defaults would shape is said with every request
    request = two[0].asked[0]
    shaping = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert shaping.items() <= request.items() and len({r["seed"] for r in two[1].asked}) > 8


def test_what_does_not_fit_the_servers_is_refused_before_it_is_sent(weights, prompts):
    with fake_vllm(FakeVllm(weights, context=40)) as small, opened(settings_of(small)) as engine:
        assert engine.context == 40
        with pytest.raises(PromptTooLong, match="never truncated"):
            engine.generate_ids([prompts[0], [5] * 39], Sampling(2))
        assert small.asked == []


def test_no_more_rows_than_the_setting_says_are_at_a_server_at_once(weights, prompts):
    lock, at_once, most = threading.Lock(), 0, 0

    def slow(path, request):
        nonlocal at_once, most
        if path == "/v1/completions":
            with lock:
                at_once += 1
                most = max(most, at_once)
            time.sleep(0.02)
            with lock:
                at_once -= 1

    with (
        fake_vllm(FakeVllm(weights, fault=slow)) as server,
        opened(settings_of(server, server_concurrency=3)) as engine,
    ):
        engine.generate_ids(prompts, Sampling(1))
    assert most == 3


# ---- adapters ------------------------------------------------------------------------------------


def test_an_adapter_has_a_name_with_its_hash_and_the_one_before_is_unloaded(
    two, prompts, students, tmp_path
):
    expected = [TransformersEngine(s, 4_096).generate_ids(prompts, GREEDY) for s in students]
    assert expected[0] != expected[1]
    with opened_vllm(settings_of(*two)) as engine:
        base = engine.generate_ids(prompts, GREEDY)
        for student, answers in zip(students, expected, strict=True):
            hand_over(engine, student)
            assert engine.generate_ids(prompts, GREEDY) == answers
            assert engine.revision == engine._base_revision + "+adapter"
            assert [len(server.adapters) for server in two] == [1, 1]
        hand_over(engine, students[1])  # the same again
        assert engine.generate_ids(prompts, GREEDY) == expected[1]
        engine.use_adapter(None)
        assert engine.generate_ids(prompts, GREEDY) == base
    assert two[0].ever == two[1].ever
    names = list(dict.fromkeys(two[0].ever))
    assert len(names) == 2 and all(name.startswith("policyalign-") for name in names)
    assert [server.adapters for server in two] == [{}, {}] and list(tmp_path.iterdir()) == []


def test_the_adapter_of_a_killed_process_is_taken_from_the_servers(two, students, tmp_path):
    gone = tmp_path / f"{adapter_versions._PREFIX}killed" / "7"
    for name, path in (("policyalign-dead-1", gone), ("policyalign-other-1", "/elsewhere/7")):
        two[0].adapters[name] = str(path)
    with opened_vllm(settings_of(*two)) as engine:
        hand_over(engine, students[0])
        assert "policyalign-dead-1" not in two[0].adapters
        assert "policyalign-other-1" in two[0].adapters  # of a machine whose files are not seen


def test_in_a_shared_folder_the_files_of_other_machines_are_left_alone(
    two, students, tmp_path, monkeypatch
):
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(adapter_versions.platform, "node", lambda: "other.host")
    theirs = adapter_versions.AdapterVersions(shared)
    theirs.close()
    theirs.folder.mkdir()  # without a lock that could be seen from here
    monkeypatch.undo()
    with opened_vllm(settings_of(*two, adapters_dir=str(shared))) as engine:
        hand_over(engine, students[0])
        (path,) = two[0].adapters.values()
        assert path.startswith(str(shared))
    assert list(shared.iterdir()) == [theirs.folder]


def test_a_server_that_loads_no_adapters_is_named_with_the_fix(weights, students):
    with (
        fake_vllm(FakeVllm(weights, runtime_lora=False)) as server,
        opened_vllm(settings_of(server)) as engine,
        pytest.raises(ServerRefuses, match=r"127.*Fix: .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
    ):
        hand_over(engine, students[0])


def test_a_server_that_cannot_read_the_adapter_is_named_with_its_words(weights, students):
    def blind(path, request):
        if path == "/v1/load_lora_adapter":
            return 500, {"error": {"message": "LoRA rank 64 is greater than max_lora_rank 16."}}

    with (
        fake_vllm(FakeVllm(weights, fault=blind)) as server,
        opened_vllm(settings_of(server)) as engine,
        pytest.raises(ServerRefuses, match=r"max_lora_rank 16.*Fix: .*--max-lora-rank"),
    ):
        hand_over(engine, students[0])


def test_a_server_that_is_drained_while_adapters_are_loaded_is_left_out(two, prompts, students):
    def drained(path, request):
        return (503, {}) if path == "/v1/load_lora_adapter" else None

    with opened_vllm(settings_of(*two)) as engine:
        two[0].fault = drained
        hand_over(engine, students[0])
        assert len(engine.generate_ids(prompts, GREEDY)) == 8
    assert (two[0].answered, two[1].answered) == (0, 8)


# ---- servers that go away ------------------------------------------------------------------------


def test_the_rows_of_a_server_that_is_killed_in_the_middle_go_to_the_others(
    two, prompts, students, caplog
):
    with opened_vllm(settings_of(*two)) as engine:
        hand_over(engine, students[0])
        whole = engine.with_log_probs(prompts, SAMPLED)
        begun = len(two[0].asked)

        def killed(path, request):
            if path == "/v1/completions" and len(two[0].asked) > begun + 1:
                two[0].stop()

        two[0].fault = killed
        assert engine.with_log_probs(prompts, SAMPLED) == whole
        assert two[0].dead and f"the server {two[0].address} cannot be reached" in caplog.text
        hand_over(engine, students[1])  # the others go on without it
        assert engine.generate_ids(prompts, GREEDY) == TransformersEngine(
            students[1], 4_096
        ).generate_ids(prompts, GREEDY)


def test_a_drained_server_gets_no_rows_until_it_is_healthy_and_then_the_adapter_first(
    two, prompts, students, caplog
):
    draining = True

    def drained(path, request):
        return (503, {"error": "draining"}) if draining else None

    with opened_vllm(settings_of(*two)) as engine:
        hand_over(engine, students[0])
        whole = engine.generate_ids(prompts, GREEDY)
        two[0].fault, two[0].asked = drained, []
        two[0].adapters.clear()  # it is started again
        before = two[1].answered
        assert engine.generate_ids(prompts, GREEDY) == whole
        assert two[1].answered == before + 8 and 1 <= len(two[0].asked) <= 4
        draining = False
        time.sleep(0.2)  # longer than its pause
        answered = two[0].answered
        assert engine.generate_ids(prompts, GREEDY) == whole
        assert two[0].answered == answered + 4 and list(two[0].adapters) == list(two[1].adapters)
    assert "answers with HTTP 503" in caplog.text and "is back" in caplog.text


def test_lost_and_late_answers_are_asked_for_again(two, prompts):
    faults = {0: DROP, 1: (502, b"<html>bad gateway</html>"), 2: "late", 3: "stopped"}

    def trouble(path, request):
        if path != "/v1/completions":
            return None
        found = faults.pop(len(faults) - 1, None) if faults else None
        if found == "late":
            time.sleep(0.8)
            return None
        if found == "stopped":
            reply = completion(request, [5], [-1.0])
            reply["choices"][0]["finish_reason"] = "abort"
            return 200, reply
        return found

    with opened(settings_of(*two, server_timeout=0.5, server_patience=10)) as engine:
        whole = engine.generate_ids(prompts, GREEDY)
        two[0].fault = trouble
        for _ in range(4):
            time.sleep(0.1)
            assert engine.generate_ids(prompts, GREEDY) == whole
    assert faults == {}


def test_when_no_server_is_left_one_error_names_each_and_the_fix(two, prompts):
    with opened(settings_of(*two)) as engine:
        engine.generate_ids(prompts[:2], GREEDY)
        for server in two:
            server.stop()
        begun = time.monotonic()
        with pytest.raises(ServersDown) as caught:
            engine.generate_ids(prompts, GREEDY)
        assert 0.3 <= time.monotonic() - begun < 5
        said = str(caught.value)
        assert all(f"{server.address} cannot be reached" in said for server in two)
        assert "Fix: start the servers" in said and problem_of(caught.value).may_pass
    with (
        pytest.raises(ServersDown, match="none of model.servers answers"),
        opened(settings_of(*two)),
    ):
        pass


def test_a_server_that_is_down_at_first_does_not_keep_the_others_from_working(two, prompts, caplog):
    two[1].stop()
    with opened(settings_of(*two)) as engine:
        assert len(engine.generate_ids(prompts, GREEDY)) == 8
        lines = engine.describe_servers()
    assert "vLLM 0.32.0, context of 2,048" in lines[0] and "cannot be reached" in lines[1]


# ---- servers that are others than they should be -------------------------------------------------


def test_another_model_is_refused_by_name(weights):
    with (
        fake_vllm(FakeVllm(weights, served="llama-3")) as server,
        pytest.raises(ServerRefuses, match=r"serves llama-3.*--served-model-name bundled"),
        opened(settings_of(server)),
    ):
        pass


def _without(field):
    def fault(path, request):
        if path == "/v1/completions":
            reply = completion(request, [5, 1], [-1.0, -1.0])
            del reply["choices"][0][field]
            return 200, reply

    return fault


def _with(tokens, log_probs, **choice):
    def fault(path, request):
        if path == "/v1/completions":
            reply = completion(request, tokens, log_probs)
            reply["choices"][0] |= choice
            return 200, reply

    return fault


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (_without("token_ids"), ServerRefuses, r"token ids.*Fix: .*vllm 0.32"),
        (_without("logprobs"), ServerRefuses, "log-probabilities"),
        (_with([5, 1], [-1.0]), ServerRefuses, "log-probabilities"),
        (_with([5, 1], [-1.0, -1.0], prompt_token_ids=[0, 5]), ServerRefuses, "other tokens"),
        (_with([5, 6], [-1.0, -1.0], finish_reason="stop"), ServerRefuses, "--generation-config"),
        (_with([5, 6], [-1.0, -1.0]), ServerRefuses, "broke off an answer"),
        (_with([5, 1], [-1.0, None]), NotFinite, "not numbers"),
        (_with([5, 1], [-1.0, float("nan")]), NotFinite, "not numbers"),
        (lambda p, r: (500, b"Out of range float values are not JSON compliant"), NotFinite, "not"),
        (lambda p, r: (200, b"[" * 100), ServerRefuses, "does not reply as"),
        (lambda p, r: (400, {"error": "no such parameter"}), ServerRefuses, "no such parameter"),
    ],
    ids=range(11),
)
def test_a_reply_that_is_not_as_it_should_be_is_refused_and_never_mended(
    weights, fault, error, message
):
    with fake_vllm(FakeVllm(weights)) as server, opened(settings_of(server)) as engine:
        server.fault = fault
        with pytest.raises(error, match=message):
            engine.generate_ids([[5, 6, 7]], GREEDY)


def test_the_key_is_sent_and_appears_in_no_message(weights, monkeypatch):
    monkeypatch.setenv("POLICYALIGN_SERVER_KEY", "quite-a-secret")
    options = {"server_key_variable": "POLICYALIGN_SERVER_KEY"}
    with fake_vllm(FakeVllm(weights, key="quite-a-secret")) as server:
        with opened(settings_of(server, **options)) as engine:
            assert len(engine.generate_ids([[5, 6, 7]], GREEDY)) == 1
        with pytest.raises(ServerRefuses, match="HTTP 401"), opened(settings_of(server)):
            pass
        server.fault = lambda path, request: (403, {"error": "no quite-a-secret here"})
        with pytest.raises(ServerRefuses) as caught, opened(settings_of(server, **options)):
            pass
    assert "quite-a-secret" not in str(caught.value)


# ---- doctor --------------------------------------------------------------------------------------


def test_the_doctor_says_how_the_servers_are(two):
    found = servers_check(Settings(model=settings_of(*two)))
    assert found.level == "ok" and found.detail.count("vLLM 0.32.0") == 2
    two[1].stop()
    some = servers_check(Settings(model=settings_of(*two)))
    assert some.level == "note" and two[1].address in some.detail and some.fix
    two[0].stop()
    none = servers_check(Settings(model=settings_of(*two)))
    assert none.level == "error" and "cannot be reached" in none.detail and "start" in none.fix
