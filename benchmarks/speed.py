"""Times this project beside TRL, Liger and naive code, on the same model and token counts.

    make bench                                       # CPU, about 5 M parameters
    python benchmarks/speed.py --device cuda --model 7b --dtype bfloat16 --rank 32 \\
        --batch 128 --response 512 --micro-batch-tokens 16384

Prints a Markdown table, and writes it to --out with the figures and a plot. Every figure is the
median of repetitions that take turns; a first round is not counted. TRL and Liger are needed here
only (extra `bench`).
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import losses
import pyarrow as pa
import torch
import workload
from flops import matmul_rate, update_flops
from trl_step import trl_steps

from policyalign_assets.distillation.batches import Instruction
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.engine.base import chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.cpu.memory import keep_freed_memory
from policyalign_assets.engine.forward.scoring import prompt_prefix, response_hidden
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.sensitivity.divergences import token_divergences
from policyalign_assets.sensitivity.score import score_instructions
from policyalign_assets.settings import DistillationSettings, SensitivitySettings
from policyalign_assets.tables import INSTRUCTIONS

MODELS = {  # shapes of Qwen2.5, and of SmolLM2-135M
    "5m": {},
    "135m": {
        "llama": True,
        "vocabulary": 49_152,
        "hidden": 576,
        "layers": 30,
        "heads": 9,
        "key_heads": 3,
        "intermediate": 1_536,
    },
    "0.5b": {
        "vocabulary": 151_936,
        "hidden": 896,
        "layers": 24,
        "heads": 14,
        "key_heads": 2,
        "intermediate": 4_864,
    },
    "3b": {
        "vocabulary": 151_936,
        "hidden": 2_048,
        "layers": 36,
        "heads": 16,
        "key_heads": 2,
        "intermediate": 11_008,
    },
    "7b": {
        "vocabulary": 151_936,
        "hidden": 3_584,
        "layers": 28,
        "heads": 28,
        "key_heads": 4,
        "intermediate": 18_944,
    },
}
BATCH_TOKENS = 262_144


@dataclass(frozen=True)
class Line:
    what: str
    ours: float
    other_name: str
    other: float
    unit: str = "s"

    @property
    def ratio(self) -> float:
        return self.other / self.ours


def main() -> None:
    a = arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(a.threads)
    keep_freed_memory()  # as load_model does; it serves all contenders in this process
    parts: dict[str, Callable[[argparse.Namespace], list[Line]]] = {
        "step": step,
        "teacher": teacher,
        "scoring": scoring,
        "loss": loss,
    }
    lines: list[Line] = []
    for name in a.parts:
        lines += parts[name](a)
        gc.collect()
    device = (
        torch.cuda.get_device_name()
        if a.device == "cuda"
        else f"{platform.machine()} CPU, {a.threads} threads"
    )
    title = (
        f"{device}; shape {a.model}, {a.dtype}; policy {a.policy} tokens, "
        f"prompt {a.prompt}, response {a.response}, batch {a.batch}; "
        f"torch {torch.__version__}; medians of {a.repeats}"
    )
    table = "\n".join(
        [
            f"{title}\n",
            "| what | ours | other | | ratio |",
            "| --- | --- | --- | --- | --- |",
            *(
                f"| {x.what} | {x.ours:.3g} {x.unit} | {x.other:.3g} {x.unit} | {x.other_name} "
                f"| {x.ratio:.2f}x |"
                for x in lines
            ),
        ]
    )
    print(table)
    a.out.mkdir(parents=True, exist_ok=True)
    name = f"speed-{a.device}-{a.model}"
    (a.out / f"{name}.md").write_text(table + "\n")
    (a.out / f"{name}.json").write_text(
        json.dumps(
            {"setup": title, "lines": [asdict(x) | {"ratio": x.ratio} for x in lines]}, indent=1
        )
    )
    plot(lines, a.out / f"{name}.png")


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--model", choices=list(MODELS), default="5m")
    p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    p.add_argument("--policy", type=int, default=400)
    p.add_argument("--prompt", type=int, default=40)
    p.add_argument("--response", type=int, default=64)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--rank", type=int, default=16, help="of LoRA")
    p.add_argument("--steps", type=int, default=4, help="of each training that is timed")
    p.add_argument("--micro-batch-tokens", type=int, help="default: the whole batch at once")
    p.add_argument("--scored", type=int, default=16, help="instructions that are scored")
    p.add_argument("--loss-tokens", type=int, default=1_024)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, in both")
    p.add_argument(
        "--parts",
        nargs="+",
        choices=["step", "teacher", "scoring", "loss"],
        default=["step", "teacher", "scoring", "loss"],
    )
    p.add_argument("--out", type=Path, default=Path("data/speed"))
    a = p.parse_args()
    a.micro_batch_tokens = a.micro_batch_tokens or a.batch * (a.prompt + a.response)
    return a


def model(a: argparse.Namespace) -> LoadedModel:
    return workload.random_model(**MODELS[a.model], dtype=getattr(torch, a.dtype), device=a.device)


def texts(a: argparse.Namespace, n: int) -> tuple[SimpleNamespace, list[str]]:
    """A policy that renders to exactly a.policy tokens, and `n` prompts of a.prompt tokens."""
    policy = SimpleNamespace(prompt_text=workload.text(a.policy - workload.OVERHEAD, 0))
    return policy, [workload.text(a.prompt - workload.OVERHEAD - 1, 1 + i) for i in range(n)]


def step(a: argparse.Namespace) -> list[Line]:
    """Times whole LoRA steps: rollout, teacher, student, update.

    The first step of a training warms up and is not counted.
    """
    policy, prompts = texts(a, a.batch)
    settings = DistillationSettings(
        steps=a.steps,
        batch_size=a.batch,
        mini_batch_size=a.batch,
        forward_weight=0.0,
        top_k=256,
        max_new_tokens=a.response,
        learning_rate=1e-4,
        lr_decay=0.0,
        save_every=1_000,
        lora_rank=a.rank,
        lora_alpha=2 * a.rank,
        gradient_checkpointing=a.checkpointing,
        micro_batch_tokens=a.micro_batch_tokens,
    )
    build = {**MODELS[a.model], "dtype": getattr(torch, a.dtype), "device": a.device}
    ours, trl, lent = [], [], []
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as elsewhere:  # TRL as its users run it
        for _ in range(a.repeats + 1):
            if a.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with tempfile.TemporaryDirectory() as work:
                aligned, history = distill(
                    [policy.prompt_text],
                    [Instruction(p) for p in prompts],
                    model(a),
                    settings,
                    Path(work),
                    BATCH_TOKENS,
                )
            flops, memory = (
                update_flops(aligned.config, a),
                torch.cuda.max_memory_allocated() if a.device == "cuda" else 0,
            )
            del aligned
            assert history["mean_length"].to_pylist() == [a.response] * a.steps
            ours += history.to_pylist()[1:]
            clear(a)
            seconds, trl_memory = elsewhere.submit(
                trl_steps, build, policy.prompt_text, prompts, settings, a.threads
            ).result()
            trl += seconds[1:]
            if a.device == "cpu":
                lent += trl_steps(build, policy.prompt_text, prompts, settings, a.threads)[0][1:]
                clear(a)
    counted = a.steps - 1  # of the first repetition, which warms up too
    ours, trl, lent = ours[counted:], trl[counted:], lent[counted:]
    shares = {
        k: statistics.median(row[f"{k}_seconds"] for row in ours)
        for k in ("rollout", "prefix", "teacher", "student")
    }
    whole = statistics.median(row["seconds"] for row in ours)
    rate, peak = (
        flops / (shares["teacher"] + shares["student"]),
        matmul_rate(build["dtype"], a.device),
    )
    spread = {"ours": [row["seconds"] for row in ours], "TRL": trl, "TRL, our memory": lent}
    print(
        "seconds a step, least to most:",
        {k: f"{min(v):.3g} to {max(v):.3g} (n = {len(v)})" for k, v in spread.items() if v},
    )
    print(
        "our step by phase:",
        {k: round(v, 4) for k, v in shares.items()},
        f"; {a.batch * a.response / whole:,.0f} response tokens/s; "
        f"update {rate / 1e12:.3g} TFLOP/s, {rate / peak:.0%} of a matrix product's "
        f"{peak / 1e12:.3g}",
    )
    lines = [Line("LoRA step", whole, "TRL SDFTTrainer, top-k", statistics.median(trl))]
    if a.device == "cpu":
        lines.append(
            Line("LoRA step", whole, "the same with our memory setting", statistics.median(lent))
        )
    else:
        lines.append(
            Line(
                "LoRA step: peak memory",
                memory / 2**20,
                "TRL SDFTTrainer, top-k",
                trl_memory / 2**20,
                "MiB",
            )
        )
    return lines


def teacher(a: argparse.Namespace) -> list[Line]:
    """Times the teacher's pass over one batch, prefix included, against full recomputation."""
    loaded = model(a)
    forward = forward_of(loaded.model)
    forward.read()
    policy, prompts = texts(a, a.batch)
    rendered = [render(loaded.tokenizer, chat(p, policy.prompt_text)) for p in prompts]
    responses = [
        render(loaded.tokenizer, chat(workload.text(a.response, 99 + i)))[1 : 1 + a.response]
        for i in range(a.batch)
    ]

    @torch.no_grad()
    def shared():
        return response_hidden(forward, rendered, responses, prompt_prefix(forward, rendered))

    @torch.no_grad()
    def full():
        return response_hidden(forward, rendered, responses)

    difference = (shared() - full()).float().norm() / full().float().norm()
    print(f"teacher's hidden states, shared against full: relative difference {difference:.1e}")
    kept = prompt_prefix(forward, rendered)

    @torch.no_grad()
    def frozen():
        return response_hidden(forward, rendered, responses, kept)

    times = losses.interleaved(
        {"ours": shared, "frozen": frozen, "full": full}, a.repeats, a.device
    )
    return [
        Line(
            "teacher pass, frozen (policy read once a run)",
            times["frozen"],
            "full recomputation",
            times["full"],
        ),
        Line(
            "teacher pass, moving (policy read each time)",
            times["ours"],
            "full recomputation",
            times["full"],
        ),
    ]


def scoring(a: argparse.Namespace) -> list[Line]:
    """Times scoring (two answers and their divergences) against a loop that calls `generate`."""
    loaded = model(a)
    policy, prompts = texts(a, a.scored)
    table = pa.Table.from_pylist(
        [
            {
                "instruction_id": str(i),
                "rule_id": "R1",
                "kind": "violating",
                "text": p,
                "policy_hash": "0",
            }
            for i, p in enumerate(prompts)
        ],
        schema=INSTRUCTIONS,
    )
    engine = TransformersEngine(loaded, BATCH_TOKENS)
    settings = SensitivitySettings(max_new_tokens=a.response)

    def ours():
        score_instructions(policy, table, loaded, engine, settings, BATCH_TOKENS)

    @torch.inference_mode()
    def naive():
        for p in prompts:
            sides = [
                torch.tensor([render(loaded.tokenizer, chat(p, system))], device=loaded.device)
                for system in (None, policy.prompt_text)
            ]
            for prompt in sides:
                out = loaded.model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=a.response,
                    min_new_tokens=a.response,
                    do_sample=True,
                )
                answer = out[:, prompt.shape[1] :]
                student, teacher = (
                    loaded.model(torch.cat([s, answer], 1)).logits[0, s.shape[1] - 1 : -1]
                    for s in sides
                )
                [x.mean().item() for x in token_divergences(student, teacher)]

    times = losses.interleaved({"ours": ours, "naive": naive}, max(1, a.repeats // 2), a.device)
    return [
        Line(
            f"sensitivity of {a.scored} instructions",
            times["ours"],
            "loop over examples",
            times["naive"],
        )
    ]


def loss(a: argparse.Namespace) -> list[Line]:
    lines = []
    for vocabulary in (2_048, 151_936):
        hidden = MODELS[a.model].get("hidden", 256)
        steps = losses.contenders(
            a.loss_tokens, hidden, vocabulary, getattr(torch, a.dtype), a.device
        )
        times = losses.interleaved(steps, max(2, a.repeats // 2), a.device)
        memory = {name: losses.peak_bytes(run, a.device) / 2**20 for name, run in steps.items()}
        for mine in ("top 256", "full vocabulary"):
            for other in (
                name for name in steps if name.endswith(mine) and not name.startswith("ours")
            ):
                what = f"loss, V = {vocabulary:,}, {mine}"
                lines.append(Line(f"{what}: time", times[f"ours, {mine}"], other, times[other]))
                lines.append(
                    Line(
                        f"{what}: peak memory", memory[f"ours, {mine}"], other, memory[other], "MiB"
                    )
                )
        del steps
        clear(a)
    return lines


def clear(a: argparse.Namespace) -> None:
    gc.collect()
    if a.device == "cuda":
        torch.cuda.empty_cache()


def plot(lines: list[Line], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.42 * len(lines) + 1.2))
    names = [f"{x.what}\nagainst {x.other_name}" for x in lines][::-1]
    ratios = [x.ratio for x in lines][::-1]
    axes.barh(names, ratios, color=["#2b6cb0" if r >= 1 else "#c05621" for r in ratios])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("other / ours (right of 1: ours needs less)")
    axes.tick_params(axis="y", labelsize=7)
    for i, r in enumerate(ratios):
        axes.text(r, i, f" {r:.2f}x", va="center", fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    begun = time.perf_counter()
    main()
    print(f"{time.perf_counter() - begun:.0f} s in all")
