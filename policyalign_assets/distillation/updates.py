"""The optimizer updates of one step: gradients in micro-batches, one update per mini-batch."""

from __future__ import annotations

import math

import torch

from policyalign_assets.distillation.budget import DistillationFailed
from policyalign_assets.distillation.gradient_checkpointing import checkpointed
from policyalign_assets.distillation.loss import Divergence, mixed_kl_top_k
from policyalign_assets.distillation.state import Rollout, TrainState
from policyalign_assets.engine.batching import by_length
from policyalign_assets.engine.forward.scoring import response_hidden

FIX_NOT_FINITE = (
    "The last saved step is kept. Fix: lower distillation.learning_rate, or use float32."
)


def update(state: TrainState, rollouts: list[Rollout]) -> dict[str, float]:
    """Takes one optimizer update per mini-batch of one rollout batch.

    `rollouts` are this process's share. The returned token means are over the whole batch.
    Raises DistillationFailed if every response of a mini-batch is empty or the loss is not finite.
    """
    settings, tuning, processes = state.settings, state.tuning, state.processes
    sums = torch.zeros(4, dtype=torch.float64)  # loss, student mass, teacher mass, entropy
    tokens = 0
    norms: list[float] = []
    size = settings.mini_batch_size // processes.count
    for at in range(0, len(rollouts), size):
        if at:
            _follow_moved_student(state)
        mini = [r for r in rollouts[at : at + size] if r.response]
        mini_tokens = int(processes.sum(torch.tensor(sum(len(r.response) for r in mini))))
        if not mini_tokens:
            raise DistillationFailed(
                "every response of a batch is empty: the student has collapsed. "
                "Fix: lower the learning rate."
            )
        sums += processes.sum(_fitted_gradients(state, mini, mini_tokens))
        processes.sum_gradients(tuning.trained().values())
        norm = processes.clip_gradients(tuning.trained().values(), settings.max_grad_norm)
        if not math.isfinite(norm) or not math.isfinite(sums[0].item()):
            raise DistillationFailed(
                f"the loss or its gradient is not finite (loss sum {sums[0].item()}, "
                f"gradient norm {norm}). {FIX_NOT_FINITE}"
            )
        state.optimizer.step()
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


def _follow_moved_student(state: TrainState) -> None:
    """After an optimizer update within a step: the forward passes need the new weights."""
    state.student.read()
    if state.settings.teacher == "student":  # this teacher has moved with the student
        with state.phases("prefix"):
            state.teacher.sync()


def _fitted_gradients(state: TrainState, mini: list[Rollout], mini_tokens: int) -> torch.Tensor:
    """Like `_gradients`, with smaller micro-batches if memory runs out."""
    return state.budget.fitted(lambda: _gradients(state, mini, mini_tokens))


def _gradients(state: TrainState, mini: list[Rollout], mini_tokens: int) -> torch.Tensor:
    """Sets the student's gradients of this process's share of a mini-batch.

    `mini_tokens` counts the response tokens of all processes. Returns sums over this process's
    tokens: loss, student mass, teacher mass, entropy.
    """
    settings, teacher = state.settings, state.teacher
    divergence = Divergence(
        settings.top_k, settings.tail, settings.temperature, settings.forward_weight
    )
    state.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(4, dtype=torch.float64)
    for chosen, weight in state.processes.evenly(_micro_batches(state, mini)):
        micro = [mini[i] for i in chosen]
        responses = [r.response for r in micro]
        with state.phases("teacher"):
            prompts = [r.teacher_prompt for r in micro]
            teacher_MD = teacher.hidden(micro[0].policy, prompts, responses)
        with (
            state.phases("student"),
            state.student.applied(),
            checkpointed(state.tuning.model, settings.gradient_checkpointing),
        ):
            student_MD = response_hidden(
                state.student, [r.student_prompt for r in micro], responses
            )
            out = mixed_kl_top_k(
                student_MD,
                teacher_MD,
                state.student.logits,
                divergence,
                state.tuning.head,
                teacher.logits,
            )
            # The loss is a mean over all tokens of the mini-batch, not over micro-batches.
            (weight * out.loss_sum / mini_tokens).backward()
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


def _micro_batches(state: TrainState, mini: list[Rollout]) -> list[list[int]]:
    """Indices into `mini`. The rows of a micro-batch have one policy, so they share its prefix."""
    batches = []
    for policy in sorted({r.policy for r in mini}):
        rows = [i for i, r in enumerate(mini) if r.policy == policy]
        shared = state.teacher.shared(policy)
        lengths = [
            max(len(mini[i].teacher_prompt) - shared, len(mini[i].student_prompt))
            + len(mini[i].response)
            for i in rows
        ]
        batches += [
            [rows[at] for at in chosen] for chosen in by_length(lengths, state.budget.tokens)
        ]
    return batches
