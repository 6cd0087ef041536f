"""Training on several processes of this machine.

The stage starts `accelerate launch`, and ends it when the stage itself ends. Data is passed as to
any other worker (see `exchange`). Lines that the main process marks are shown as the run's
progress; everything else that the processes print goes to the log.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig

import policyalign_assets
from policyalign_assets.files import temporary_folder
from policyalign_assets.runtime.exchange import Exchange, Failed, Problem
from policyalign_assets.runtime.guard import guarded
from policyalign_assets.settings import Settings
from policyalign_assets.stages.interface import StageContext, StageInput, StageResult

MARK = "policyalign progress: "
SOURCES = str(Path(policyalign_assets.__file__).parents[1])
GRACE = 5.0  # seconds between SIGTERM and SIGKILL


class AccelerateConfigError(ValueError):
    """Training on several processes is not possible with these settings.

    Either `distillation.accelerate_config` cannot be read, or it asks for something other than DDP
    or FSDP2 on one machine, or there are too few GPUs.
    """


def train_on_processes(
    stage: str, context: StageContext, inputs: dict[str, StageInput]
) -> StageResult:
    """Run `stage`, which trains, on `distillation.processes` processes.

    Raises AccelerateConfigError, or Failed with the reason that a process gave.
    """
    count = context.settings.distillation.processes
    config = launch_config(context.settings)
    cpu = on_cpu(context.settings)
    if not cpu and (gpus := torch.cuda.device_count()) < count:
        raise AccelerateConfigError(
            f"distillation.processes={count}, but PyTorch sees {gpus} GPUs. "
            "Fix: set distillation.processes to at most the number of GPUs."
        )
    with temporary_folder() as name:
        exchange = Exchange(name)
        exchange.give(
            stage,
            context.settings,
            str(context.data),
            inputs,
            context.experiment,
            context.deployment,
        )
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
                    f"one of the {count} training processes was killed or ended without a reason "
                    f"(exit code {code}). Their output is in this step's log. A common cause is "
                    "too little memory. Fix: lower distillation.micro_batch_tokens or "
                    "model.batch_tokens.",
                    True,
                )
            )
        return exchange.made(stage)


def on_cpu(settings: Settings) -> bool:
    return settings.model.device == "cpu" or (
        settings.model.device == "auto" and not torch.cuda.is_available()
    )


def launch_config(settings: Settings) -> dict:
    """Return the configuration of `accelerate launch`.

    It has the options of the file, and the number of processes from the settings. Raises
    AccelerateConfigError if the file cannot be read or has an option that is not supported.
    """
    count, file = settings.distillation.processes, settings.distillation.accelerate_config
    try:
        given = yaml.safe_load(Path(file).read_text(encoding="utf-8")) if file else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AccelerateConfigError(
            f"distillation.accelerate_config={file!r} cannot be read: {error}"
        ) from None
    if not isinstance(given, dict) or not isinstance(given.get("fsdp_config", {}), dict):
        raise AccelerateConfigError(
            f"distillation.accelerate_config={file!r} is not a mapping of options. "
            "Fix: write it like the files in deploy/accelerate."
        )
    sharded = given.get("distributed_type") == "FSDP"
    fixed: dict[str, tuple[Any, ...]] = {
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
    fsdp: dict[str, tuple[Any, ...]] = (
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
                fix = " or ".join([f"use {v!r}" for v in allowed.get(key, ())] + ["leave it out"])
                raise AccelerateConfigError(
                    f"distillation.accelerate_config={file!r}: {key}={value!r} is not supported. "
                    f"Fix: {fix}."
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
        assert process.stdout is not None  # because of pipe_output
        for line in process.stdout:
            text = line.decode(errors="replace").rstrip("\n")
            if text.startswith(MARK):
                report(text.removeprefix(MARK))
            else:
                print(text, flush=True)
        return process.wait()
