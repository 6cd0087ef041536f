"""One adapter, or one model, that follows several policies of a domain at once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow as pa

from policyalign_assets.distillation.anchors import anchors
from policyalign_assets.distillation.batches import Instruction, training_mix
from policyalign_assets.distillation.checkpoint import publish
from policyalign_assets.distillation.processes import SINGLE_PROCESS, Processes
from policyalign_assets.distillation.routing import Declines, Rerouted, routed
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.distillation.tuning import Model
from policyalign_assets.distillation.warm_start import FORMER, Edit, edit_between, requests_of
from policyalign_assets.engine.generation.opening import opened_servers, opened_vllm
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.files import sha256_table
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.policy.conflicts import rule_conflicts
from policyalign_assets.report.plots import training_plot
from policyalign_assets.settings import DistillationSettings, Settings
from policyalign_assets.stages.facts import Facts, image, markdown_table, path
from policyalign_assets.stages.fingerprints import own_version
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.stages.parents import (
    NoParent,
    Parent,
    keep_requests,
    no_lineage,
    parent_of_deployment,
    started_from,
)
from policyalign_assets.stages.teachers import declines_of
from policyalign_assets.stages.unfinished import claim, work_folder
from policyalign_assets.stages.warm_started import WarmStarted, go_on_from

EXAMPLES = 3  # requests shown of one rule on which two teachers disagree

CODE_VERSION = 1  # raise it when new code trains otherwise, or keeps its record elsewhere


class NotDeployable(ValueError):
    """Policies that cannot be trained together, or settings with which they cannot."""


def make(
    context: StageContext,
    policy_document: dict[str, PolicyDocument],
    filtered_instructions: dict[str, pa.Table],
) -> StageResult:
    """Trains in this process. For several processes, `runtime.execution` starts `train` in each.

    Inputs are by partition, in the order of the deployment's policies.
    """
    made = train(context, policy_document, filtered_instructions)
    assert made is not None  # this process is the main one
    return made


def train(
    context: StageContext,
    policy_document: dict[str, PolicyDocument],
    filtered_instructions: dict[str, pa.Table],
    processes: Processes = SINGLE_PROCESS,
) -> StageResult | None:
    """This process may be one of several. Only the main one gets a result.

    Raises NotDeployable before any model is loaded.
    """
    settings, policies = context.settings, list(policy_document.values())
    _refuse(settings, processes)
    chosen = {key: t.filter(t["selected"]) for key, t in filtered_instructions.items()}
    rules = sum(len(t["rule_id"].unique()) for t in chosen.values())
    seeded = settings.distillation
    distillation = seeded.model_copy(update={"steps": seeded.planned_steps(rules), "seeds": 1})
    context.report(
        f"{distillation.steps} training steps for {rules} rules of {len(policies)} policies"
    )
    loaded = load_model(
        settings.model.model_copy(update={"device": "cpu"}) if processes.sharded else settings.model
    )
    everyday = anchors(distillation, settings.model.id)
    conflicts = [conflict.sentence for conflict in rule_conflicts(policies)]
    provenance: dict[str, Any] = {
        "deployment": context.deployment,
        "policies": {
            key: {
                "policy_id": policy.policy_id,
                "domain": policy.domain,
                "policy_hash": policy.content_hash,
                "instructions": sha256_table(chosen[key]),
            }
            for key, policy in policy_document.items()
        },
        "teacher": settings.deployment.teacher,
        "conflicts": conflicts,
        "everyday_requests": hashlib.sha256(
            "\n".join(i.text for i in everyday).encode()
        ).hexdigest(),
        "model_id": loaded.model_id,
        "model_revision": loaded.revision,
        "dtype": settings.model.dtype,
        "engine": settings.model.engine,
        "settings": distillation.model_dump(exclude={"processes", "accelerate_config", "seeds"}),
    }
    requests = pa.concat_tables(
        [requests_of(p, t) for p, t in zip(policies, chosen.values(), strict=True)]
    )
    edit, parent, why = _edit(context, provenance, requests)
    # The teachers' answers are sampled once, so that all processes train on the same rows.
    mix = processes.from_main(
        _mix(policies, list(chosen.values()), edit.former, loaded, settings)
        if processes.main
        else None
    )
    assert mix is not None
    context.report(
        f"{len(mix.rerouted)} benign requests are declined by another policy's teacher; "
        f"{mix.unread} of its answers could not be read"
    )
    moved = _counts(mix.rerouted, policies)
    provenance |= {
        "rerouted": moved,
        "teacher conflicts": _teacher_conflicts(mix.rerouted, policies),
        "unread": mix.unread,
    }
    version = own_version("deployed_checkpoint", settings)
    parent_id = parent.checkpoint.checkpoint_id if parent else None
    work = work_folder(
        context.data,
        "deployed_checkpoint",
        {**provenance, "version": version, "parent": parent_id},
    )
    if processes.main:
        claim(work, str(context.deployment))
    spread = [
        Instruction(row.text, row.group, 0 if settings.deployment.teacher == "union" else i)
        for row, i in zip(everyday, cycle(range(len(policies))))
    ]
    texts, rows = mix.texts, mix.rows
    made: WarmStarted | None = None
    if parent:
        try:
            made = go_on_from(
                parent, edit, rows, spread, texts, loaded, distillation, work / "warm", context
            )
            requests = pa.concat_tables([requests, edit.former])
        except NoParent as reason:
            why = str(reason)
            context.report(f"{why}: training starts from the base model")
            loaded = load_model(settings.model)
    if made is None:
        model, training = _from_base(
            context, texts, [*rows[: len(requests)], *spread], loaded, distillation, work, processes
        )
        if not processes.main:
            return None
        provenance["lineage"] = no_lineage(why)
    else:
        model, training = made.model, made.training
        provenance["lineage"] = made.lineage
    provenance["training_requests"] = sha256_table(requests)
    checkpoint = publish(model, loaded, training, context.data, provenance)
    keep_requests(context.data, checkpoint, requests)
    facts: Facts = {
        "checkpoint": path(context.data / checkpoint.path),
        "started from": started_from(checkpoint),
        "policies": markdown_table(
            ("policy", "rules", "instructions"),
            [
                (p.policy_id, len(t["rule_id"].unique()), t.num_rows)
                for p, t in zip(policies, chosen.values(), strict=True)
            ],
        ),
        "conflicts between rules": markdown_table(("conflict",), [(c,) for c in conflicts])
        if conflicts
        else "none found in the rules' words",
        "benign requests that another policy declines": markdown_table(
            ("policy", "rule and kind", "declined by", "requests"),
            [tuple(row.values()) for row in moved],
        )
        if moved
        else "none",
        "other teachers' answers that could not be read": mix.unread,
        "steps": training.num_rows,
        "final loss": training["loss"][-1].as_py(),
        "training seconds": sum(training["seconds"].to_pylist()),
        "training curves": image(training_plot(training.to_pydict()), "training curves"),
    }
    return StageResult(checkpoint, checkpoint.checkpoint_id, facts)


def _refuse(settings: Settings, processes: Processes) -> None:
    if processes.sharded and settings.model.engine != "vllm-server":
        raise NotDeployable(
            "the teachers of a deployment answer before the training, and with FSDP2 no process "
            f"holds the whole model on its device, but model.engine={settings.model.engine!r}. "
            "Fix: set model.engine='vllm-server', so that servers answer, or train with DDP."
        )


@dataclass(frozen=True)
class _Mix:
    """`rows`: those of the present rules, then those of former ones. `texts`: a prompt a teacher.

    `rerouted` and `unread` are about present rules alone.
    """

    rows: list[Instruction]
    texts: list[str]
    rerouted: list[Rerouted]
    unread: int


def _edit(
    context: StageContext, provenance: dict[str, Any], requests: pa.Table
) -> tuple[Edit, Parent | None, str]:
    """What was edited since the parent, the parent, and why there is none."""
    try:
        parent = parent_of_deployment(context, provenance)
        return edit_between(parent.requests, requests), parent, ""
    except NoParent as reason:
        if context.settings.warm_start.enabled:
            context.report(f"no warm start: {reason}")
        return edit_between(requests, requests), None, str(reason)


def _mix(
    policies: Sequence[PolicyDocument],
    chosen: Sequence[pa.Table],
    former: pa.Table,
    loaded: LoadedModel,
    settings: Settings,
) -> _Mix:
    rows = [
        row
        for i, (policy, table) in enumerate(zip(policies, chosen, strict=True))
        for row in training_mix(table, i, f"{policy.policy_id}/")
    ]
    asked = settings.model.engine == "vllm-server"
    with opened_servers(settings.model) if asked else nullcontext() as servers:
        engine = servers or TransformersEngine(loaded, settings.model.batch_tokens)
        return _routed(policies, rows, former, declines_of(policies, engine, settings), settings)


def _routed(
    policies: Sequence[PolicyDocument],
    rows: Sequence[Instruction],
    former: pa.Table,
    declines: Declines,
    settings: Settings,
) -> _Mix:
    present, rerouted, unread = routed(rows, len(policies), declines)
    places = {policy.policy_id: i for i, policy in enumerate(policies)}
    earlier, _, _ = routed(
        [
            Instruction(
                row["text"],
                f"{row['policy_id']}/{row['rule_id']}/{FORMER}",
                places.get(row["policy_id"], 0),
            )
            for row in former.to_pylist()
        ],
        len(policies),
        declines,
    )
    texts, rows = [policy.prompt_text for policy in policies], [*present, *earlier]
    if settings.deployment.teacher == "union":
        texts, rows = ["\n\n".join(texts)], [Instruction(r.text, r.group) for r in rows]
    return _Mix(rows, texts, rerouted, unread)


def _from_base(
    context: StageContext,
    texts: Sequence[str],
    rows: Sequence[Instruction],
    loaded: LoadedModel,
    distillation: DistillationSettings,
    work: Path,
    processes: Processes,
) -> tuple[Model, pa.Table]:
    settings = context.settings.model
    with (
        opened_vllm(settings, distillation.lora_rank, beside_a_model=True)
        if settings.engine != "transformers"
        else nullcontext() as engine
    ):
        return distill(
            texts,
            rows,
            loaded,
            distillation,
            work / "base",
            settings.batch_tokens,
            context.report,
            processes,
            engine,
        )


def _counts(
    rerouted: Sequence[Rerouted], policies: Sequence[PolicyDocument]
) -> list[dict[str, str | int]]:
    counts = Counter(
        (policies[r.own].policy_id, r.group, policies[r.other].policy_id) for r in rerouted
    )
    return [
        {"policy": own, "group": group.partition("/")[2], "declined by": other, "requests": n}
        for (own, group, other), n in sorted(counts.items())
    ]


def _teacher_conflicts(
    rerouted: Sequence[Rerouted], policies: Sequence[PolicyDocument]
) -> list[dict[str, str]]:
    """Requests that one policy permits and the teacher of another declines, a few of each rule.

    Only permitted requests are shown, so none of them breaks the policy that it was written for.
    """
    shown: Counter[tuple[str, str]] = Counter()
    found = []
    for row in rerouted:
        rule = row.group.split("/")[1]
        key = (f"{policies[row.own].policy_id} {rule}", policies[row.other].policy_id)
        shown[key] += 1
        if shown[key] <= EXAMPLES:
            found.append({"answered under": key[0], "declined by": key[1], "request": row.text})
    return found
