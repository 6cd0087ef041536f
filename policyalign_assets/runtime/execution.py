"""Runs one stage: in this process, or on several training processes where the settings ask for them."""

from __future__ import annotations

from importlib import import_module

from policyalign_assets.stages.interface import (
    LIGHT_STAGES,
    MODEL_STAGES,
    StageContext,
    StageData,
    StageResult,
)


def make(stage: str, context: StageContext, inputs: dict[str, StageData]) -> StageResult:
    """Runs `stage` and returns what it made. `inputs` are keyed by the stages that made them.

    Raises ValueError for an unknown stage, and whatever the stage itself raises.
    """
    if stage not in MODEL_STAGES + LIGHT_STAGES:
        raise ValueError(
            f"{stage!r} is not a stage that is run like this. "
            f"Fix: name one of {', '.join(MODEL_STAGES + LIGHT_STAGES)}."
        )
    if stage == "distilled_checkpoint" and context.settings.distillation.processes > 1:
        from policyalign_assets.runtime.accelerated import train_on_processes

        return train_on_processes(context, inputs)
    return import_module(f"policyalign_assets.stages.{stage}").make(context, **inputs)
