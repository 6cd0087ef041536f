"""The versions of policies and settings, and what has changed since they were last observed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from policyalign_assets.orchestration.latest import latest_observations
from policyalign_assets.orchestration.metadata import RECIPE
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import Settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.reasons import changes
from policyalign_assets.stages.registry import STAGES

POLICY_FILES = dg.AssetKey("policy_files")  # by partition of the pipeline
SETTINGS = dg.AssetKey("deployed_settings")  # by stage
RULES = "rules"  # metadata of an observation: {rule: hash}
WHAT_CHANGED = "what changed"
DATA_VERSION = "dagster/data_version"  # the tag from which Dagster reads it
FIRST = "observed for the first time"


def new_observations(
    instance: dg.DagsterInstance, documents: Mapping[str, PolicyDocument], settings: Settings
) -> list[dg.AssetObservation]:
    """One observation for each policy's partition and each stage whose version has changed."""
    found = []
    seen = _latest(instance, POLICY_FILES)
    for partition, policy in documents.items():
        version = policy.content_hash[:40]
        if partition not in seen or seen[partition][0] != version:
            facts = {RULES: {rule.rule_id: rule.content_hash[:12] for rule in policy.rules}}
            before = seen[partition][1].get(RULES) if partition in seen else None
            why = _rules_changed(before, facts[RULES])
            found.append(_observation(POLICY_FILES, partition, version, why, facts))
    seen = _latest(instance, SETTINGS)
    for stage in (name for name, spec in STAGES.items() if spec.settings):
        version = fingerprints.own_version(stage, settings)
        if stage not in seen or seen[stage][0] != version:
            recipe = fingerprints.recipe(stage, settings)
            before = seen[stage][1].get(RECIPE) if stage in seen else None
            why = changes(stage, before, recipe) if before else FIRST
            found.append(_observation(SETTINGS, stage, version, why, {RECIPE: recipe}))
    return found


def _observation(
    key: dg.AssetKey, partition: str, version: str, why: str, facts: Mapping[str, Any]
) -> dg.AssetObservation:
    metadata = {name: dg.MetadataValue.json(fact) for name, fact in facts.items()}
    return dg.AssetObservation(
        key,
        description=why,
        partition=partition,
        metadata={WHAT_CHANGED: why, **metadata},
        tags={DATA_VERSION: version},
    )


def _rules_changed(before: Mapping[str, str] | None, now: Mapping[str, str]) -> str:
    """In words, which rules differ. `before` is None where the policy was never observed."""
    if before is None:
        return FIRST
    kinds = {
        "added": [rule for rule in now if rule not in before],
        "removed": [rule for rule in before if rule not in now],
        "edited": [rule for rule in now if rule in before and now[rule] != before[rule]],
    }
    said = [f"{kind}: {', '.join(rules)}" for kind, rules in kinds.items() if rules]
    return "rules " + "; ".join(said) if said else "the text around the rules changed"


def _latest(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> dict[str, tuple[str | None, dict[str, Any]]]:
    """{partition: (data version, metadata)} of the latest observations."""
    found = {}
    for record in latest_observations(instance, key):
        if record.partition_key and (event := record.asset_observation):
            facts = {
                name: value.value
                for name, value in event.metadata.items()
                if isinstance(value, dg.JsonMetadataValue)
            }
            found[record.partition_key] = ((event.tags or {}).get(DATA_VERSION), facts)
    return found
