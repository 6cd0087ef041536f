"""One of two processes that train with FSDP2 and rollouts from servers: what each holds, and the
losses. Started by test_sharded_training.py with a JSON file of what to do."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from sharded_process import held

from policyalign_assets.distillation.batches import Instruction
from policyalign_assets.distillation.processes import SINGLE_PROCESS, Accelerated, Processes
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.engine.generation.opening import opened_vllm
from policyalign_assets.engine.loading import load_model
from policyalign_assets.settings import DistillationSettings, ModelSettings

SMALL = DistillationSettings(
    steps=3,
    batch_size=4,
    mini_batch_size=4,
    micro_batch_tokens=120,
    max_new_tokens=6,
    lora_rank=4,
    lora_alpha=8,
    teacher="ema",
    top_k=64,
)


def own_memory() -> int:
    """Bytes of this process's memory that are not mapped from files (Linux)."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x)
    return int(line.split()[1]) * 1024


@contextmanager
def watched(peak: dict[str, int]):
    """Notes the largest `own_memory` while active."""
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak["memory"] = max(peak.get("memory", 0), own_memory())
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def trained(folder: Path, model: ModelSettings, requests: list[str], processes: Processes) -> dict:
    """Losses, and the most bytes of base weights that this process held in its layers at once."""
    peak = {"held": 0, "memory": 0}
    before = own_memory()
    with watched(peak):
        loaded = load_model(model)
        whole = held(loaded.model)
        layers = loaded.model.model.layers
        layer = whole // len(layers)

        def look(*_) -> None:
            peak["held"] = max(peak["held"], held(loaded.model))

        for each in layers:
            each.mlp.register_forward_pre_hook(look)  # while the layer computes
        with opened_vllm(model) as engine:
            _, table = distill(
                ["Never say anything about numbers."],
                [Instruction(r) for r in requests],
                loaded,
                SMALL,
                folder,
                16_384,
                processes=processes,
                vllm=engine,
            )
    return {
        "losses": table["loss"].to_pylist(),
        "mismatch": table["engine_mismatch"].to_pylist(),
        "whole": whole,
        "layer": layer,
        "held": peak["held"],
        "grown": peak["memory"] - before,
    }


def main(file: Path) -> None:
    given = json.loads(file.read_text())
    torch.set_num_threads(1)
    process = Accelerated(cpu=True) if given["processes"] > 1 else SINGLE_PROCESS

    def never(model):
        raise AssertionError("the whole model is gathered")

    process.gathered = never  # type: ignore[method-assign]
    model = ModelSettings.model_validate(given["model"])
    found = trained(file.parent / "work", model, given["requests"], process)
    (file.parent / f"found-{process.index}.json").write_text(json.dumps(found))
    if process.count > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
