"""What each stage's data depends on, as one hash: the policy's text, settings, model, texts, code.

A stage's fingerprint covers those of the stages it reads. So a changed learning rate changes that
of `distilled_checkpoint` and of what follows, and a changed judge those of `judgements` and
`benchmark_report`, unless `sensitivity_scores` asks it too (`sensitivity.judge`). The same
recursion gives two answers: what a stage *should* be (`desired`, from the current policy files and
settings) and what its data *is* (`consumed`, from the fingerprints that the data it read carries).
So an edit during a run shows as a difference afterwards and is never lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

from policyalign_assets.settings import Settings
from policyalign_assets.stages.registry import DEPLOYMENT_STAGES, EVERY_STAGE, STAGES
from policyalign_assets.stages.sources import code_version, content_of, digest

TAG = "policyalign/fingerprint"
PARENT_TAG = "policyalign/parent"  # of a checkpoint that went on from another one: its id
CHECKPOINTS = ("distilled_checkpoint", "deployed_checkpoint")
Recipe = dict[str, dict[str, object]]


def _hash(value: object) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:40]


def recipe(stage: str, settings: Settings) -> Recipe:
    """What decides a stage's data beside its inputs, part by part, so that a change can be named.

    `code`: versions. `settings`: the values that shape data. `shaped by`: hashes of texts, files,
    weights and library versions.
    """
    spec = EVERY_STAGE[stage]
    return {
        "code": {label: code_version(module) for label, module in spec.code.items()},
        "settings": settings_read(stage, settings),
        "shaped by": {
            label: digest(content_of(source, settings)) for label, source in spec.shaped_by.items()
        },
    }


def settings_read(stage: str, settings: Settings) -> dict[str, object]:
    """The values that shape a stage's data, by section."""
    return {name: getattr(settings, name).shaping() for name in EVERY_STAGE[stage].settings}


def own_version(stage: str, settings: Settings) -> str:
    """Hash of a stage's recipe: Dagster's `code_version`, by which its UI shows a change."""
    return _hash(recipe(stage, settings))[:12]


def own_versions(settings: Settings) -> dict[str, str]:
    """`own_version` of every stage: the part of a look at all partitions that they share."""
    return {stage: own_version(stage, settings) for stage in EVERY_STAGE}


def consumed(
    stage: str,
    settings: Settings,
    upstream: Mapping[str, str],
    versions: Mapping[str, str] | None = None,
) -> str:
    """Fingerprint of what `stage` makes from data with the fingerprints `upstream`, by stage.

    `versions` are those of `own_versions`, where they are known already.
    """
    reads = (*EVERY_STAGE[stage].members, *EVERY_STAGE[stage].upstream)
    if missing := set(reads) - set(upstream):
        raise ValueError(f"{stage} reads {sorted(missing)}, whose fingerprints are missing")
    own = versions[stage] if versions else own_version(stage, settings)
    return _hash([stage, own, [upstream[u] for u in reads]])


def descended(fingerprint: str, parent: str | None) -> str:
    """Of a checkpoint that went on from `parent`: the same inputs make another one than from base.

    fingerprint: what `consumed` says of the stage. None stands for the base model.
    """
    return _hash(["descended", fingerprint, parent]) if parent else fingerprint


def of_policy(content_hash: str) -> str:
    """Fingerprint of `policy_document`, which reads no settings."""
    versions = {k: code_version(module) for k, module in STAGES["policy_document"].code.items()}
    return _hash(["policy_document", versions, content_hash])


def desired(
    policy_hash: str,
    settings: Settings,
    versions: Mapping[str, str] | None = None,
    parent: str | None = None,
) -> dict[str, str]:
    """The fingerprint that each stage should have, in the order of the chain.

    parent: the checkpoint that the present one went on from. A checkpoint stays as wanted when a
    newer release could be its parent, so it must be told from what the checkpoint itself says.
    """
    versions = versions or own_versions(settings)
    wanted = {"policy_document": of_policy(policy_hash)}
    for stage in STAGES:
        if stage not in wanted:
            made = consumed(stage, settings, wanted, versions)
            wanted[stage] = descended(made, parent) if stage in CHECKPOINTS else made
    return wanted


def of_members(stage: str, by_partition: Mapping[str, str]) -> str:
    """One fingerprint for the data that a deployment reads of `stage`, in the policies' order."""
    return _hash(["members", stage, list(by_partition.items())])


def desired_of_deployment(
    members: Mapping[str, Mapping[str, str]],
    settings: Settings,
    versions: Mapping[str, str] | None = None,
    parent: str | None = None,
) -> dict[str, str]:
    """The fingerprint that each stage of a deployment should have; `parent` as in `desired`.

    `members` holds what `desired` returns for each of its partitions, in the policies' order.
    """
    versions = versions or own_versions(settings)
    wanted: dict[str, str] = {}
    for name, stage in DEPLOYMENT_STAGES.items():
        read = {
            m: of_members(m, {key: stages[m] for key, stages in members.items()})
            for m in stage.members
        }
        made = consumed(name, settings, read | wanted, versions)
        wanted[name] = descended(made, parent) if name in CHECKPOINTS else made
    return wanted
