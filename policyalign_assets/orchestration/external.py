"""What the pipeline reads and does not make: base model, public benchmarks, judge. They stand in
the graph for the eye.

Dagster neither makes nor watches them. What they are goes into the fingerprints of the stages that
read them, so another model, a changed benchmark file or another judge redoes those stages and what
follows.
"""

import dagster as dg

from policyalign_assets.evaluation.benchmarks import manifest
from policyalign_assets.judges.choose import templates
from policyalign_assets.orchestration.assets import DEPLOYED
from policyalign_assets.settings import BUNDLED, Settings
from policyalign_assets.stages import shaping
from policyalign_assets.stages.facts import markdown_table


def _base_model(settings: Settings) -> dg.AssetSpec:
    model = settings.model
    return dg.AssetSpec(
        "base_model",
        group_name="external",
        kinds={"huggingface", "safetensors"},
        description="The model to align, as it comes (`model.id`). It writes the requests, and "
        "it is its own teacher: the same model with the "
        "policy in its prompt.",
        metadata={
            "id": model.id,
            "revision": shaping.model_revision(model),
            "dtype": model.dtype,
            "what it is": "a small test bed that ships with the project"
            if model.id == BUNDLED
            else "see its own card",
        },
    )


def _public_benchmarks(settings: Settings) -> dg.AssetSpec:
    rows = [
        (b.title, ", ".join(b.domains), b.licence, b.gate or "none", b.metric) for b in manifest()
    ]
    return dg.AssetSpec(
        "public_benchmarks",
        group_name="external",
        kinds={"yaml"},
        description="Published test sets (evaluation/benchmarks.yaml), read from "
        "`evaluation.benchmarks_dir`. What is not there is reported as "
        "not run, with the reason. Nothing of them reaches training.",
        metadata={
            "version": shaping.benchmarks_version(settings.evaluation),
            "benchmarks": len(rows),
            "folder is set": settings.evaluation.benchmarks_dir is not None,
            "manifest": dg.MetadataValue.md(
                markdown_table(("benchmark", "domains", "licence", "gate", "counted"), rows)[
                    "raw_value"
                ]
            ),
        },
    )


def _judge(settings: Settings) -> dg.AssetSpec:
    judge = settings.judge
    return dg.AssetSpec(
        "judge",
        group_name="external",
        kinds={"rules": {"python"}}.get(
            judge.kind, {"huggingface"} if judge.engine == "local" else {"openai"}
        ),
        description="Who says whether an answer is a refusal, safe and right (`judge.kind`): "
        "phrases, or a judge model at an OpenAI-compatible endpoint or in the process of the "
        "stage (`judge.engine`). Calibrate it on labelled cases before you trust it: "
        "docs/evaluation.md.",
        metadata={
            "kind": judge.kind,
            "model": judge.model or "none: phrase rules",
            "revision": judge.revision or "not stated",
            "prompt templates": templates(judge) or "none",
        },
    )


external_assets = [_base_model(DEPLOYED), _public_benchmarks(DEPLOYED), _judge(DEPLOYED)]
