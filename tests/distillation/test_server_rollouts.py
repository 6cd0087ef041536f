"""Training with rollouts from `vllm serve` processes, over servers in threads with real weights."""

import pytest
import torch
from fake_vllm import FakeVllm, Weights, fake_replicas, fake_vllm, settings_of
from helpers import REQUESTS, medical_policy, one_thread

from policyalign_assets.distillation.batches import Instruction
from policyalign_assets.distillation.rollouts import StaleWeights
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.engine.generation import adapter_versions, replicas
from policyalign_assets.engine.generation.opening import opened_vllm
from policyalign_assets.engine.generation.replicas import ServersDown
from policyalign_assets.engine.loading import load_model
from policyalign_assets.settings import DistillationSettings, ModelSettings

SMALL = DistillationSettings(
    steps=4,
    batch_size=4,
    mini_batch_size=4,
    save_every=1,
    max_new_tokens=20,
    lora_rank=2,
    lora_alpha=4,
)


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(adapter_versions, "IN_MEMORY", memory)
    monkeypatch.setattr(replicas, "FIRST_PAUSE", 0.05)
    with one_thread():
        yield


@pytest.fixture(scope="module")
def weights():
    return Weights()


def train(folder, engine, report=lambda _: None, **changed):
    asked = [Instruction(r) for r in REQUESTS[::4][:4]]
    _, table = distill(
        [medical_policy().prompt_text],
        asked,
        load_model(ModelSettings(device="cpu")),
        SMALL.model_copy(update=changed),
        folder,
        16_384,
        report,
        vllm=engine,
    )
    return table


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    """The TRAINING table of a training that one server serves without trouble."""
    with (
        one_thread(),
        fake_vllm(FakeVllm(weights)) as server,
        opened_vllm(settings_of(server)) as engine,
    ):
        return train(tmp_path_factory.mktemp("whole"), engine)


def test_each_step_is_sampled_by_the_student_of_that_step(whole):
    rows = whole.to_pylist()
    assert len({row["loss"] for row in rows}) == SMALL.steps
    assert all(row["engine_mismatch"] < 1e-5 for row in rows)  # nats


def test_servers_that_die_end_the_training_with_one_error_and_it_resumes_to_the_same_result(
    weights, whole, tmp_path
):
    lines = []
    with fake_replicas(weights) as servers:

        def die(line: str) -> None:
            lines.append(line)
            if line.startswith("step 1/"):
                servers[0].stop()  # the other one takes its rows over
            if line.startswith("step 2/"):
                servers[1].stop()

        with opened_vllm(settings_of(*servers)) as engine:
            with pytest.raises(ServersDown, match="Saved steps.*Fix: start the servers") as caught:
                train(tmp_path / "work", engine, die)
            assert servers[0].address in str(caught.value)
    with fake_replicas(weights) as servers:  # at other addresses
        with opened_vllm(settings_of(*servers)) as engine:
            again = train(tmp_path / "work", engine, lines.append)
        assert all(server.answered for server in servers)
    assert "resumed after step 2 from its saved state" in lines
    assert again["loss"].to_pylist() == whole["loss"].to_pylist()


@pytest.mark.parametrize("stale", ["the adapter before", "the base model"])
def test_one_server_of_three_with_other_weights_is_found_at_the_first_step_that_shows_it(
    weights, tmp_path, stale
):
    def other(name: str) -> str | None:
        ever = servers[2].ever
        if stale == "the adapter before":
            return ever[max(0, ever.index(name) - 1)]
        return None

    lines = []
    with fake_replicas(weights, 3) as servers, opened_vllm(settings_of(*servers)) as engine:
        servers[2].stale = other
        with pytest.raises(StaleWeights, match="older adapter or none"):
            train(tmp_path, engine, lines.append)
    assert sum(line.startswith("step ") for line in lines) == 1  # B is zero until then
    noise = [line for line in lines if "differ by" in line]
    assert len(noise) == 1 and noise[0].endswith("nats on the base model")


def test_a_server_with_another_base_model_of_the_same_name_is_found_before_the_first_step(
    weights, tmp_path
):
    other = Weights()
    with torch.no_grad():
        other.loaded.model.lm_head.weight.mul_(0.3)
    lines = []
    with (
        fake_vllm(FakeVllm(weights)) as good,
        fake_vllm(FakeVllm(other)) as wrong,
        opened_vllm(settings_of(good, wrong)) as engine,
        pytest.raises(StaleWeights, match=r"not compute the same model.*raw_logprobs"),
    ):
        train(tmp_path, engine, lines.append)
    assert not any(line.startswith("step ") for line in lines)
