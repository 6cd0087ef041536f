"""The model card: README.md with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

from policyalign_assets.releases.papers.facts import NOT_HELD, Facts, outcome
from policyalign_assets.report.formatting import markdown_cell as cell


def model_card(facts: Facts) -> str:
    """Markdown after a YAML header, which huggingface_hub writes."""
    from huggingface_hub import EvalResult, ModelCardData

    record = facts.record
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="policyalign-cases",
            dataset_name=f"cases of {record.target}, {one.record.cases_sha256[:12]}",
            metric_type=f"{gate}: {name}",
            metric_value=value,
            verified=False,
        )
        for gate, one, predicate in facts.gates
        for name, value in sorted(predicate.get("measurements", {}).items())
    ]
    data = ModelCardData(
        base_model=record.base.model_id,
        library_name="peft" if record.tuning == "lora" else "transformers",
        pipeline_tag="text-generation",
        tags=["policyalign", record.domain],
        model_name=record.target,
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_body(facts)) + "\n"


def _body(facts: Facts) -> list[str]:
    record = facts.record
    limits = [f"- {cell(limit)}" for limit in facts.limits]
    many = f"{len(facts.policies)} written policies" if len(facts.policies) > 1 else None
    return [
        f"# {cell(facts.title)} ({cell(record.domain)})",
        "",
        f"{cell(record.base.model_id)} at revision {cell(record.base.revision)}, aligned with "
        f"{many or 'a written policy'}: it follows the rules below without having them in its "
        "prompt.",
        "",
        "## Intended use",
        "",
        *(
            line
            for one in facts.policies
            for line in (cell(one.policy.preamble) or f"{cell(one.prefix)} {NOT_HELD}".strip(), "")
        ),
        "## Rules",
        "",
        *(f"- {cell(name)} ({rule.kind}): {cell(rule.text)}" for name, rule in facts.rules),
        "",
        "## Evaluation",
        "",
        "| gate | outcome | what was measured |",
        "| --- | --- | --- |",
        *(
            f"| {cell(gate)} | {cell(outcome(p))} | {cell(str(p.get('explanation', '')))} |"
            for gate, _, p in facts.gates
        ),
        "",
        "## Limits",
        "",
        *(limits or [NOT_HELD]),
        "",
        "## Training",
        "",
        "On-policy self-distillation of the policy (PolicyAlign, arXiv 2606.25442). The base "
        "model with the policy in its prompt is the teacher.",
        "",
        "## Provenance",
        "",
        f"- bundle: {facts.bundle_id}",
        f"- checkpoint: {record.checkpoint_id}",
        *(f"- policy {one.record.policy_id}: {one.record.policy_hash}" for one in facts.policies),
        f"- code: {cell(record.code_version)}",
        f"- made: {record.created_at}",
    ]
