"""Training on several processes of this machine: `accelerate launch`, started by the stage and ended with it.

What travels is what travels to any worker (`exchange`). Lines that the main process marks are the run's progress; everything else
that the processes print stays in the log.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig

import policyalign_assets
from policyalign_assets.files import temporary_folder
from policyalign_assets.runtime.exchange import Exchange, Failed, Problem
from policyalign_assets.runtime.guard import guarded
from policyalign_assets.settings import Settings
from policyalign_assets.stages.interface import StageContext, StageData, StageResult

MARK = "policyalign progress: "
SOURCES = str(Path(policyalign_assets.__file__).parents[1])
GRACE = 5.0  # seconds between SIGTERM and SIGKILL


class AccelerateConfigError(ValueError):
    """`distillation.accelerate_config` asks for something else than DDP or FSDP2 on one machine, or cannot be read."""


def train_on_processes(context: StageContext, inputs: dict[str, StageData]) -> StageResult:
    """`distilled_checkpoint`, made by `distillation.processes` processes. Raises AccelerateConfigError, or Failed with their reason."""
    stage, count = "distilled_checkpoint", context.settings.distillation.processes
    config = launch_config(context.settings)
    cpu = on_cpu(context.settings)
    if not cpu and (gpus := torch.cuda.device_count()) < count:
        raise AccelerateConfigError(
            f"distillation.processes={count} but PyTorch sees {gpus} GPUs. Fix: one process for each GPU."
        )
    with temporary_folder() as name:
        exchange = Exchange(name)
        exchange.give(stage, context.settings, str(context.data), inputs)
        (exchange.folder / "accelerate.yaml").write_text(yaml.safe_dump(config))
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            f"{name}/accelerate.yaml",
            "-m",
            "policyalign_assets.runtime.training_process",
            str(name),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (SOURCES, os.environ.get("PYTHONPATH")))),
            "ACCELERATE_USE_CPU": str(cpu).lower(),
        }
        if code := _run(command, environment, context.report):
            raise Failed(
                exchange.problem()
                or Problem(
                    f"one of its {count} processes was killed or ended without a reason (exit code {code}); their output is in this step's log. "
                    "Often memory is full: lower distillation.micro_batch_tokens or model.batch_tokens.",
                    True,
                )
            )
        return exchange.made(stage)


def on_cpu(settings: Settings) -> bool:
    return settings.model.device == "cpu" or (
        settings.model.device == "auto" and not torch.cuda.is_available()
    )


def launch_config(settings: Settings) -> dict:
    """What `accelerate launch` is told: the file's options, on this machine, with as many processes as the settings say."""
    count, file = settings.distillation.processes, settings.distillation.accelerate_config
    try:
        given = yaml.safe_load(Path(file).read_text(encoding="utf-8")) if file else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AccelerateConfigError(
            f"distillation.accelerate_config={file!r} cannot be read: {error}"
        ) from None
    if not isinstance(given, dict) or not isinstance(given.get("fsdp_config", {}), dict):
        raise AccelerateConfigError(
            f"distillation.accelerate_config={file!r} is no mapping. Fix: as deploy/accelerate/*.yaml"
        )
    sharded = given.get("distributed_type") == "FSDP"
    fixed = {
        "compute_environment": ("LOCAL_MACHINE",),
        "distributed_type": ("MULTI_GPU", "FSDP"),
        "num_machines": (1,),
        "num_processes": (count,),
        "mixed_precision": ("no",),
        "use_cpu": (False,),
        "main_process_port": (0,),
        "parallelism_config": ({},),
        "dynamo_config": ({},),
    }
    fsdp = (
        {
            "fsdp_version": (2,),
            "fsdp_offload_params": (False,),
            "fsdp_activation_checkpointing": (False,),
            "fsdp_cpu_ram_efficient_loading": (False,),
            "fsdp_auto_wrap_policy": ("TRANSFORMER_BASED_WRAP",),
        }
        if sharded
        else {}
    )
    free = (
        {"fsdp_reshard_after_forward", "fsdp_transformer_layer_cls_to_wrap", "fsdp_state_dict_type"}
        if sharded
        else set()
    )
    for section, allowed, others in (
        (given, fixed, {f.name for f in fields(ClusterConfig)}),
        (given.get("fsdp_config", {}), fsdp, free),
    ):
        for key, value in section.items():
            if (key not in allowed and key not in others) or value not in allowed.get(
                key, (value,)
            ):
                mend = " or ".join([repr(v) for v in allowed.get(key, ())] + ["leave it out"])
                raise AccelerateConfigError(
                    f"distillation.accelerate_config={file!r}: {key}={value!r} is not supported here. Fix: {mend}."
                )
    config = {key: values[0] for key, values in fixed.items()} | given
    return config | (
        {
            "fsdp_config": given.get("fsdp_config", {})
            | {key: values[0] for key, values in fsdp.items()}
        }
        if sharded
        else {}
    )


def _run(command: list[str], environment: dict[str, str], report: Callable[[str], None]) -> int:
    with guarded(command, GRACE, environment, pipe_output=True) as process:
        for line in process.stdout:
            text = line.decode(errors="replace").rstrip("\n")
            if text.startswith(MARK):
                report(text.removeprefix(MARK))
            else:
                print(text, flush=True)
        return process.wait()
