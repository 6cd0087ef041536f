"""Runs one stage: in this process, or on several training processes if the settings say so."""

from __future__ import annotations

from importlib import import_module

from policyalign_assets.stages.interface import StageContext, StageData, StageResult
from policyalign_assets.stages.registry import STAGES


def make(stage: str, context: StageContext, inputs: dict[str, StageData]) -> StageResult:
    """Run `stage` and return its result. `inputs` are keyed by the stages that made them.

    Raises ValueError for an unknown stage, and whatever the stage itself raises.
    """
    if stage not in STAGES:
        raise ValueError(f"{stage!r} is not a stage. Fix: name one of {', '.join(STAGES)}.")
    if stage == "distilled_checkpoint" and context.settings.distillation.processes > 1:
        from policyalign_assets.runtime.accelerated import train_on_processes

        return train_on_processes(context, inputs)
    return import_module(STAGES[stage].module).make(context, **inputs)
