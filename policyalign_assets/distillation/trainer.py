"""On-policy self-distillation (docs/method.md, stage 3).

At each step the student answers a batch of instructions without the policy. The teacher, the same
model with the policy as system message, gives its distribution on those very tokens. The student
then takes one or more optimizer updates towards the teacher.

Differences from the release of the paper:

* a share of forward KL is optional (`loss.py`)
* log-probabilities are in float32 (release: bfloat16)
* the loss is a mean over all tokens of an optimizer batch (release: micro-batch means weighted by
  their number of samples)
* a step has two forward passes (release: three)
* with LoRA the teacher shares the student's base weights and has another adapter or none (release,
  and here full fine-tuning: a second copy of the model)

Every random choice is seeded by (seed, step), so a killed run continues from its last saved step
to the same result. Raise `CODE_VERSION` (`version.py`) when a change here changes checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import torch

from policyalign_assets.distillation.batches import Instruction, batch_indices
from policyalign_assets.distillation.budget import Budget, DistillationFailed
from policyalign_assets.distillation.continuation import Continuation
from policyalign_assets.distillation.phases import Phases
from policyalign_assets.distillation.processes import (
    SINGLE_PROCESS,
    Processes,
    parted_and_not,
)
from policyalign_assets.distillation.resume import latest_step, load_step, save_step
from policyalign_assets.distillation.rollouts import VllmRollouts
from policyalign_assets.distillation.state import (
    LogLine,
    Rollout,
    RolloutEngine,
    TrainState,
)
from policyalign_assets.distillation.teacher import Teacher
from policyalign_assets.distillation.tuning import Model, tuning_of
from policyalign_assets.distillation.updates import FIX_NOT_FINITE, update
from policyalign_assets.engine.base import AdapterEngine, NotFinite, Sampling, chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.engine.responses import check_lengths
from policyalign_assets.settings import DistillationSettings
from policyalign_assets.tables import TRAINING


def distill(
    policy_texts: Sequence[str],
    instructions: Sequence[Instruction],
    loaded: LoadedModel,
    settings: DistillationSettings,
    work_dir: Path,
    batch_tokens: int,
    log: LogLine = lambda _: None,
    processes: Processes = SINGLE_PROCESS,
    vllm: AdapterEngine | None = None,
) -> tuple[Model, pa.Table]:
    """Trains the student; returns it and the TRAINING table, one row per step.

    Each instruction says which of the `policy_texts` its teacher has as system message.
    With LoRA, the result is a PEFT model over `loaded.model` with the student's adapter active.
    With full fine-tuning it is `loaded.model` itself.
    `work_dir` holds the saved steps: another call with the same inputs and folder continues after
    the last one. With several `processes`, all call this function alike and get the same result;
    the main one saves. `vllm`, if given, samples the rollouts, and with several processes it must
    ask servers; teacher and student are always scored by `loaded.model`.
    Raises PromptTooLong before any work, and DistillationFailed if the loss is not finite or every
    response of a batch is empty.
    """
    work = _Work(policy_texts, instructions, loaded, settings, work_dir, log)
    state = _start(loaded, settings, work.by_policy, batch_tokens, log, processes, vllm)
    return _train(work, state, None)


def distill_from(
    continuation: Continuation,
    policy_texts: Sequence[str],
    instructions: Sequence[Instruction],
    loaded: LoadedModel,
    settings: DistillationSettings,
    work_dir: Path,
    batch_tokens: int,
    log: LogLine = lambda _: None,
) -> tuple[Model, pa.Table]:
    """As `distill`, from an earlier adapter and in rounds (`continuation.py`), on one process.

    At most `settings.steps` steps. At least one round is trained.
    Raises ValueError also where the adapter does not fit the model and the settings.
    """
    work = _Work(policy_texts, instructions, loaded, settings, work_dir, log)
    state = _start(loaded, settings, work.by_policy, batch_tokens, log, SINGLE_PROCESS, None)
    continuation.load(state.tuning.model)
    state.round_steps = continuation.round_steps
    return _train(work, state, continuation)


class _Work:
    """What one training run is given, with the prompts that it needs.

    Raises PromptTooLong, and ValueError where there is nothing to train on.
    """

    def __init__(
        self,
        policy_texts: Sequence[str],
        instructions: Sequence[Instruction],
        loaded: LoadedModel,
        settings: DistillationSettings,
        folder: Path,
        log: LogLine,
    ):
        if not instructions:
            raise ValueError("no instruction to train on")
        self.loaded, self.settings, self.folder, self.log = loaded, settings, folder, log
        self.groups = [i.group for i in instructions]
        self.students = [render(loaded.tokenizer, chat(i.text)) for i in instructions]
        self.teachers = [
            render(loaded.tokenizer, chat(i.text, policy_texts[i.policy])) for i in instructions
        ]
        check_lengths(self.teachers, settings.max_new_tokens, loaded.context)
        vocabulary = loaded.model.config.get_text_config().vocab_size
        if settings.top_k > vocabulary:
            raise ValueError(
                f"distillation.top_k={settings.top_k} is more than the model's vocabulary of "
                f"{vocabulary}. Fix: lower distillation.top_k."
            )
        self.taught = [i.policy for i in instructions]
        self.by_policy = {
            p: [t for t, q in zip(self.teachers, self.taught) if q == p] for p in set(self.taught)
        }


def _train(
    work: _Work, state: TrainState, continuation: Continuation | None
) -> tuple[Model, pa.Table]:
    settings, processes, log = work.settings, state.processes, work.log
    if (saved := latest_step(work.folder)) is not None:
        state.history = load_step(saved, state.tuning, state.optimizer)
        log(f"resumed after step {len(state.history)} from its saved state")
    started, first = time.monotonic(), len(state.history)
    for step in range(first, settings.steps):
        # Asked before the step, so that a resumed run stops where an unbroken one does.
        if (
            continuation
            and step
            and step % continuation.round_steps == 0
            and continuation.is_done(state, work.loaded)
        ):
            break
        begun = time.monotonic()
        state.phases = Phases(work.loaded.device)
        chosen = processes.share(
            batch_indices(work.groups, settings.batch_size, step, settings.seed)
        )
        prompts = [(work.students[i], work.teachers[i], work.taught[i]) for i in chosen]
        rollouts = _sample(state, step, prompts)
        with state.phases("prefix"):
            state.teacher.sync()
        losses = update(state, rollouts)
        state.history.append(_history_row(state, step, losses, rollouts, begun))
        log(_progress_line(state, started, step + 1 - first))
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            save_step(
                work.folder, step + 1, state.tuning, state.optimizer, state.history, processes
            )
    else:
        if continuation:
            continuation.is_done(state, work.loaded)  # its last word decides
    model = processes.complete_model(state.tuning.model)
    return model, pa.Table.from_pylist(state.history, schema=TRAINING)


def _start(
    loaded: LoadedModel,
    settings: DistillationSettings,
    teacher_prompts: Mapping[int, list[list[int]]],
    batch_tokens: int,
    log: LogLine,
    processes: Processes,
    vllm: AdapterEngine | None,
) -> TrainState:
    tuning = tuning_of(loaded.model, settings)
    model = processes.shard(tuning.model)
    if tuning.teacher is not tuning.model:
        processes.shard(tuning.teacher)
    # No dropout anywhere: the student must be the same function in rollouts and updates.
    model.eval()
    student = forward_of(model, plain=tuning.plain and not settings.gradient_checkpointing)
    rollouts: RolloutEngine
    if vllm:
        rollouts = VllmRollouts(vllm, model, log, processes)
    else:
        trained = LoadedModel(model, loaded.tokenizer, loaded.model_id, loaded.revision)
        rollouts = TransformersEngine(trained, batch_tokens, student)
    optimizer = torch.optim.AdamW(
        [{"params": group} for group in parted_and_not(tuning.trained().values())],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return TrainState(
        settings,
        tuning,
        optimizer,
        student,
        Teacher(tuning, settings.teacher, teacher_prompts),
        rollouts,
        Budget(settings.micro_batch_tokens, log, may_halve=not processes.sharded),
        processes,
        Phases(loaded.device),
    )


def _sample(
    state: TrainState, step: int, prompts: Sequence[tuple[list[int], list[int], int]]
) -> list[Rollout]:
    """Samples the student's answers with its current weights.

    `prompts` holds student prompt, teacher prompt and policy of each chosen instruction.
    """
    settings, processes = state.settings, state.processes
    state.set_learning_rate(step)
    sampling = Sampling(
        settings.max_new_tokens, settings.temperature, settings.seed * 1_000_003 + step
    )
    try:
        # An engine with weights of its own needs none of the trainer's.
        own = isinstance(state.rollouts, VllmRollouts)
        gathered = nullcontext() if own else processes.gathered(state.tuning.model)
        with state.phases("rollout"), gathered:
            state.student.read()
            generations = state.rollouts.generate_ids(
                [student for student, _, _ in prompts],
                sampling,
                rows=processes.share(range(settings.batch_size)),
            )
    except NotFinite as error:
        raise DistillationFailed(f"{error} at step {step + 1}. {FIX_NOT_FINITE}") from error
    return [
        Rollout(student, teacher, g.token_ids, g.finish == "stop", policy)
        for (student, teacher, policy), g in zip(prompts, generations)
    ]


def _history_row(
    state: TrainState, step: int, losses: dict[str, float], rollouts: list[Rollout], begun: float
) -> dict:
    """The TRAINING row of a finished step; lengths and end rates are over all processes."""
    seconds = time.monotonic() - begun
    mismatch = state.rollouts.mismatch if isinstance(state.rollouts, VllmRollouts) else None
    tokens, ended = state.processes.sum(
        torch.tensor([sum(len(r.response) for r in rollouts), sum(r.ended for r in rollouts)])
    ).tolist()
    batch = state.settings.batch_size
    return {
        "step": step + 1,
        **losses,
        "engine_mismatch": mismatch,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "mean_length": tokens / batch,
        "eos_rate": ended / batch,
        **{f"{name}_seconds": spent for name, spent in state.phases.seconds.items()},
    }


def _progress_line(state: TrainState, started: float, finished: int) -> str:
    row, steps = state.history[-1], state.settings.steps
    left = (time.monotonic() - started) / finished * (steps - row["step"])
    return (
        f"step {row['step']}/{steps}  loss {row['loss']:.4f}  length {row['mean_length']:.1f}  "
        f"Q {row['top_k_mass']:.4f}  {row['tokens_per_second']:,.0f} tokens/s  ETA {left:,.0f} s"
    )
