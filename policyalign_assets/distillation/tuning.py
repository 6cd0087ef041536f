"""What of a model is trained, and who teaches it: the one place where training knows LoRA from full fine-tuning.

lora    the base weights stay as they are; student and teacher are adapters on them (`adapters.py`)
full    every weight is trained, as in the release; a teacher other than the live model is a second copy
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from policyalign_assets.distillation.adapters import (
    add_adapters,
    saved_parameters,
    student_parameters,
    teacher_weights,
    update_ema,
)
from policyalign_assets.settings import DistillationSettings

Model = PreTrainedModel | PeftModel


class Tuning(Protocol):
    model: Model  # the student
    teacher: Model  # computes as the teacher inside of `teaching`; may be `model`
    plain: bool  # whether `PlainLlama` will do, which gives gradients to an adapter alone and reads norms and biases only once
    head: tuple[torch.nn.Parameter, ...]  # what is trained of the head

    def trained(self) -> dict[str, torch.nn.Parameter]: ...

    def teaching(self) -> AbstractContextManager[None]:
        """Inside, `teacher` computes as the teacher, without gradients."""
        ...

    def update_ema(self) -> None:
        """The teacher follows the student."""
        ...

    def saved(self) -> dict[str, torch.nn.Parameter]:
        """All weights that training changes, the teacher's included: what a run goes on from."""
        ...


def tuning_of(base: PreTrainedModel, settings: DistillationSettings) -> Tuning:
    """With `full` it is `base` itself that will be trained. Raises ValueError where that could not be saved."""
    return Full(base, settings) if settings.tuning == "full" else Lora(base, settings)


class Lora:
    plain, head = True, ()

    def __init__(self, base: PreTrainedModel, settings: DistillationSettings):
        self._settings = settings
        self.model = self.teacher = add_adapters(base, settings)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return student_parameters(self.model)

    def teaching(self) -> AbstractContextManager[None]:
        return teacher_weights(self.model, self._settings)

    def update_ema(self) -> None:
        update_ema(self.model, self._settings.ema_decay)

    def saved(self) -> dict[str, torch.nn.Parameter]:
        return saved_parameters(self.model)


class Full:
    plain = False

    def __init__(self, base: PreTrainedModel, settings: DistillationSettings):
        base.generation_config.validate(
            strict=True
        )  # transformers refuses to save a model with a faulty one, which is late after training
        self._settings = settings
        self.model = base.requires_grad_(True)
        self.teacher = (
            base if settings.teacher == "student" else deepcopy(base).requires_grad_(False)
        )
        self.head = tuple(base.get_output_embeddings().parameters())

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.model.named_parameters())  # a tied head and embedding are one

    def teaching(self) -> AbstractContextManager[None]:
        return torch.no_grad()

    @torch.no_grad()
    def update_ema(self) -> None:
        for ema, student in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            ema.lerp_(student, 1 - self._settings.ema_decay)

    def saved(self) -> dict[str, torch.nn.Parameter]:
        # a frozen teacher is the base model, which is there when a run goes on
        ema = dict(self.teacher.named_parameters()) if self._settings.teacher == "ema" else {}
        return {f"student.{n}": p for n, p in self.trained().items()} | {
            f"ema.{n}": p for n, p in ema.items()
        }
