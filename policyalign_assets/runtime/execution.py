"""Runs one stage: in this process, or on several training processes if the settings say so."""

from __future__ import annotations

from importlib import import_module

from policyalign_assets.stages.interface import StageContext, StageInput, StageResult
from policyalign_assets.stages.registry import EVERY_STAGE

TRAINING_STAGES = ("distilled_checkpoint", "deployed_checkpoint")


def make(stage: str, context: StageContext, inputs: dict[str, StageInput]) -> StageResult:
    """Run `stage` and return its result. `inputs` are keyed by the stages that made them.

    Raises ValueError for an unknown stage, and whatever the stage itself raises.
    """
    if stage not in EVERY_STAGE:
        raise ValueError(f"{stage!r} is not a stage. Fix: name one of {', '.join(EVERY_STAGE)}.")
    if stage in TRAINING_STAGES and context.settings.distillation.processes > 1:
        from policyalign_assets.runtime.accelerated import train_on_processes

        return train_on_processes(stage, context, inputs)
    return import_module(EVERY_STAGE[stage].module).make(context, **inputs)
