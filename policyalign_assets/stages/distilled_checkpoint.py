"""A LoRA adapter, or a whole model, that makes the model follow the policy without seeing it."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from policyalign_assets.distillation.anchors import anchors
from policyalign_assets.distillation.batches import Instruction, training_mix
from policyalign_assets.distillation.checkpoint import publish
from policyalign_assets.distillation.processes import SINGLE_PROCESS, Processes
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.distillation.warm_start import FORMER, edit_between, requests_of
from policyalign_assets.engine.generation.opening import opened_vllm
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.files import sha256_table
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint
from policyalign_assets.report.plots import training_plot
from policyalign_assets.settings import DistillationSettings
from policyalign_assets.stages.facts import Facts, image, markdown_table, path
from policyalign_assets.stages.fingerprints import own_version
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.stages.parents import (
    NoParent,
    Parent,
    keep_requests,
    no_lineage,
    parent_of_partition,
    started_from,
)
from policyalign_assets.stages.unfinished import claim, work_folder
from policyalign_assets.stages.warm_started import WarmStarted, go_on_from


def make(
    context: StageContext, policy_document: PolicyDocument, filtered_instructions: pa.Table
) -> StageResult:
    """Trains in this process. For several processes, `runtime.execution` starts `train` in each."""
    made = train(context, policy_document, filtered_instructions)
    assert made is not None  # this process is the main one
    return made


def train(
    context: StageContext,
    policy_document: PolicyDocument,
    filtered_instructions: pa.Table,
    processes: Processes = SINGLE_PROCESS,
) -> StageResult | None:
    """One training run for each seed, one after the other (`distillation.seeds`).

    This process may be one of several. Only the main one gets a result.
    """
    wanted = context.settings.distillation
    chosen = filtered_instructions.filter(filtered_instructions["selected"])
    rules = len(set(chosen["rule_id"].to_pylist()))
    context.report(_steps_line(wanted, rules))
    runs = []
    for i in range(wanted.seeds):
        seed = wanted.seed + i
        if wanted.seeds > 1:
            context.report(f"training run {i + 1} of {wanted.seeds}, seed {seed}")
        settings = wanted.model_copy(update={"steps": wanted.planned_steps(rules), "seed": seed})
        runs.append(_one_run(context, policy_document, chosen, settings, processes))
    finished = [run for run in runs if run is not None]
    if not finished:
        return None
    checkpoint, training = finished[0]
    last = training.to_pylist()[-1]
    ended = sum(training["eos_rate"].to_pylist()) / training.num_rows
    if ended == 0:
        context.report(
            "warning: no answer of the student ended by itself in the whole training. Fix: raise "
            f"distillation.max_new_tokens (now {wanted.max_new_tokens}), and ask `policyalign "
            "doctor` whether generation ends at the chat template's end of turn."
        )
    facts: Facts = {
        "answers that ended by themselves": ended,
        "checkpoint": path(context.data / checkpoint.path),
        "started from": started_from(checkpoint),
        "tuning": checkpoint.tuning,
        "instructions": chosen.num_rows,
        "everyday requests": len(anchors(wanted, context.settings.model.id)),
        "rules": rules,
        "steps": training.num_rows,
        "final loss": last["loss"],
        "top-k mass Q": last["top_k_mass"],
        "mean length": last["mean_length"],
        "training seconds": sum(sum(log["seconds"].to_pylist()) for _, log in finished),
        "training curves": image(training_plot(training.to_pydict()), "training curves"),
    }
    if wanted.seeds > 1:
        checkpoint = replace(checkpoint, repeats=tuple(made for made, _ in finished[1:]))
        facts["training runs"] = markdown_table(
            ("seed", "checkpoint", "final loss"),
            [(made.seed, made.checkpoint_id, log["loss"][-1].as_py()) for made, log in finished],
        )
    version = "+".join(made.checkpoint_id for made, _ in finished)
    return StageResult(checkpoint, version, facts)


def _one_run(
    context: StageContext,
    policy: PolicyDocument,
    chosen: pa.Table,
    distillation: DistillationSettings,
    processes: Processes,
) -> tuple[Checkpoint, pa.Table] | None:
    """The published checkpoint with the TRAINING table; None where this is not the main process."""
    settings = context.settings
    loaded = load_model(
        settings.model.model_copy(update={"device": "cpu"}) if processes.sharded else settings.model
    )
    extra = anchors(distillation, settings.model.id)
    provenance: dict[str, Any] = {
        "policy_id": policy.policy_id,
        "domain": policy.domain,
        "policy_hash": policy.content_hash,
        "instructions": sha256_table(chosen),
        "everyday_requests": hashlib.sha256("\n".join(i.text for i in extra).encode()).hexdigest(),
        "model_id": loaded.model_id,
        "model_revision": loaded.revision,
        "dtype": settings.model.dtype,
        "engine": settings.model.engine,
        # Of one run: neither the processes nor the number of runs changes what it makes.
        "settings": distillation.model_dump(exclude={"processes", "accelerate_config", "seeds"}),
    }
    parent, why = _parent(context, policy, provenance)
    version = own_version("distilled_checkpoint", settings)  # new code does not go on with old work
    # Runs that differ by their seed are parts of one work, kept or removed together.
    of_all_runs = distillation.model_dump(
        exclude={"processes", "accelerate_config", "seed", "seeds"}
    )
    work = work_folder(
        context.data,
        "distilled_checkpoint",
        {
            **provenance,
            "settings": of_all_runs,
            "version": version,
            "parent": parent.checkpoint.checkpoint_id if parent else None,
        },
    )
    if processes.main:
        claim(work, policy)
    requests = requests_of(policy, chosen)
    if parent:
        try:
            made, requests_then = _go_on(
                context, policy, parent, chosen, extra, loaded, distillation, work / "warm"
            )
            provenance |= {
                "lineage": made.lineage,
                "training_requests": sha256_table(requests_then),
            }
            checkpoint = publish(made.model, loaded, made.training, context.data, provenance)
            keep_requests(context.data, checkpoint, requests_then)
            return checkpoint, made.training
        except NoParent as reason:
            why = str(reason)
            context.report(f"{why}: training starts from the base model")
            loaded = load_model(settings.model)
    provenance |= {"lineage": no_lineage(why), "training_requests": sha256_table(requests)}
    vllm = settings.model.engine != "transformers"
    with (
        opened_vllm(settings.model, distillation.lora_rank, beside_a_model=True)
        if vllm
        else nullcontext() as engine
    ):
        model, training = distill(
            [policy.prompt_text],
            training_mix(chosen) + extra,
            loaded,
            distillation,
            work / f"seed-{distillation.seed}",
            settings.model.batch_tokens,
            context.report,
            processes,
            engine,
        )
    if not processes.main:
        return None
    checkpoint = publish(model, loaded, training, context.data, provenance)
    keep_requests(context.data, checkpoint, requests)
    return checkpoint, training


def _parent(
    context: StageContext, policy: PolicyDocument, provenance: dict[str, Any]
) -> tuple[Parent | None, str]:
    """The checkpoint to go on from, or why there is none."""
    try:
        return parent_of_partition(context, policy, provenance), ""
    except NoParent as reason:
        if context.settings.warm_start.enabled:
            context.report(f"no warm start: {reason}")
        return None, str(reason)


def _go_on(
    context: StageContext,
    policy: PolicyDocument,
    parent: Parent,
    chosen: pa.Table,
    extra: list[Instruction],
    loaded: LoadedModel,
    distillation: DistillationSettings,
    work: Path,
) -> tuple[WarmStarted, pa.Table]:
    """The model that went on from its parent, and the REQUESTS that it was trained on."""
    requests = requests_of(policy, chosen)
    edit = edit_between(parent.requests, requests)
    former = [
        Instruction(row["text"], f"{row['rule_id']}/{FORMER}") for row in edit.former.to_pylist()
    ]
    rows = [*training_mix(chosen), *former]
    texts = [policy.prompt_text]
    made = go_on_from(parent, edit, rows, extra, texts, loaded, distillation, work, context)
    return made, pa.concat_tables([requests, edit.former])


def _steps_line(settings: DistillationSettings, rules: int) -> str:
    """What the run's log says about the number of steps."""
    steps, enough = settings.planned_steps(rules), settings.steps_for_rules
    if steps == settings.steps:
        return f"{steps} training steps (distillation.steps) for {rules} of up to {enough} rules"
    return (
        f"{steps} training steps for {rules} rules: distillation.steps={settings.steps} is for up "
        f"to {enough} rules (distillation.steps_for_rules), and steps grow in proportion"
    )
