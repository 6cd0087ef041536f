"""The six stages as assets, each thin: read inputs, call the method's module, return a typed table or record with metadata.

torch and transformers are imported inside the assets that need them, so that loading definitions stays quick.
"""

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

import dagster as dg
import pyarrow as pa

from policyalign_assets.distillation.record import Checkpoint
from policyalign_assets.files import sha256_table
from policyalign_assets.orchestration import fingerprints
from policyalign_assets.orchestration.metadata import POLICY_VERSION_TAG, image, markdown_table, preview, table_schema
from policyalign_assets.orchestration.partitions import domain_and_policy, partitions, policy_dimension
from policyalign_assets.orchestration.records import ReportRecord
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.policy import PolicyDocument, PolicyError, list_policies, parse_policy
from policyalign_assets.settings import load_settings
from policyalign_assets.tables import FILTERED, INSTRUCTIONS, SENSITIVITY

# Parquet schema metadata
YIELDS = b"policyalign.yields"  # what became of the drafts, per rule
FINGERPRINT = b"policyalign.fingerprint"  # see `fingerprints`
MET = {True: "yes", False: "NO", None: "not measured"}
DEPLOYED = load_settings()  # of now; a run may override them, and is then out of date by design


def _stage(name: str, group: str, kinds: set[str], storage: str, schema: pa.Schema | None = None, **extra):
    """What all stages share: the partitions, and a code version by which Dagster's UI shows a changed setting as stale."""
    return dg.asset(partitions_def=partitions, group_name=group, kinds=kinds, io_manager_key=storage,
                    code_version=fingerprints.own_version(name, DEPLOYED),
                    metadata={"dagster/column_schema": table_schema(schema)} if schema else None, **extra)


@dg.asset(group_name="policy", kinds={"markdown"})
def policy_catalog(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """Registers every folder of `policies/` as a partition. Materialize this first on a fresh clone."""
    policies = list_policies(pipeline.policies)
    known = set(context.instance.get_dynamic_partitions(policy_dimension.name))
    context.instance.add_dynamic_partitions(policy_dimension.name, [p for p in policies if p not in known])
    context.log.info(f"policies: {', '.join(policies)}")
    return dg.MaterializeResult(metadata={"policies": policies, "dagster/row_count": len(policies)})


@_stage("policy_document", "policy", {"markdown"}, "records", deps=[policy_catalog])
def policy_document(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult[PolicyDocument]:
    """The policy text as typed rules: the shared rules of the policy, then those of the domain.

    Its data version is the hash of the normalized text and rules: owner, dates, comments and white space do not count.
    """
    domain, policy_id = domain_and_policy(context)
    try:
        policy = parse_policy(pipeline.policies, policy_id, domain)
    except PolicyError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    return dg.MaterializeResult(
        value=policy, data_version=dg.DataVersion(policy.content_hash), tags=_tags(fingerprints.of_policy(policy.content_hash), policy.content_hash),
        metadata={"rules": len(policy.rules), "prohibitions": len(policy.prohibitions), "duties": len(policy.duties), "owner": policy.owner,
                  "effective": str(policy.effective_date or "not stated"), "version": policy.content_hash[:12],
                  "rule list": markdown_table(("id", "kind", "rule"), [(r.rule_id, r.kind, r.text) for r in policy.rules])})


@_stage("violating_instructions", "data", {"parquet", "huggingface"}, "tables", INSTRUCTIONS)
def violating_instructions(context: dg.AssetExecutionContext, pipeline: Pipeline, policy_document: PolicyDocument) -> dg.MaterializeResult[pa.Table]:
    """Requests that would break each rule, and requests just beyond it (twins, neighbours), written by the model itself."""
    from policyalign_assets.engine.loading import load_model
    from policyalign_assets.engine.transformers_engine import TransformersEngine
    from policyalign_assets.synthesis.synthesize import synthesize

    settings = pipeline.settings
    engine = TransformersEngine(load_model(settings.model), settings.model.batch_tokens)
    made = synthesize(policy_document, engine, settings.synthesis, context.log.info)
    starved = sorted(r for r, y in made.yields.items() if y.starved)
    dropped = sum((y.dropped for y in made.yields.values()), start=Counter())
    yields = {rule_id: {**vars(y), "dropped": dict(y.dropped)} for rule_id, y in made.yields.items()}
    fingerprint = _made_from("violating_instructions", pipeline, policy_document=policy_document)
    table = _stamped(made.table.replace_schema_metadata({YIELDS: json.dumps({"rules": yields, "skipped": made.skipped})}), fingerprint)
    return dg.MaterializeResult(
        value=table, data_version=dg.DataVersion(sha256_table(table)), tags=_tags(fingerprint, policy_document.content_hash),
        metadata={"dagster/partition_row_count": table.num_rows, "violating": sum(y.violating for y in made.yields.values()),
                  "twins": sum(y.twins for y in made.yields.values()), "neighbours": sum(y.neighbours for y in made.yields.values()),
                  "drafted": sum(y.drafted for y in made.yields.values()),
                  "dropped": dict(dropped), "generator refused": dropped["refused"], "starved rules": starved or "none",
                  "not synthesized": made.skipped or "none", "preview": preview(table, ("rule_id", "kind", "text"))})


@_stage("sensitivity_scores", "data", {"parquet", "pytorch"}, "tables", SENSITIVITY)
def sensitivity_scores(context: dg.AssetExecutionContext, pipeline: Pipeline, policy_document: PolicyDocument,
                       violating_instructions: pa.Table) -> dg.MaterializeResult[pa.Table]:
    """How far the policy shifts the model on each instruction: answers with and without the policy, and their divergences."""
    from policyalign_assets.engine.loading import load_model
    from policyalign_assets.engine.transformers_engine import TransformersEngine
    from policyalign_assets.evaluation.judge import judge_for
    from policyalign_assets.sensitivity.score import score_instructions

    settings = pipeline.settings
    loaded = load_model(settings.model)
    table = score_instructions(policy_document, violating_instructions, loaded, TransformersEngine(loaded, settings.model.batch_tokens),
                               judge_for(settings.model.id), settings.sensitivity, settings.model.batch_tokens,
                               lambda done, total: context.log.info(f"scored {done}/{total}"))
    fingerprint = _made_from("sensitivity_scores", pipeline, policy_document=policy_document, violating_instructions=violating_instructions)
    violating = [r for r in table.to_pylist() if r["kind"] == "violating"]
    flips = [r["flip"] for r in violating if r["flip"] is not None]
    kls = [r["reverse_kl"] for r in violating if r["reverse_kl"] is not None]
    return dg.MaterializeResult(
        value=_stamped(table, fingerprint), data_version=dg.DataVersion(sha256_table(table)), tags=_tags(fingerprint, _policy_hash(table)),
        metadata={"dagster/partition_row_count": table.num_rows, "flip rate": sum(flips) / len(flips) if flips else None,
                  "mean reverse KL": sum(kls) / len(kls) if kls else None,
                  "preview": preview(table, ("rule_id", "kind", "text", "teacher_response", "reverse_kl", "flip"))})


@_stage("filtered_instructions", "data", {"parquet", "duckdb"}, "tables", FILTERED)
def filtered_instructions(pipeline: Pipeline, violating_instructions: pa.Table, sensitivity_scores: pa.Table) -> dg.MaterializeResult[pa.Table]:
    """The most sensitive instructions of each rule, and the twins and neighbours that the teacher answers; dropped rows keep their reason."""
    from policyalign_assets.filtering.select import NothingSelected, select_instructions

    try:
        table = select_instructions(violating_instructions, sensitivity_scores, pipeline.settings.filtering)
    except NothingSelected as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    fingerprint = _made_from("filtered_instructions", pipeline, violating_instructions=violating_instructions, sensitivity_scores=sensitivity_scores)
    counts = {c["values"]: c["counts"] for c in table["reason"].value_counts().to_pylist()}
    return dg.MaterializeResult(
        value=_stamped(table, fingerprint), data_version=dg.DataVersion(sha256_table(table)), tags=_tags(fingerprint, _policy_hash(table)),
        metadata={"dagster/partition_row_count": table.num_rows, "selected": sum(table["selected"].to_pylist()),
                  "reasons": markdown_table(("reason", "rows"), sorted(counts.items())),
                  "preview": preview(table.filter(table["selected"]), ("rule_id", "kind", "text", "score", "rank_in_rule"))})


@_stage("distilled_checkpoint", "model", {"pytorch", "safetensors"}, "records")
def distilled_checkpoint(context: dg.AssetExecutionContext, pipeline: Pipeline, policy_document: PolicyDocument,
                         filtered_instructions: pa.Table) -> dg.MaterializeResult[Checkpoint]:
    """A LoRA adapter that makes the model follow the policy without seeing it (on-policy self-distillation).

    A killed run continues from its last saved step.
    """
    from policyalign_assets.distillation.batches import training_mix
    from policyalign_assets.distillation.checkpoint import publish
    from policyalign_assets.distillation.resume import work_folder
    from policyalign_assets.distillation.trainer import distill
    from policyalign_assets.engine.loading import load_model
    from policyalign_assets.report.plots import training_plot

    settings = pipeline.settings
    loaded = load_model(settings.model)
    chosen = filtered_instructions.filter(filtered_instructions["selected"])
    provenance = {"policy_id": policy_document.policy_id, "domain": policy_document.domain, "policy_hash": policy_document.content_hash,
                  "instructions": sha256_table(chosen), "model_id": loaded.model_id, "model_revision": loaded.revision,
                  "settings": settings.distillation.model_dump(), "dtype": settings.model.dtype}
    work_dir = work_folder(pipeline.data, provenance)
    model, training = distill(policy_document, training_mix(chosen), loaded, settings.distillation, work_dir, settings.model.batch_tokens,
                              context.log.info)
    checkpoint = publish(model, loaded, training, pipeline.data, provenance)
    last = training.to_pylist()[-1]
    fingerprint = _made_from("distilled_checkpoint", pipeline, policy_document=policy_document, filtered_instructions=filtered_instructions)
    return dg.MaterializeResult(
        value=replace(checkpoint, provenance={**checkpoint.provenance, "fingerprint": fingerprint}),
        data_version=dg.DataVersion(checkpoint.checkpoint_id), tags=_tags(fingerprint, _policy_hash(filtered_instructions)),
        metadata={"checkpoint": dg.MetadataValue.path(str(pipeline.data / checkpoint.path)), "instructions": chosen.num_rows,
                  "final loss": last["loss"], "top-k mass Q": last["top_k_mass"], "mean length": last["mean_length"],
                  "training seconds": sum(training["seconds"].to_pylist()),
                  "training curves": image(training_plot(training.to_pydict()), "training curves")})


@_stage("benchmark_report", "evidence", {"parquet", "html"}, "records")
def benchmark_report(context: dg.AssetExecutionContext, pipeline: Pipeline, policy_document: PolicyDocument, violating_instructions: pa.Table,
                     filtered_instructions: pa.Table, distilled_checkpoint: Checkpoint) -> dg.MaterializeResult[ReportRecord]:
    """Base and aligned model, each without and with the policy in context, on held-out cases: safety, over-refusal, capability."""
    from policyalign_assets.distillation.checkpoint import load_aligned, training_table
    from policyalign_assets.engine.loading import load_model, model_path
    from policyalign_assets.engine.transformers_engine import TransformersEngine
    from policyalign_assets.evaluation.benchmarks import manifest
    from policyalign_assets.evaluation.capability import Weights
    from policyalign_assets.evaluation.cases import build_cases
    from policyalign_assets.evaluation.evaluate import evaluate
    from policyalign_assets.evaluation.generations import Model
    from policyalign_assets.evaluation.judges.choose import described, make_judge
    from policyalign_assets.evaluation.run_benchmarks import run_benchmarks
    from policyalign_assets.files import write_parquet
    from policyalign_assets.report.benchmarks import benchmark_blocks
    from policyalign_assets.report.build import build_report
    from policyalign_assets.report.model import ReportContext
    from policyalign_assets.report.plots import main_plot
    from policyalign_assets.report.render import write_report
    from policyalign_assets.report.summary import markdown_summary, metric_values

    settings = pipeline.settings
    judge = make_judge(settings.judge, settings.model.id, policy_document, context.log.warning)
    base = load_model(settings.model)

    def engine(loaded) -> TransformersEngine:
        return TransformersEngine(loaded, settings.model.batch_tokens)

    identity = f"{base.model_id}@{base.revision} {settings.model.dtype}"
    weights = Weights(model_path(settings.model), settings.model.dtype, base.device.type, settings.model.revision)
    models = (Model(identity, lambda: engine(base), weights),
              Model(f"{identity} + {distilled_checkpoint.checkpoint_id}",
                    lambda: engine(load_aligned(distilled_checkpoint, load_model(settings.model), pipeline.data)),
                    replace(weights, adapter=(pipeline.data / distilled_checkpoint.path).absolute())))
    cases = build_cases(policy_document, settings.evaluation, violating_instructions["text"].to_pylist())
    store = pipeline.data / "generations"
    rows = evaluate(cases, *models, policy_document.prompt_text, judge, settings.evaluation, context.log.info, store)
    benchmark_rows, runs = run_benchmarks([b for b in manifest() if policy_document.domain in b.domains], *models, policy_document.prompt_text, judge,
                                          settings.evaluation, context.log.info, store)
    measured = {c.rule_id for c in cases if c.suite == "violations"}
    yields = json.loads(violating_instructions.schema.metadata[YIELDS])
    report = build_report(rows, ReportContext(
        policy_id=policy_document.policy_id, domain=policy_document.domain, title=policy_document.title, owner=policy_document.owner,
        policy_hash=policy_document.content_hash, prompt_text=policy_document.prompt_text,
        rules=[{"rule_id": r.rule_id, "text": r.text, "kind": r.kind, "measured": r.rule_id in measured,
                "why_not": "" if r.rule_id in measured else "a positive duty needs a judge that reads" if r.kind == "require"
                else "its wording states no action that a test case can ask for"} for r in policy_document.rules],
        model_id=base.model_id, model_revision=base.revision, model_note=_model_note(base), checkpoint_id=distilled_checkpoint.checkpoint_id,
        settings=settings.model_dump(mode="json"), versions=_versions(), judge=described(judge),
        funnel=_funnel(yields["rules"], filtered_instructions), seed=settings.distillation.seed,
        created_at=datetime.now(UTC).isoformat(timespec="seconds")), training_table(distilled_checkpoint, pipeline.data),
        gates=settings.gates, benchmarks=benchmark_blocks(runs, benchmark_rows, settings.evaluation.seed))
    folder = pipeline.data / "reports" / policy_document.policy_id / policy_document.domain
    paths = write_report(report, folder)
    write_parquet(rows, folder / "cases.parquet")
    write_parquet(benchmark_rows, folder / "benchmark_cases.parquet")
    context.log.info(f"report: {paths.html}")
    figures = sha256_table(rows) if not benchmark_rows.num_rows else f"{sha256_table(rows)[:32]}{sha256_table(benchmark_rows)[:32]}"
    fingerprint = _made_from("benchmark_report", pipeline, policy_document=policy_document, violating_instructions=violating_instructions,
                             filtered_instructions=filtered_instructions, distilled_checkpoint=distilled_checkpoint)
    return dg.MaterializeResult(
        value=ReportRecord(str(folder.relative_to(pipeline.data)), figures, metric_values(report)), data_version=dg.DataVersion(figures),
        tags=_tags(fingerprint, _policy_hash(filtered_instructions)),
        metadata={"report": dg.MetadataValue.path(str(paths.html)), "summary": dg.MetadataValue.md(markdown_summary(report)),
                  "main plot": image(main_plot(report), "over-refusal against violations not refused"), **metric_values(report),
                  "acceptance": markdown_table(("bar", "met", "detail"), [(v.name, MET[v.passed], v.detail) for v in report.verdict])})


def _made_from(stage: str, pipeline: Pipeline, **upstream: PolicyDocument | pa.Table | Checkpoint) -> str:
    """The fingerprint of what `stage` makes from the data that it really read, which need not be what is on disk by now."""
    return fingerprints.consumed(stage, pipeline.settings, {name: _fingerprint(data) for name, data in upstream.items()})


def _fingerprint(data: PolicyDocument | pa.Table | Checkpoint) -> str:
    if isinstance(data, PolicyDocument):
        return fingerprints.of_policy(data.content_hash)
    return data.schema.metadata[FINGERPRINT].decode() if isinstance(data, pa.Table) else data.provenance["fingerprint"]


def _stamped(table: pa.Table, fingerprint: str) -> pa.Table:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), FINGERPRINT: fingerprint})


def _tags(fingerprint: str, policy_hash: str) -> dict[str, str]:
    return {fingerprints.TAG: fingerprint, POLICY_VERSION_TAG: policy_hash[:40]}


def _policy_hash(table: pa.Table) -> str:
    return table["policy_hash"][0].as_py()


def _model_note(loaded) -> str:
    size = sum(p.numel() for p in loaded.model.parameters()) / 1e6
    return f"a {size:.1f} M-parameter test bed, not a useful assistant" if loaded.model_id == "bundled" else f"{size:,.0f} M parameters"


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("policyalign-assets", "torch", "transformers", "peft", "dagster", "duckdb", "pyarrow")}


def _funnel(yields: dict, filtered: pa.Table) -> dict[str, int]:
    funnel = {"drafts": sum(y["drafted"] for y in yields.values())}
    for reason in sorted({r for y in yields.values() for r in y["dropped"]}):
        funnel[f"dropped in synthesis: {reason}"] = sum(y["dropped"].get(reason, 0) for y in yields.values())
    funnel["violating instructions"] = sum(y["violating"] for y in yields.values())
    funnel["twins"] = sum(y["twins"] for y in yields.values())
    funnel["neighbours"] = sum(y["neighbours"] for y in yields.values())
    for c in sorted(filtered["reason"].value_counts().to_pylist(), key=lambda c: c["values"]):
        funnel[c["values"]] = c["counts"]
    return funnel
