"""FSDP2 with rollouts from servers: no process ever holds the whole model (CPU, gloo)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fake_vllm import Weights, fake_replicas, settings_of
from helpers import REQUESTS
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.runtime.accelerated import launch_config
from policyalign_assets.settings import ModelSettings, load_settings

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LAYERS = 6


@pytest.fixture()
def llama(tmp_path):
    """A folder with a random model of Llama's shape, and the bundled tokenizer."""
    folder = tmp_path / "llama"
    tokenizer = AutoTokenizer.from_pretrained(str(BUNDLED_WEIGHTS))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.1,  # answers that differ
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(BUNDLED_WEIGHTS / "generation_config.json", folder)
    return folder


def train(folder: Path, model: ModelSettings, processes: int) -> list[dict]:
    """What each process found."""
    folder.mkdir()
    todo = folder / "todo.json"
    todo.write_text(
        json.dumps(
            {
                "model": model.model_dump(mode="json"),
                "requests": REQUESTS[:4],
                "processes": processes,
            }
        )
    )
    script = str(ROOT / "tests" / "sharded_training.py")
    command = [sys.executable, script, str(todo)]
    if processes > 1:
        config = folder / "accelerate.yaml"
        settings = load_settings(
            overrides={
                "distillation": {
                    "processes": processes,
                    "accelerate_config": str(ROOT / "deploy" / "accelerate" / "fsdp2.yaml"),
                },
                "model": {"device": "cpu"},
            },
            environ={},
        )
        config.write_text(yaml.safe_dump(launch_config(settings)))
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        command = [*launch, *command[1:]]
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"found-{n}.json").read_text()) for n in range(processes)]


def test_with_servers_no_process_holds_the_whole_model_and_the_losses_are_those_of_one(
    llama, tmp_path
):
    weights = Weights(ModelSettings(id=str(llama), device="cpu"))
    with fake_replicas(weights) as servers:
        for server in servers:
            server.served = str(llama)
        model = settings_of(*servers, id=str(llama), server_patience=60)
        (one,) = train(tmp_path / "one", model, 1)
        many = train(tmp_path / "many", model, 2)
        assert all(server.answered for server in servers)
    assert one["held"] == one["whole"]
    for found in many:
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert max(found["mismatch"]) < 1e-4
        assert found["whole"] == one["whole"]  # before it was sharded
        # its half, and the other half of the layer that computes and of the one fetched ahead
        predicted = one["whole"] / 2 + 2 * one["layer"] / 2
        assert one["whole"] / 2 < found["held"] <= predicted
    assert len(set(one["losses"])) == 3
