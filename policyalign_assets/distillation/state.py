"""Everything that one training run holds on to between steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from policyalign_assets.distillation.budget import Budget
from policyalign_assets.distillation.phases import Phases
from policyalign_assets.distillation.processes import Processes
from policyalign_assets.distillation.teacher import Teacher
from policyalign_assets.distillation.tuning import Tuning
from policyalign_assets.engine.base import Generation, Progress, Sampling
from policyalign_assets.engine.forward.protocol import Forward
from policyalign_assets.settings import DistillationSettings

LogLine = Callable[[str], None]


class RolloutEngine(Protocol):
    """What samples the student's answers."""

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Generation]: ...


@dataclass(frozen=True)
class Rollout:
    """One answer of the student. `ended` is false if it was cut at the length limit."""

    student_prompt: list[int]
    teacher_prompt: list[int]
    response: tuple[int, ...]
    ended: bool
    policy: int = 0  # which of the run's policies the teacher prompt holds


@dataclass
class TrainState:
    """The parts of a training run. `phases` is replaced at every step.

    `round_steps`: steps over which the learning rate falls once; None: over all steps.
    """

    settings: DistillationSettings
    tuning: Tuning
    optimizer: torch.optim.Optimizer
    student: Forward
    teacher: Teacher
    rollouts: RolloutEngine
    budget: Budget
    processes: Processes
    phases: Phases
    history: list[dict] = field(default_factory=list)  # one TRAINING row per finished step
    round_steps: int | None = None

    def set_learning_rate(self, step: int) -> None:
        settings = self.settings
        steps = self.round_steps or settings.steps
        factor = decay_factor(step % steps, steps, settings.lr_decay)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor


def decay_factor(step: int, steps: int, share: float) -> float:
    """The learning rate's factor: 1, then falling linearly over the last `share` of the steps.

    In the last step it is 1 / (the number of falling steps).
    """
    last = round(share * steps)
    return min(1.0, (steps - step) / last) if last else 1.0
