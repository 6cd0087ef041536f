"""A LoRA adapter, or a whole model, that makes the model follow the policy without seeing it."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext

import pyarrow as pa

from policyalign_assets.distillation.anchors import anchors
from policyalign_assets.distillation.batches import training_mix
from policyalign_assets.distillation.checkpoint import publish
from policyalign_assets.distillation.processes import SINGLE_PROCESS, Processes
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.engine.generation.opening import opened_vllm
from policyalign_assets.engine.loading import load_model
from policyalign_assets.files import sha256_table, unfinished_folder
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.report.plots import training_plot
from policyalign_assets.settings import DistillationSettings
from policyalign_assets.stages.facts import image, path
from policyalign_assets.stages.fingerprints import own_version
from policyalign_assets.stages.interface import StageContext, StageResult


def make(
    context: StageContext, policy_document: PolicyDocument, filtered_instructions: pa.Table
) -> StageResult:
    """Trains in this process.

    `runtime.execution` decides whether several processes train instead.
    """
    made = train(context, policy_document, filtered_instructions)
    assert made is not None  # this process is the main one
    return made


def train(
    context: StageContext,
    policy_document: PolicyDocument,
    filtered_instructions: pa.Table,
    processes: Processes = SINGLE_PROCESS,
) -> StageResult | None:
    """In this process, which may be one of several: nothing comes back from those that are not
    the main one."""
    settings = context.settings
    loaded = load_model(
        settings.model.model_copy(update={"device": "cpu"}) if processes.sharded else settings.model
    )
    chosen = filtered_instructions.filter(filtered_instructions["selected"])
    rules = len(set(chosen["rule_id"].to_pylist()))
    steps = settings.distillation.planned_steps(rules)
    context.report(_steps_line(settings.distillation, rules))
    distillation = settings.distillation.model_copy(update={"steps": steps})
    extra = anchors(distillation, settings.model.id)
    provenance = {
        "policy_id": policy_document.policy_id,
        "domain": policy_document.domain,
        "policy_hash": policy_document.content_hash,
        "instructions": sha256_table(chosen),
        "everyday_requests": hashlib.sha256("\n".join(i.text for i in extra).encode()).hexdigest(),
        "model_id": loaded.model_id,
        "model_revision": loaded.revision,
        "dtype": settings.model.dtype,
        "engine": settings.model.engine,
        "settings": distillation.model_dump(exclude={"processes", "accelerate_config"}),
    }
    version = own_version("distilled_checkpoint", settings)  # new code does not go on with old work
    vllm = settings.model.engine == "vllm"
    with (
        opened_vllm(settings.model, distillation.lora_rank, beside_a_model=True)
        if vllm
        else nullcontext() as engine
    ):
        model, training = distill(
            [policy_document],
            training_mix(chosen) + extra,
            loaded,
            distillation,
            unfinished_folder(
                context.data, "distilled_checkpoint", {**provenance, "version": version}
            ),
            settings.model.batch_tokens,
            context.report,
            processes,
            engine,
        )
    if not processes.main:
        return None
    checkpoint = publish(model, loaded, training, context.data, provenance)
    last = training.to_pylist()[-1]
    return StageResult(
        checkpoint,
        checkpoint.checkpoint_id,
        {
            "checkpoint": path(context.data / checkpoint.path),
            "tuning": checkpoint.tuning,
            "instructions": chosen.num_rows,
            "everyday requests": len(extra),
            "rules": rules,
            "steps": steps,
            "final loss": last["loss"],
            "top-k mass Q": last["top_k_mass"],
            "mean length": last["mean_length"],
            "training seconds": sum(training["seconds"].to_pylist()),
            "training curves": image(training_plot(training.to_pydict()), "training curves"),
        },
    )


def _steps_line(settings: DistillationSettings, rules: int) -> str:
    """What the run's log says about the number of steps."""
    steps, enough = settings.planned_steps(rules), settings.steps_for_rules
    if steps == settings.steps:
        return f"{steps} training steps (distillation.steps) for {rules} of up to {enough} rules"
    return (
        f"{steps} training steps for {rules} rules: distillation.steps={settings.steps} is for up "
        f"to {enough} rules (distillation.steps_for_rules), and steps grow in proportion"
    )
