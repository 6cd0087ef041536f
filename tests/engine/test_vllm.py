"""The real vLLM engine on the bundled model: `make test-vllm`. Skipped without vLLM."""

import shutil

import pytest
import torch
from helpers import REQUESTS, medical_policy, one_thread

pytest.importorskip("vllm")


from policyalign_assets.distillation.adapters import add_adapters, save_student, student_parameters
from policyalign_assets.distillation.batches import Instruction
from policyalign_assets.distillation.rollouts import FLOOR, StaleWeights, VllmRollouts
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.engine.base import Generation, PromptTooLong, Sampling, chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.forward.modules import ModelForward
from policyalign_assets.engine.forward.scoring import response_logits
from policyalign_assets.engine.generation.opening import opened_vllm
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.settings import DistillationSettings, ModelSettings

pytestmark = pytest.mark.served

GREEDY = Sampling(40)
VLLM = ModelSettings(engine="vllm")
SMALL = DistillationSettings(
    steps=8,
    batch_size=4,
    mini_batch_size=4,
    save_every=100,
    max_new_tokens=24,
    lora_rank=4,
    lora_alpha=8,
)
CHATS = [chat(r) for r in REQUESTS] + [chat(r, medical_policy().prompt_text) for r in REQUESTS]


@pytest.fixture(autouse=True, scope="module")
def quick():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def server():
    with opened_vllm(VLLM, lora_rank=4) as engine:
        yield engine


@pytest.fixture()
def engine(server):
    server.use_adapter(None)
    return server


@pytest.fixture()
def loaded():
    return load_model(ModelSettings())


def student(seed: int, moved: float = 0.02, settings=SMALL):
    """The bundled model with an adapter that has moved."""
    loaded = load_model(ModelSettings())
    model = add_adapters(loaded.model, settings).eval()
    move(model, seed, moved)
    return LoadedModel(model, loaded.tokenizer, loaded.model_id, loaded.revision)


def move(model, seed: int, by: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in student_parameters(model).values():
            p.add_(by * torch.randn(p.shape, generator=rng))


def serve(engine, loaded) -> None:
    engine.use_adapter(lambda folder: save_student(loaded.model, folder))


def answers(engine, chats=CHATS, sampling=GREEDY) -> list[Generation]:
    return engine.generate(chats, sampling)


def prompts(loaded, requests=REQUESTS):
    return [render(loaded.tokenizer, chat(r)) for r in requests]


# ---- the same answers as transformers ------------------------------------------------------------


def test_greedy_answers_are_those_of_transformers(engine, loaded):
    ours = answers(TransformersEngine(loaded, 16_384))
    assert answers(engine) == ours  # text, tokens with the end token, and how each ended
    assert {g.finish for g in ours} == {"stop"} and len({g.text for g in ours}) > 10
    short = Sampling(3)
    assert answers(engine, sampling=short) == answers(
        TransformersEngine(loaded, 16_384), sampling=short
    )
    assert (engine.model_id, engine.revision, engine.context, engine.end_ids) == (
        "bundled",
        loaded.revision,
        loaded.context,
        loaded.end_ids,
    )


def test_greedy_answers_with_an_adapter_are_those_of_transformers_and_a_swap_changes_them(
    engine, loaded
):
    base = answers(engine)
    one, two = student(1), student(2)
    given = []
    for aligned in (one, two):
        serve(engine, aligned)
        given.append(answers(engine))
        assert given[-1] == answers(TransformersEngine(aligned, 16_384))
    engine.use_adapter(None)
    assert answers(engine) == base
    assert given[0] != given[1] and base not in given


def test_log_probabilities_are_those_of_the_model_at_temperature_one_whatever_the_sampling(
    engine, loaded
):
    aligned = student(3)
    serve(engine, aligned)
    asked = prompts(loaded)
    made, log_probs = engine.with_log_probs(asked, Sampling(24, 0.7, 5))
    logits = response_logits(ModelForward(aligned.model), asked, [g.token_ids for g in made])
    ours = logits.log_softmax(-1).gather(
        -1, torch.tensor([t for g in made for t in g.token_ids])[:, None]
    )[:, 0]
    torch.testing.assert_close(
        torch.tensor([p for row in log_probs for p in row]), ours.detach(), atol=2e-3, rtol=0
    )


def test_a_row_is_sampled_alike_in_any_batch_and_its_seed_decides(engine, loaded):
    asked, sampling = prompts(loaded), Sampling(24, 1.0, 5)
    together = engine.generate_ids(asked, sampling)
    assert engine.generate_ids(asked, sampling) == together
    assert engine.generate_ids(asked[3:5], sampling, rows=[3, 4]) == together[3:5]
    assert engine.generate_ids([asked[7]], sampling, rows=[7]) == [together[7]]
    assert engine.generate_ids(asked, Sampling(24, 1.0, 6)) != together
    assert len({g.token_ids for g in engine.generate_ids([asked[0]] * 8, sampling)}) > 1


def test_nothing_asked_gives_nothing_and_progress_is_told(engine):
    seen = []
    assert engine.generate([], Sampling(4)) == []
    engine.generate(CHATS[:3], Sampling(4), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)


def test_a_prompt_that_does_not_fit_is_refused_before_any_work(engine, monkeypatch):
    monkeypatch.setattr(engine, "_llm", None)
    with pytest.raises(PromptTooLong, match="never truncated"):
        engine.generate_ids([[5, 6], [7] * engine.context], Sampling(1))


# ---- training ------------------------------------------------------------------------------------


def train(tmp_path, engine, settings=SMALL, report=lambda _: None):
    asked = [Instruction(r) for r in REQUESTS[::4][:4]]
    return distill(
        [medical_policy().prompt_text],
        asked,
        load_model(ModelSettings()),
        settings,
        tmp_path / "work",
        16_384,
        report,
        vllm=engine,
    )


def test_rollouts_by_vllm_train_as_well_as_the_trainers_own(engine, tmp_path):
    settings = SMALL.model_copy(update={"steps": 12})
    lines = []
    _, table = train(tmp_path / "vllm", engine, settings, lines.append)
    _, own = train(tmp_path / "own", None, settings)
    for losses in (table["loss"].to_pylist(), own["loss"].to_pylist()):
        assert len(losses) == 12 and sum(losses[-3:]) < 0.5 * sum(losses[:3])
    assert max(table["engine_mismatch"].to_pylist()) < FLOOR[torch.float32]
    assert set(own["engine_mismatch"].to_pylist()) == {None}
    assert "on the base model" in lines[0]


def test_a_training_that_stops_and_continues_ends_where_an_undisturbed_one_does(engine, tmp_path):
    settings = SMALL.model_copy(update={"save_every": 2, "steps": 4})
    _, whole = train(tmp_path / "whole", engine, settings)

    def stop(line: str) -> None:
        if line.startswith("step 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", engine, settings, stop)
    _, again = train(tmp_path / "cut", engine, settings)
    assert again["loss"].to_pylist() == whole["loss"].to_pylist()


@pytest.mark.parametrize(
    "served", ["the first adapter for ever", "the adapter before", "the base model"]
)
def test_the_canary_stops_a_training_that_is_answered_by_other_weights(
    engine, tmp_path, monkeypatch, served
):
    swap, handed_over = engine.use_adapter, []

    def stale(write, version="adapter"):
        if write is None or served == "the base model":
            return swap(None)
        copy = tmp_path / str(len(handed_over))
        copy.mkdir()
        write(copy)
        handed_over.append(copy)
        old = (
            handed_over[0]
            if served == "the first adapter for ever"
            else handed_over[max(0, len(handed_over) - 2)]
        )
        return swap(lambda folder: shutil.copytree(old, folder, dirs_exist_ok=True), version)

    monkeypatch.setattr(engine, "use_adapter", stale)
    lines = []
    with pytest.raises(StaleWeights, match="older adapter or none"):
        train(tmp_path, engine, report=lines.append)
    assert (
        sum(line.startswith("step ") for line in lines) == 1
    )  # at the first step at which the weights are not the same


def test_the_canary_refuses_another_base_model(engine, loaded):
    other = add_adapters(loaded.model, SMALL).eval()
    with torch.no_grad():
        other.get_base_model().lm_head.weight.mul_(
            0.3
        )  # their first words are so sure that nothing less shows
    with pytest.raises(StaleWeights, match="not compute the same model"):
        VllmRollouts(engine, other).generate_ids(prompts(loaded), Sampling(8, 1.0))
