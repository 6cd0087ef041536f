"""One adapter, or one model, that follows several policies of a domain at once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext

import pyarrow as pa

from policyalign_assets.distillation.anchors import anchors
from policyalign_assets.distillation.batches import Instruction, training_mix
from policyalign_assets.distillation.checkpoint import publish
from policyalign_assets.distillation.routing import Declines, Rerouted, routed
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.generation.opening import opened_vllm
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.files import sha256_table
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.judges.verdict import Dialogue
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.policy.conflicts import rule_conflicts
from policyalign_assets.report.plots import training_plot
from policyalign_assets.settings import Settings
from policyalign_assets.stages.facts import Facts, image, markdown_table, path
from policyalign_assets.stages.fingerprints import own_version
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.stages.unfinished import work_folder

CODE_VERSION = 1  # raise it when new code trains otherwise, or keeps its record elsewhere


class NotDeployable(ValueError):
    """Policies that cannot be trained together, or settings with which they cannot."""


def make(
    context: StageContext,
    policy_document: dict[str, PolicyDocument],
    filtered_instructions: dict[str, pa.Table],
) -> StageResult:
    """Raises NotDeployable before any model is loaded.

    Inputs are by partition, in the order of the deployment's policies.
    """
    settings, policies = context.settings, list(policy_document.values())
    _refuse(settings)
    chosen = {key: t.filter(t["selected"]) for key, t in filtered_instructions.items()}
    rules = sum(len(t["rule_id"].unique()) for t in chosen.values())
    seeded = settings.distillation
    distillation = seeded.model_copy(update={"steps": seeded.planned_steps(rules), "seeds": 1})
    context.report(
        f"{distillation.steps} training steps for {rules} rules of {len(policies)} policies"
    )
    loaded = load_model(settings.model)
    rows, rerouted, unread = _mix(policies, list(chosen.values()), loaded, settings)
    context.report(
        f"{len(rerouted)} benign requests are declined by another policy's teacher; "
        f"{unread} of its answers could not be read"
    )
    everyday = anchors(distillation, settings.model.id)
    spread = [Instruction(row.text, row.group, i % len(policies)) for i, row in enumerate(everyday)]
    texts = [policy.prompt_text for policy in policies]
    if settings.deployment.teacher == "union":
        texts = ["\n\n".join(texts)]
        rows = [Instruction(r.text, r.group) for r in rows]
        spread = everyday
    conflicts = [conflict.sentence for conflict in rule_conflicts(policies)]
    moved = _counts(rerouted, policies)
    provenance = {
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
        "rerouted": moved,
        "unread": unread,
        "everyday_requests": hashlib.sha256(
            "\n".join(i.text for i in everyday).encode()
        ).hexdigest(),
        "model_id": loaded.model_id,
        "model_revision": loaded.revision,
        "dtype": settings.model.dtype,
        "engine": settings.model.engine,
        "settings": distillation.model_dump(exclude={"processes", "accelerate_config", "seeds"}),
    }
    version = own_version("deployed_checkpoint", settings)
    work = work_folder(context.data, "deployed_checkpoint", {**provenance, "version": version})
    with (
        opened_vllm(settings.model, distillation.lora_rank, beside_a_model=True)
        if settings.model.engine == "vllm"
        else nullcontext() as engine
    ):
        model, training = distill(
            texts,
            [*rows, *spread],
            loaded,
            distillation,
            work,
            settings.model.batch_tokens,
            context.report,
            vllm=engine,
        )
    checkpoint = publish(model, loaded, training, context.data, provenance)
    facts: Facts = {
        "checkpoint": path(context.data / checkpoint.path),
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
        if rerouted
        else "none",
        "other teachers' answers that could not be read": unread,
        "steps": training.num_rows,
        "final loss": training["loss"][-1].as_py(),
        "training seconds": sum(training["seconds"].to_pylist()),
        "training curves": image(training_plot(training.to_pydict()), "training curves"),
    }
    return StageResult(checkpoint, checkpoint.checkpoint_id, facts)


def _refuse(settings: Settings) -> None:
    if settings.distillation.processes > 1:
        raise NotDeployable(
            f"distillation.processes={settings.distillation.processes}: a deployment trains on "
            "one process. Fix: set distillation.processes=1 for it."
        )


def _mix(
    policies: Sequence[PolicyDocument],
    chosen: Sequence[pa.Table],
    loaded: LoadedModel,
    settings: Settings,
) -> tuple[list[Instruction], list[Rerouted], int]:
    rows = [
        row
        for i, (policy, table) in enumerate(zip(policies, chosen, strict=True))
        for row in training_mix(table, i, f"{policy.policy_id}/")
    ]
    return routed(rows, len(policies), _declines(policies, loaded, settings))


def _declines(
    policies: Sequence[PolicyDocument], loaded: LoadedModel, settings: Settings
) -> Declines:
    engine = TransformersEngine(loaded, settings.model.batch_tokens)
    judge = judge_for(settings.model.id)
    sampling = Sampling(settings.deployment.answer_tokens)

    def declines(policy: int, texts: Sequence[str]) -> list[bool | None]:
        if not texts:
            return []
        prompt = policies[policy].prompt_text
        answers = engine.generate([chat(text, prompt) for text in texts], sampling)
        verdicts = judge.judge_all(
            [Dialogue(text, a.text) for text, a in zip(texts, answers, strict=True)]
        )
        return [verdict.refused for verdict in verdicts]

    return declines


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
