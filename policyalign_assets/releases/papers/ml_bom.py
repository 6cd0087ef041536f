"""The bill of materials of a model (ML-BOM), in CycloneDX, validated against its schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.papers.facts import Facts, PolicyFacts, outcome


def ml_bom(facts: Facts) -> str:
    """CycloneDX 1.6 as JSON. Raises ReleaseError without the library, or if it is not valid."""
    try:
        from cyclonedx.model import HashAlgorithm, HashType, Property
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
    except ImportError as error:
        raise ReleaseError(
            f"The ML-BOM needs the extra `papers` ({error}). "
            "Fix: pip install 'policyalign-assets[papers]'."
        ) from None
    record = facts.record

    def digest(value: str) -> HashType:
        return HashType(alg=HashAlgorithm.SHA_256, content=value)

    model = Component(
        name=record.target,
        version=facts.version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        description=f"{record.base.model_id} aligned with the policy {facts.title}",
        properties=[
            Property(name=f"policyalign:{name}", value=value)
            for name, value in (
                ("bundle", facts.bundle_id),
                ("checkpoint", record.checkpoint_id),
                ("code", record.code_version),
                *((f"policy{_of(one)}", one.record.policy_hash) for one in facts.policies),
                ("tuning", record.tuning),
            )
        ],
    )
    base = Component(
        name=record.base.model_id,
        version=record.base.revision,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="base",
        hashes=[digest(record.base.sha256)] if record.base.sha256 else [],
        description="The base model, below the adapter",
    )
    weights = [
        Component(
            name=name, type=ComponentType.FILE, bom_ref=f"weights/{name}", hashes=[digest(value)]
        )
        for name, value in sorted(facts.weights.items())
    ]
    data = [
        Component(
            name=name,
            type=ComponentType.DATA,
            bom_ref=f"data/{name}",
            description=about,
            hashes=[digest(value)] if len(value) == 64 else [],
        )
        for name, about, value in _data(facts)
    ]
    bom = Bom(components=[base, *weights, *data], serial_number=UUID(facts.id("ml-bom")))
    bom.metadata.component = model
    bom.metadata.timestamp = facts.time
    bom.register_dependency(model, [base, *weights, *data])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"]["component"]["modelCard"] = _model_card(facts)  # the library has no class
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ReleaseError(f"The ML-BOM is not valid CycloneDX: {fault}")
    return text


def _data(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Name, description and digest of what the model was made from and measured on."""
    for one in facts.policies:
        of = _of(one)
        yield f"policy{of}", "The policy's rules as typed data", one.record.policy_hash
        about = "The cases of the evaluation, with answers and verdicts"
        yield f"cases{of}", about, one.record.cases_sha256
        if "instructions" in one.made_from:
            about = "Instructions that were synthesized from the policy and trained on"
            yield f"instructions{of}", about, str(one.made_from["instructions"])
    if "everyday_requests" in facts.provenance:
        about = "Everyday requests that were trained on"
        yield "everyday_requests", about, str(facts.provenance["everyday_requests"])


def _of(one: PolicyFacts) -> str:
    return f":{one.record.policy_id}" if one.prefix else ""


def _model_card(facts: Facts) -> dict[str, Any]:
    metrics = [{"type": name, "value": f"{value}"} for name, value in facts.measurements]
    considerations: dict[str, Any] = {
        "useCases": facts.intended_use,
        "technicalLimitations": facts.limits,
        "ethicalConsiderations": [
            {"name": f"release gate {gate}", "mitigationStrategy": outcome(predicate)}
            for gate, _, predicate in facts.gates
        ],
    }
    return {
        "modelParameters": {
            "approach": {"type": "self-supervised"},
            "task": "text generation",
            "datasets": [{"ref": f"data/{name}"} for name, _, _ in _data(facts)],
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": considerations,
    }
