"""Student and teacher on one set of base weights: LoRA adapters (PEFT).

The student is the base model with the adapter "default". The teacher is one of:

frozen   the base model without an adapter
ema      a second adapter, which starts as a copy of the student's and follows it as an
         exponential moving average (EMA)
student  the student's current adapter

The EMA of A and of B is not the EMA of their product BA. The difference is of second order while A
barely moves (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from policyalign_assets.settings import DistillationSettings

STUDENT, EMA = "default", "ema"
# PEFT refuses these layers of Mamba blocks, whose fused kernels would bypass an adapter.
_MAMBA_MODULES = ["out_proj", "conv1d"]
_MAMBA_MODEL_TYPES = ("falcon_h1", "nemotron_h")


def add_adapters(base: PreTrainedModel, settings: DistillationSettings) -> PeftModel:
    """Wraps `base` with the student's adapter and, for `ema`, the teacher's copy of it.

    The base weights stay unchanged.
    """
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules="all-linear",
        exclude_modules=_MAMBA_MODULES if _has_mamba_layers(base) else None,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(settings.seed)  # A starts random, B at zero
    model = get_peft_model(base, config, adapter_name=STUDENT)
    if settings.teacher == "ema":
        model.add_adapter(EMA, config)
        for student, ema in _pairs(model):
            ema.copy_(student)
    activate_student(model)
    return model


def _has_mamba_layers(base: PreTrainedModel) -> bool:
    return base.config.model_type in _MAMBA_MODEL_TYPES


def student_parameters(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if f".{STUDENT}." in n}


def saved_parameters(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The parameters of the student's adapter and of the EMA teacher's."""
    return {n: p for n, p in model.named_parameters() if f".{STUDENT}." in n or f".{EMA}." in n}


def activate_student(model: PeftModel) -> None:
    model.set_adapter(STUDENT)
    for name, p in model.named_parameters():
        p.requires_grad_(f".{STUDENT}." in name)


@contextmanager
def teacher_weights(model: PeftModel, teacher: str) -> Iterator[None]:
    """While active, `model` computes as the teacher ("frozen", "ema" or "student").

    No gradients are recorded.
    """
    with torch.no_grad():
        if teacher == "frozen":
            with model.disable_adapter():
                yield
        elif teacher == "ema":
            try:
                model.set_adapter(EMA)
                yield
            finally:
                activate_student(model)
        else:
            yield


@torch.no_grad()
def update_ema(model: PeftModel, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * student, for each matrix."""
    for student, ema in _pairs(model):
        ema.lerp_(student, 1 - decay)


def _pairs(model: PeftModel) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    parameters = dict(model.named_parameters())
    for name, student in parameters.items():
        if f".{STUDENT}." in name:
            yield student.data, parameters[name.replace(f".{STUDENT}.", f".{EMA}.")].data


def save_student(model: PeftModel, folder: Path) -> None:
    """Saves a plain PEFT adapter (safetensors), loadable with `PeftModel.from_pretrained`."""
    model.save_pretrained(str(folder), selected_adapters=[STUDENT], save_embedding_layers=False)
