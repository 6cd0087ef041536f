"""What is trained of a model, and who teaches it.

This is the only place where training distinguishes LoRA from full fine-tuning:

lora    the base weights stay fixed; student and teacher are adapters on them (`adapters.py`)
full    every weight is trained, as in the release of the paper; a teacher other than the live
        model is a second copy
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any, Literal, Protocol

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
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
TeacherKind = Literal["frozen", "ema", "student"]


class Tuning(Protocol):
    """How one way of training treats a model."""

    @property
    def model(self) -> Any:
        """The student."""
        ...

    @property
    def teacher(self) -> Any:
        """Computes as the teacher inside `teaching()`; may be the same object as `model`."""
        ...

    @property
    def plain(self) -> bool:
        """Whether `PlainLlama` may compute the model.

        It gives gradients to adapters alone, and copies norms and biases only once.
        """
        ...

    @property
    def head(self) -> tuple[torch.nn.Parameter, ...]:
        """The trained parameters of the output head."""
        ...

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that the optimizer updates, by name."""
        ...

    def teaching(self) -> AbstractContextManager[None]:
        """While active, `teacher` computes as the teacher, without gradients."""
        ...

    def update_ema(self) -> None:
        """Moves the EMA teacher towards the student."""
        ...

    def saved(self) -> dict[str, torch.nn.Parameter]:
        """All weights that training changes, the teacher's included: what a resumed run needs."""
        ...


def tuning_of(base: Any, settings: DistillationSettings) -> Tuning:
    """The configured way of training `base`; `full` trains `base` itself.

    Raises ValueError if the result could not be saved.
    """
    return Full(base, settings) if settings.tuning == "full" else Lora(base, settings)


class Lora:
    plain = True
    head: tuple[torch.nn.Parameter, ...] = ()

    def __init__(self, base: PreTrainedModel, settings: DistillationSettings):
        self._settings = settings
        self.model = self.teacher = add_adapters(base, settings)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return student_parameters(self.model)

    def teaching(self) -> AbstractContextManager[None]:
        return teacher_weights(self.model, self._settings.teacher)

    def update_ema(self) -> None:
        update_ema(self.model, self._settings.ema_decay)

    def saved(self) -> dict[str, torch.nn.Parameter]:
        return saved_parameters(self.model)


class Full:
    plain = False

    def __init__(self, base: Any, settings: DistillationSettings):
        # transformers refuses to save a model with a faulty generation config. Raise that before
        # training instead of after it.
        base.generation_config.validate(strict=True)
        self._settings = settings
        self.model = base.requires_grad_(True)
        self.teacher = (
            base if settings.teacher == "student" else deepcopy(base).requires_grad_(False)
        )
        self.head = tuple(base.get_output_embeddings().parameters())

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.model.named_parameters())  # a tied head and embedding appear once

    def teaching(self) -> AbstractContextManager[None]:
        return torch.no_grad()

    @torch.no_grad()
    def update_ema(self) -> None:
        for ema, student in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            if isinstance(ema, DTensor) and isinstance(student, DTensor):  # the same parts of both
                ema, student = ema.to_local(), student.to_local()
            ema.lerp_(student, 1 - self._settings.ema_decay)

    def saved(self) -> dict[str, torch.nn.Parameter]:
        # A frozen teacher is the base model, which a resumed run loads anyway.
        ema = dict(self.teacher.named_parameters()) if self._settings.teacher == "ema" else {}
        return {f"student.{n}": p for n, p in self.trained().items()} | {
            f"ema.{n}": p for n, p in ema.items()
        }
