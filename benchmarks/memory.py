"""What training with FSDP2 and rollouts by servers needs, by part: a formula, and a measurement.

    python benchmarks/memory.py             # the table of docs/deploy.md
    python benchmarks/memory.py --measure   # one small shape on two CPU processes, and the formula

The formula counts what a process holds on its device: its part of the layers' weights, the layers
that are gathered while one computes, what every process holds whole, the adapter with its gradients
and Adam's moments, activations and logits. A server's part is its weights and key-value cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GB = 1e9
# The layer that computes, the one that is fetched ahead, and the buffer in which it arrives.
GATHERED = 3
LOGITS = 1 << 25  # elements of one side at a time on a GPU (distillation/loss.py)


@dataclass(frozen=True)
class Shape:
    """A model of Llama's shape."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    @property
    def kv_width(self) -> int:
        return self.width // self.heads * self.kv_heads

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each linear layer of one layer."""
        d, kv, i = self.width, self.kv_width, self.inner
        return [(d, d), (d, kv), (d, kv), (d, d), (d, i), (d, i), (i, d)]

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return sum(a * b for a, b in self.linears) + 2 * self.width

    @property
    def whole(self) -> int:
        """Parameters that every process holds: embedding, head, last norm."""
        return self.vocabulary * self.width * (1 if self.tied else 2) + self.width

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.whole

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on all linear layers."""
        return self.layers * sum(rank * (a + b) for a, b in self.linears)


@dataclass(frozen=True)
class Training:
    processes: int
    rank: int = 32
    tokens: int = 16_384  # distillation.micro_batch_tokens
    weight_bytes: int = 2  # bfloat16
    ema: bool = True
    tensor_parallel: int = 1
    cached_tokens: int = 64 * 2_048  # key-value cache: rows at a time, and tokens of each


def weights_of_a_process(shape: Shape, how: Training, gathered: int = GATHERED) -> dict[str, float]:
    """Bytes of base weights on the device of one process."""
    layer = shape.layer * how.weight_bytes
    other = (how.processes - 1) / how.processes
    return {
        "part": shape.layers * layer / how.processes,
        "gathered": gathered * layer * other,
        "whole": shape.whole * how.weight_bytes,
    }


def adapter_of_a_process(shape: Shape, how: Training) -> float:
    """Bytes of the adapter in float32, its gradients and their sum, Adam's moments, the EMA."""
    copies = 1 + 2 + 2 + (1 if how.ema else 0)
    return 4.0 * copies * shape.adapter(how.rank)


def activations_of_a_process(shape: Shape, how: Training) -> float:
    """Bytes with gradient checkpointing: each layer's input, and the insides of one layer."""
    inputs = shape.layers * shape.width
    insides = 8 * shape.width + 4 * shape.inner + 7 * 3 * how.rank
    return float(how.tokens * (inputs + insides) * how.weight_bytes) + 6.0 * LOGITS * 4


def server(shape: Shape, how: Training) -> tuple[float, float]:
    """Bytes of weights and of the key-value cache on each of a server's GPUs."""
    cache = 2 * shape.layers * shape.kv_width * how.weight_bytes * how.cached_tokens
    return (
        shape.parameters * how.weight_bytes / how.tensor_parallel,
        cache / min(how.tensor_parallel, shape.kv_heads),
    )


LLAMA_3B = Shape(28, 3072, 8192, 24, 8, 128_256, tied=True)
LLAMA_8B = Shape(32, 4096, 14_336, 32, 8, 128_256)
LLAMA_70B = Shape(80, 8192, 28_672, 64, 8, 128_256)
ROWS = [
    ("3B", LLAMA_3B, Training(1)),
    ("8B", LLAMA_8B, Training(1)),
    ("8B", LLAMA_8B, Training(4)),
    ("70B", LLAMA_70B, Training(8, tokens=4_096, tensor_parallel=8)),
    ("70B", LLAMA_70B, Training(8, tokens=16_384, tensor_parallel=4)),
]


def table() -> str:
    head = (
        "| model | processes | tokens | weights | whole + gathered | adapter | activations, logits "
        "| trainer's GPU | server: GPUs | its weights | its cache | server's GPU |"
    )
    lines = [head, "|" + " --- |" * (head.count("|") - 1)]
    for name, shape, how in ROWS:
        weights = weights_of_a_process(shape, how, GATHERED if how.processes > 1 else 0)
        adapter = adapter_of_a_process(shape, how)
        activations = activations_of_a_process(shape, how)
        total = sum(weights.values()) + adapter + activations
        theirs, cache = server(shape, how)
        figures = [
            weights["part"],
            weights["whole"] + weights["gathered"],
            adapter,
            activations,
            total,
        ]
        cells = [name, str(how.processes), f"{how.tokens:,}", *(f"{f / GB:.1f}" for f in figures)]
        cells += [str(how.tensor_parallel), *(f"{f / GB:.1f}" for f in (theirs, cache))]
        lines.append("| " + " | ".join([*cells, f"{(theirs + cache) / GB:.1f}"]) + " |")
    return "\n".join(lines)


# ---- one small shape, measured -------------------------------------------------------------------

SMALL = Shape(layers=16, width=512, inner=1536, heads=8, kv_heads=4, vocabulary=2048)
SMALL_RANK, PROCESSES = 8, 2


def make_model(folder: Path) -> None:
    """A random model of the shape SMALL, with the bundled tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS

    config = LlamaConfig(
        vocab_size=SMALL.vocabulary,
        hidden_size=SMALL.width,
        intermediate_size=SMALL.inner,
        num_hidden_layers=SMALL.layers,
        num_attention_heads=SMALL.heads,
        num_key_value_heads=SMALL.kv_heads,
    )
    model = LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == SMALL.parameters
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(BUNDLED_WEIGHTS)).save_pretrained(folder)


def one_process(folder: Path) -> None:
    """Measures what one of the processes holds, and writes it into the folder."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    from sharded_process import held
    from sharded_training import own_memory, watched
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from policyalign_assets.distillation.processes import Accelerated
    from policyalign_assets.distillation.tuning import tuning_of
    from policyalign_assets.engine.loading import load_model
    from policyalign_assets.settings import DistillationSettings, ModelSettings

    process = Accelerated(cpu=True)
    torch.set_num_threads(1)
    # What libraries hold is none of the model's.
    load_model(ModelSettings(device="cpu"))
    fully_shard(torch.nn.Linear(8, 8), mesh=init_device_mesh("cpu", (process.count,)))
    settings = DistillationSettings(lora_rank=SMALL_RANK, teacher="ema")
    found, peak = {}, {"memory": 0}
    before = own_memory()
    loaded = load_model(ModelSettings(id=str(folder / "model"), device="cpu"))
    found["mapped, before it is sharded"] = own_memory() - before
    with watched(peak):
        tuning = tuning_of(loaded.model, settings)
        found["mapped, with two adapters"] = own_memory() - before
        model = process.shard(tuning.model)
    found["sharded, with two adapters"] = own_memory() - before
    found["most while it was sharded"] = peak["memory"] - before
    most = {"held": 0}

    def look(*_: object) -> None:
        most["held"] = max(most["held"], held(model))

    for layer in model.get_base_model().model.layers:
        layer.mlp.register_forward_pre_hook(look)
    optimizer = torch.optim.AdamW(tuning.trained().values())
    rows = torch.arange(5, 69)[None]
    for _ in range(2):
        model.get_base_model().model(input_ids=rows).last_hidden_state.square().mean().backward()
        process.sum_gradients(tuning.trained().values())
        optimizer.step()
        optimizer.zero_grad()
    found["layers' weights held while one computes"] = most["held"]
    (folder / f"found-{process.index}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def measure() -> None:
    import yaml

    from policyalign_assets.runtime.accelerated import launch_config
    from policyalign_assets.settings import load_settings

    options = {
        "processes": PROCESSES,
        "accelerate_config": str(ROOT / "deploy" / "accelerate" / "fsdp2.yaml"),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        settings = load_settings(
            overrides={"distillation": options, "model": {"device": "cpu"}}, environ={}
        )
        config = folder / "accelerate.yaml"
        config.write_text(yaml.safe_dump(launch_config(settings)))
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
        subprocess.run(
            [sys.executable, *launch, __file__, "--one-process", name],
            env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
            check=True,
        )
        found = [json.loads(f.read_text()) for f in sorted(folder.glob("found-*.json"))]
    how = Training(PROCESSES, rank=SMALL_RANK, weight_bytes=4)
    # A CPU fetches no layer ahead and needs no buffer; what is whole stays mapped from its file.
    weights = weights_of_a_process(SMALL, how, gathered=1)
    adapters = 2 * 4 * SMALL.adapter(SMALL_RANK)
    predicted = {
        "mapped, before it is sharded": 0.0,
        "mapped, with two adapters": float(adapters),
        "sharded, with two adapters": weights["part"] + adapters,
        "most while it was sharded": weights["part"] + adapters,
        "layers' weights held while one computes": weights["part"] + weights["gathered"],
    }
    total = 4 * SMALL.parameters
    print(f"The whole model has {total / 1e6:.1f} MB.\n")
    print(
        "| MB of a process | formula | measured, process 0 | process 1 |\n| --- | --- | --- | --- |"
    )
    for what, value in predicted.items():
        cells = [f"{value / 1e6:.1f}", *(f"{f[what] / 1e6:.1f}" for f in found)]
        print(f"| {what} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure one small shape too")
    parser.add_argument("--one-process", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_process:
        one_process(arguments.one_process)
    elif arguments.measure:
        measure()
    else:
        print(table())


if __name__ == "__main__":
    main()
