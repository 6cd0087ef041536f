"""The stages of the pipeline, each described once: everything else about a stage is derived from
here.

To add a stage, add an entry to `STAGES` and a module `stages/<name>.py` with a function `make` that
takes a `StageContext` and the data of the upstream stages, by name, and returns a `StageResult`.
The Dagster asset, its place in the re-alignment job, the files that carry its data and its
fingerprint follow from the entry. This module is imported when Dagster loads the definitions, so
it imports no model library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from policyalign_assets import tables
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.records import Checkpoint, ReportRecord


@dataclass(frozen=True)
class Stage:
    """One stage of the chain.

    `settings`, `code` and `shaped_by`, with the data of `upstream`, are everything that decides
    what the stage makes; a change of any of them makes its data out of date (see `fingerprints`).
    The labels in `code` and `shaped_by` are shown to people and are part of the fingerprint. The
    places they point to are not, so a module or a file can move.
    """

    name: str
    description: str  # the first line is a summary
    group: str  # in Dagster's graph, as are the kinds
    kinds: frozenset[str]
    result: type = pa.Table  # or a record, which is a frozen dataclass
    schema: pa.Schema | None = None  # the columns, where the result is a table
    upstream: tuple[str, ...] = ()
    # of a deployment's stage: the stages whose data of each of its policies it reads
    members: tuple[str, ...] = ()
    external: tuple[str, ...] = ()  # assets that the graph shows and this pipeline does not make
    settings: tuple[str, ...] = ()  # the sections that the stage reads
    code: Mapping[str, str] = field(default_factory=dict)  # label: module with a CODE_VERSION
    # label: "module:function", which takes the settings and returns JSON-able content, or
    # "folder/*.suffix", data files inside the package that enter by their parsed content
    shaped_by: Mapping[str, str] = field(default_factory=dict)
    loads_model: bool = False  # runs where the launcher says, and claims the pool of GPUs
    needs_passed_checks: bool = False  # refuses to start while a blocking data check has failed

    @property
    def storage(self) -> str:
        """The Dagster I/O manager that keeps the result."""
        return "tables" if self.result is pa.Table else "records"

    @property
    def module(self) -> str:
        """The module that does the work."""
        return f"policyalign_assets.stages.{self.name}"


_SHAPING = "policyalign_assets.stages.shaping"
_MODEL = {
    "model weights": f"{_SHAPING}:model_weights",
    "tokenizer libraries": f"{_SHAPING}:tokenizer_packages",
}
_ENGINE = {"rendering and decoding": "policyalign_assets.engine.version"}
_REFUSALS = {"reading of refusals": "policyalign_assets.judges.phrases"}
_PHRASES = {
    "refusal phrases": "judges/refusals.yaml",
    "words that tell languages apart": "judges/function_words.yaml",
}

_ALL = (
    Stage(
        name="policy_document",
        description=(
            "The policy text as typed rules: the policy's shared rules, then those of the "
            "domain.\n\n"
            "Its data version is the hash of the normalized text and rules. Owner, dates, comments "
            "and white space do not count."
        ),
        group="policy",
        kinds=frozenset({"markdown"}),
        result=PolicyDocument,
        external=("policy_catalog",),
        code={"parser": "policyalign_assets.policy.parser"},
    ),
    Stage(
        name="violating_instructions",
        description=(
            "Requests that would break each rule, and requests just beyond it (twins and "
            "neighbours), written by the model itself or by the configured generator."
        ),
        group="data",
        kinds=frozenset({"parquet", "huggingface"}),
        schema=tables.INSTRUCTIONS,
        upstream=("policy_document",),
        external=("base_model",),
        settings=("model", "synthesis", "generator", "firewall"),
        code={
            **_ENGINE,
            **_REFUSALS,
            "drafting": "policyalign_assets.synthesis.drafting",
            "synthesis": "policyalign_assets.synthesis.synthesize",
        },
        shaped_by={
            **_MODEL,
            "generator prompts": "policyalign_assets.synthesis.texts:generator_texts",
            "entailment judge": "policyalign_assets.synthesis.texts:entailment_texts",
            "entailment judge's weights": f"{_SHAPING}:entailment_weights",
            **_PHRASES,
            "evaluation prompts to avoid": f"{_SHAPING}:firewall_references",
            "validation libraries": f"{_SHAPING}:validation_packages",
        },
        loads_model=True,
    ),
    Stage(
        name="sensitivity_scores",
        description=(
            "How far the policy shifts the model on each instruction: answers with and without "
            "the policy, and the divergences between them."
        ),
        group="data",
        kinds=frozenset({"parquet", "pytorch"}),
        schema=tables.SENSITIVITY,
        upstream=("policy_document", "violating_instructions"),
        external=("base_model",),
        settings=("model", "sensitivity"),
        code={**_ENGINE, **_REFUSALS, "scoring": "policyalign_assets.sensitivity.version"},
        shaped_by={
            **_MODEL,
            **_PHRASES,
            "judge of refusals": f"{_SHAPING}:sensitivity_judge",
        },
        loads_model=True,
    ),
    Stage(
        name="filtered_instructions",
        description=(
            "The most sensitive instructions of each rule, and the twins and neighbours that the "
            "teacher answers. Dropped rows stay in the table with their reason."
        ),
        group="data",
        kinds=frozenset({"parquet", "duckdb"}),
        schema=tables.FILTERED,
        upstream=("violating_instructions", "sensitivity_scores"),
        settings=("filtering",),
        code={"selection": "policyalign_assets.filtering.select"},
        shaped_by={"selection query": "filtering/*.sql"},
    ),
    Stage(
        name="distilled_checkpoint",
        description=(
            "A LoRA adapter, or a whole model, that makes the model follow the policy without "
            "seeing it (on-policy self-distillation).\n\n"
            "A killed run continues from its last saved step. Training is refused while a blocking "
            "check of its data has failed."
        ),
        group="model",
        kinds=frozenset({"pytorch", "safetensors"}),
        result=Checkpoint,
        upstream=("policy_document", "filtered_instructions"),
        external=("base_model",),
        settings=("model", "distillation", "warm_start"),
        code={**_ENGINE, "training": "policyalign_assets.distillation.version"},
        shaped_by={
            **_MODEL,
            "everyday requests": f"{_SHAPING}:everyday_requests",
            "warm start": f"{_SHAPING}:warm_start",
        },
        loads_model=True,
        needs_passed_checks=True,
    ),
    Stage(
        name="generations",
        description=(
            "What the base and the aligned model answer to the same requests, each without and "
            "with the policy in its prompt: four arms.\n\n"
            "The requests are held-out cases that follow from the policy's rules, and the public "
            "benchmarks of the domain. Nothing is judged yet. The base model with the policy in "
            "its "
            "prompt is the teacher that the aligned model is measured against."
        ),
        group="evidence",
        kinds=frozenset({"parquet", "huggingface"}),
        schema=tables.GENERATIONS,
        upstream=("policy_document", "violating_instructions", "distilled_checkpoint"),
        external=("base_model", "public_benchmarks"),
        settings=("model", "evaluation"),
        code={
            **_ENGINE,
            "held-out cases": "policyalign_assets.evaluation.cases",
            "generation": "policyalign_assets.evaluation.generate",
            "answers": "policyalign_assets.evaluation.answers",
        },
        shaped_by={
            **_MODEL,
            "held-out templates": f"{_SHAPING}:heldout_templates",
            "public benchmarks": f"{_SHAPING}:public_benchmarks",
            "lm-eval": f"{_SHAPING}:lm_eval",
        },
        loads_model=True,
    ),
    Stage(
        name="judgements",
        description=(
            "One verdict per answer: refused or not, safe or not, right or wrong. Another judge "
            "redoes these and the report, and no answer.\n\n"
            "An answer that the judge could not judge is *unscored*, with the reason. It counts "
            "neither as safe nor as unsafe."
        ),
        group="evidence",
        kinds=frozenset({"parquet"}),
        schema=tables.JUDGEMENTS,
        upstream=("policy_document", "generations"),
        external=("judge",),
        settings=("judge",),
        code={**_REFUSALS, "judging": "policyalign_assets.evaluation.judging"},
        shaped_by={
            **_PHRASES,
            "judge prompts": "policyalign_assets.judges.choose:texts",
            "judge weights": f"{_SHAPING}:judge_weights",
            "comparison libraries": f"{_SHAPING}:comparison_packages",
        },
    ),
    Stage(
        name="benchmark_report",
        description=(
            "The evidence on one page: safety, over-refusal and capability of the four arms, with "
            "intervals, by rule and by benchmark.\n\n"
            "Its first line is the verdict: releasable or not, and why. Its checks compute the "
            "release gates again; `release.json` exists only while all of them pass."
        ),
        group="evidence",
        kinds=frozenset({"parquet", "html"}),
        result=ReportRecord,
        upstream=(
            "policy_document",
            "violating_instructions",
            "filtered_instructions",
            "distilled_checkpoint",
            "generations",
            "judgements",
        ),
        settings=("report", "gates"),
        code={"report": "policyalign_assets.report.build"},
        shaped_by={"page templates": "report/*.jinja", "labelled answers": "report/*.csv"},
    ),
)
_DEPLOYMENT = (
    Stage(
        name="deployed_checkpoint",
        description=(
            "One model that follows several policies of a domain at once, none of them in its "
            "prompt.\n\n"
            "Each request is taught by the teacher that reads the policy it belongs to. A benign "
            "request of one policy that another policy's teacher declines is taught by that other "
            "teacher."
        ),
        group="deployment",
        kinds=frozenset({"pytorch", "safetensors"}),
        result=Checkpoint,
        members=("policy_document", "filtered_instructions"),
        settings=("model", "distillation", "warm_start", "deployment"),
        code={
            **_ENGINE,
            **_REFUSALS,
            "training": "policyalign_assets.distillation.version",
            "routing": "policyalign_assets.distillation.routing",
            "deployment": "policyalign_assets.stages.deployed_checkpoint",
        },
        shaped_by={
            **_MODEL,
            **_PHRASES,
            "everyday requests": f"{_SHAPING}:everyday_requests",
            "warm start": f"{_SHAPING}:warm_start",
        },
        loads_model=True,
        needs_passed_checks=True,
    ),
    Stage(
        name="deployment_report",
        description=(
            "The evidence on a deployed model: a report for each of its policies, and the "
            "conflicts between them.\n\n"
            "It is releasable when it is so under each of its policies."
        ),
        group="deployment",
        kinds=frozenset({"parquet", "html"}),
        result=ReportRecord,
        upstream=("deployed_checkpoint",),
        members=("policy_document", "violating_instructions", "filtered_instructions"),
        settings=("model", "evaluation", "judge", "report", "gates"),
        code={
            **{
                stage.name + ": " + label: module
                for stage in _ALL[-3:]
                for label, module in stage.code.items()
            },
            "deployment": "policyalign_assets.stages.deployment_report",
        },
        shaped_by={
            label: source for stage in _ALL[-3:] for label, source in stage.shaped_by.items()
        },
        loads_model=True,
    ),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _ALL}
# Of a deployment: one model under several policies. They read the tables of its partitions.
DEPLOYMENT_STAGES: dict[str, Stage] = {stage.name: stage for stage in _DEPLOYMENT}
EVERY_STAGE = STAGES | DEPLOYMENT_STAGES
