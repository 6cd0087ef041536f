"""On-policy self-distillation (method.md stage 3).

Each step: the student answers a batch of instructions *without* the policy; the teacher, the same model *with* the policy
as system message, gives its distribution on those very tokens; the student takes one or more optimizer updates towards it.

Differences from the release: an optional share of forward KL (`loss.py`); log-probabilities in float32 (there
bf16); a global token mean over each optimizer batch (there micro-batch means weighted by samples); two forward passes a step
(there three); with LoRA the teacher is the same set of weights with another or no adapter (there, and here with full fine-tuning,
a second copy).

Every random choice is seeded by (seed, step), so a killed run continues from its last saved step to the same result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from policyalign_assets.distillation.batches import Instruction, batch_indices
from policyalign_assets.distillation.budget import Budget, DistillationFailed
from policyalign_assets.distillation.gradient_checkpointing import checkpointed
from policyalign_assets.distillation.loss import reverse_kl_top_k
from policyalign_assets.distillation.phases import Phases
from policyalign_assets.distillation.processes import SINGLE_PROCESS, Processes
from policyalign_assets.distillation.resume import latest_step, load_step, save_step
from policyalign_assets.distillation.rollouts import VllmRollouts
from policyalign_assets.distillation.teacher import Teacher
from policyalign_assets.distillation.tuning import Model, Tuning, tuning_of
from policyalign_assets.engine.base import NotFinite, Sampling, chat
from policyalign_assets.engine.batching import by_length
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.forward.protocol import Forward, forward_of
from policyalign_assets.engine.forward.scoring import response_hidden
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.generation.vllm_engine import VllmEngine
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.engine.responses import check_lengths
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import DistillationSettings
from policyalign_assets.tables import TRAINING

Progress = Callable[[str], None]
KEPT = "The last saved step is kept. Mend: lower distillation.learning_rate, or use float32."


@dataclass(frozen=True)
class Rollout:
    student_prompt: list[int]
    teacher_prompt: list[int]
    response: tuple[int, ...]
    ended: bool


def distill(
    policy: PolicyDocument,
    instructions: Sequence[Instruction],
    loaded: LoadedModel,
    settings: DistillationSettings,
    work_dir: Path,
    batch_tokens: int,
    report: Progress = lambda _: None,
    processes: Processes = SINGLE_PROCESS,
    vllm: VllmEngine | None = None,
) -> tuple[Model, pa.Table]:
    """Trains an adapter on `loaded.model` and returns the PEFT model (student active), or all of `loaded.model` and returns that
    (`settings.tuning`); and the TRAINING table, a row per step.

    `work_dir` holds the saved steps; calling again with the same inputs and folder continues after the last one. With several
    `processes`, all call this alike and get the same back; the main one saves. `vllm` samples the rollouts, where it is given (to
    one process alone); teacher and student are always scored by `loaded.model`.
    Raises PromptTooLong before any work, DistillationFailed when the loss is not finite or every response is empty.
    """
    if not instructions:
        raise ValueError("no instruction to train on")
    groups = [i.group for i in instructions]
    student_prompts = [render(loaded.tokenizer, chat(i.text)) for i in instructions]
    teacher_prompts = [
        render(loaded.tokenizer, chat(i.text, policy.prompt_text)) for i in instructions
    ]
    check_lengths(teacher_prompts, settings.max_new_tokens, loaded.context)
    if settings.top_k > loaded.model.config.vocab_size:
        raise ValueError(
            f"distillation.top_k={settings.top_k} is more than the model's vocabulary of {loaded.model.config.vocab_size}"
        )

    tuning = tuning_of(loaded.model, settings)
    model = processes.shard(tuning.model)
    model.eval()  # no dropout anywhere: the student must be the same function in rollouts and updates
    student = forward_of(model, plain=tuning.plain and not settings.gradient_checkpointing)
    teacher = Teacher(tuning, settings, teacher_prompts)
    engine = (
        VllmRollouts(vllm, model, report)
        if vllm
        else TransformersEngine(
            LoadedModel(model, loaded.tokenizer, loaded.model_id, loaded.revision),
            batch_tokens,
            student,
        )
    )
    optimizer = torch.optim.AdamW(
        tuning.trained().values(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    history: list[dict] = []
    first = 0
    if (saved := latest_step(work_dir)) is not None:
        history = load_step(saved, tuning, optimizer)
        first = len(history)
        report(f"resumed after step {first} from its saved state")

    started, budget = (
        time.monotonic(),
        Budget(settings.micro_batch_tokens, report, may_halve=not processes.sharded),
    )
    for step in range(first, settings.steps):
        begun, phases = time.monotonic(), Phases(model.device)
        chosen = processes.share(batch_indices(groups, settings.batch_size, step, settings.seed))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * decay_factor(
                step, settings.steps, settings.lr_decay
            )
        sampling = Sampling(
            settings.max_new_tokens, settings.temperature, settings.seed * 1_000_003 + step
        )
        try:
            with phases("rollout"), processes.whole(model):
                generations = engine.generate_ids(
                    [student_prompts[i] for i in chosen],
                    sampling,
                    rows=processes.share(range(settings.batch_size)),
                )
        except NotFinite as error:
            raise DistillationFailed(f"{error} at step {step + 1}. {KEPT}") from error
        if vllm:  # else the engine has read them for its answers
            student.read()
        rollouts = [
            Rollout(student_prompts[i], teacher_prompts[i], g.token_ids, g.finish == "stop")
            for i, g in zip(chosen, generations)
        ]
        with phases("prefix"):
            teacher.follow()
        row = {
            "step": step + 1,
            **_update(
                tuning, optimizer, rollouts, student, teacher, settings, budget, phases, processes
            ),
        }
        seconds = time.monotonic() - begun
        tokens, ended = processes.sum(
            torch.tensor([sum(len(r.response) for r in rollouts), sum(r.ended for r in rollouts)])
        ).tolist()
        history.append(
            row
            | {
                "engine_mismatch": engine.mismatch if vllm else None,
                "seconds": seconds,
                "tokens_per_second": tokens / seconds,
                "mean_length": tokens / settings.batch_size,
                "eos_rate": ended / settings.batch_size,
                **{f"{name}_seconds": spent for name, spent in phases.seconds.items()},
            }
        )
        left = (time.monotonic() - started) / (step + 1 - first) * (settings.steps - step - 1)
        report(
            f"step {step + 1}/{settings.steps}  loss {row['loss']:.4f}  length {tokens / settings.batch_size:.1f}  Q {row['top_k_mass']:.4f}  "
            f"{tokens / seconds:,.0f} tokens/s  ETA {left:,.0f} s"
        )
        if processes.main and (step + 1) % settings.save_every == 0 and step + 1 < settings.steps:
            save_step(work_dir, step + 1, tuning, optimizer, history)
    return model, pa.Table.from_pylist(history, schema=TRAINING)


def decay_factor(step: int, steps: int, share: float) -> float:
    """1, then falling linearly over the last `share` of the steps (to 1 / their number in the last one)."""
    last = round(share * steps)
    return min(1.0, (steps - step) / last) if last else 1.0


def _update(
    tuning: Tuning,
    optimizer: torch.optim.Optimizer,
    rollouts: list[Rollout],
    student: Forward,
    teacher: Teacher,
    settings: DistillationSettings,
    budget: Budget,
    phases: Phases,
    processes: Processes,
) -> dict[str, float]:
    """The optimizer updates of one rollout batch, of which `rollouts` are this process's; returns token means over the whole batch."""
    sums = torch.zeros(4, dtype=torch.float64)  # loss, Q, teacher mass, entropy
    tokens, norms = 0, []
    size = settings.mini_batch_size // processes.count
    for at in range(0, len(rollouts), size):
        if at:
            student.read()
            if settings.teacher == "student":  # it has moved with the student
                with phases("prefix"):
                    teacher.follow()
        mini = [r for r in rollouts[at : at + size] if r.response]
        mini_tokens = int(processes.sum(torch.tensor(sum(len(r.response) for r in mini))))
        if not mini_tokens:
            raise DistillationFailed(
                "every response of a batch is empty: the student has collapsed. Mend: lower the learning rate."
            )
        part = budget.fitted(
            lambda: _gradients(
                tuning,
                optimizer,
                mini,  # noqa: B023 - called before the loop goes on
                mini_tokens,  # noqa: B023
                student,
                teacher,
                settings,
                budget,
                phases,
                processes,
            )
        )
        sums += processes.sum(part)
        processes.sum_gradients(tuning.trained().values())
        norm = torch.nn.utils.clip_grad_norm_(
            tuning.trained().values(), settings.max_grad_norm
        ).item()
        if not math.isfinite(norm) or not math.isfinite(sums[0].item()):
            raise DistillationFailed(
                f"the loss or its gradient is not finite (loss sum {sums[0].item()}, gradient norm {norm}). {KEPT}"
            )
        optimizer.step()
        norms.append(norm)
        tokens += mini_tokens
    if settings.teacher == "ema":
        tuning.update_ema()
    loss, mass, teacher_mass, entropy = (sums / tokens).tolist()
    return {
        "loss": loss,
        "top_k_mass": mass,
        "teacher_mass": teacher_mass,
        "entropy": entropy,
        "grad_norm": max(norms),
    }


def _gradients(
    tuning: Tuning,
    optimizer: torch.optim.Optimizer,
    mini: list[Rollout],
    mini_tokens: int,
    student: Forward,
    teacher: Teacher,
    settings: DistillationSettings,
    budget: Budget,
    phases: Phases,
    processes: Processes,
) -> torch.Tensor:
    """Sets the student's gradients of this process's share of an optimizer batch; returns the sums over its tokens."""
    optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(4, dtype=torch.float64)
    lengths = [
        max(len(r.teacher_prompt) - teacher.shared, len(r.student_prompt)) + len(r.response)
        for r in mini
    ]
    for chosen, weight in processes.evenly(list(by_length(lengths, budget.tokens))):
        micro = [mini[i] for i in chosen]
        responses = [r.response for r in micro]
        with phases("teacher"):
            teacher_MD = teacher.hidden([r.teacher_prompt for r in micro], responses)
        with (
            phases("student"),
            student.applied(),
            checkpointed(tuning.model, settings.gradient_checkpointing),
        ):
            student_MD = response_hidden(student, [r.student_prompt for r in micro], responses)
            out = reverse_kl_top_k(
                student_MD,
                teacher_MD,
                student.logits,
                settings.top_k,
                settings.tail,
                settings.temperature,
                settings.forward_weight,
                tuning.head,
                teacher.logits,
            )
            (
                weight * out.loss_sum / mini_tokens
            ).backward()  # global token mean over the optimizer batch
        values = torch.stack(
            [
                out.loss_sum.detach(),
                out.student_mass_M.sum(),
                out.teacher_mass_M.sum(),
                out.entropy_M.sum(),
            ]
        )
        sums += weight * values.double().cpu()
    return sums
