"""`policyalign lint`: how each rule of a policy is read, and everything that is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from policyalign_assets.cli.options import policies_option
from policyalign_assets.policy import (
    Examined,
    Fault,
    PolicyDocument,
    PolicyError,
    Rule,
    applicable_domains,
    examine_file,
    examine_policy,
    known_domains,
    list_policies,
    list_unread,
)
from policyalign_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from policyalign_assets.stages.run_plan import PlannedRule, RunPlan

_DOCUMENTS = (".docx", ".html", ".htm", ".pdf")


@click.command()
@click.argument("policy_or_file", required=False)
@policies_option
@click.option("--domain", help="Read the policy as it applies to this domain; default: all.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option(
    "--model",
    "model_id",
    help="Folder or name of a model: plan for it, and count tokens with its tokenizer. Default: "
    "the configured model, whose tokens are estimated.",
)
@click.option(
    "--reader",
    is_flag=True,
    help="Let the configured generator or model propose how each rule is read, beside its text.",
)
@click.pass_context
def lint(
    ctx: click.Context,
    policy_or_file: str | None,
    policies_dir: Path,
    domain: str | None,
    as_json: bool,
    model_id: str | None,
    reader: bool,
) -> None:
    """Show how each rule of POLICY_OR_FILE is read, and list all of its faults at once.

    POLICY_OR_FILE is the name of a policy in the policies folder, or any Markdown, text, Word, HTML
    or PDF file. Without it, all policies are read. The exit code is 1 where there are errors;
    warnings do not change it.

    Below each rule stands whether and how a run with the configured settings would train and
    measure it, and at the end what such a run would make and cost. Nothing is run.
    """
    from policyalign_assets.stages.run_plan import plan_run

    overrides = {"model": {"id": model_id}} if model_id else None
    settings = load_settings(overrides=overrides)
    examined = list(_examined(policy_or_file, policies_dir, domain))
    faults = _unique(f for found in examined for f in found.faults)
    documents = [found.document for found in examined if found.document is not None]
    count = None
    if model_id:
        too_long, count = _too_long(documents, settings)
        faults += too_long
    plans = [plan_run(document, settings, count) for document in documents if document.rules]
    faults += _unique(fault for plan in plans for fault in _no_work(plan))
    rules = _rules(plans)
    if as_json:
        click.echo(json.dumps(_as_json(rules, faults), indent=2, ensure_ascii=False))
    else:
        _show(rules, faults)
    if reader:
        _show_proposals([planned.rule for planned in rules], as_json)
    for plan in plans:
        named = f"{plan.policy.domain}|{plan.policy.policy_id}"
        for sentence in plan.sentences:
            click.echo(f"{named}: {sentence}", err=as_json)
    if policy_or_file is None:
        for name in list_unread(policies_dir):
            click.echo(f"not read: {policies_dir / name}. Fix: run 'policyalign import'.", err=True)
    ctx.exit(1 if any(fault.level == "error" for fault in faults) else 0)


def _examined(name: str | None, policies_dir: Path, domain: str | None) -> Iterator[Examined]:
    """What was read: of a file, of one policy in its domains, or of all policies."""
    if name is not None and _is_file(name, policies_dir):
        yield _examined_file(Path(name))
        return
    for policy_id in [name] if name is not None else list_policies(policies_dir):
        for each in [domain] if domain else _domains(policies_dir, policy_id):
            yield examine_policy(policies_dir, policy_id, each)


def _is_file(name: str, policies_dir: Path) -> bool:
    path = Path(name)
    if (policies_dir / name / "policy.md").exists() and path.name == name:
        return False
    return path.is_file() or "/" in name or path.suffix.lower() in (".md", ".txt", *_DOCUMENTS)


def _examined_file(path: Path) -> Examined:
    if path.suffix.lower() not in _DOCUMENTS:
        return examine_file(path)
    from policyalign_assets.policy.importing import examine_document

    return examine_document(path)


def _domains(policies_dir: Path, policy_id: str) -> Sequence[str]:
    """The domains that a policy lists; where that cannot be read, one that shows the faults."""
    try:
        return applicable_domains(policies_dir, policy_id) or ("general",)
    except PolicyError:
        from policyalign_assets.policy.header import read_header
        from policyalign_assets.policy.parser import SHARED_NAME
        from policyalign_assets.policy.source import read_source

        try:
            header = read_header(read_source(policies_dir, policy_id, SHARED_NAME), [])[0]
        except PolicyError:
            return ("general",)
        return [d for d in header.domains if d in known_domains()] or ("general",)


def _rules(plans: Sequence[RunPlan]) -> list[PlannedRule]:
    """The rules of all domains, each once."""
    seen: dict[tuple[str, str, str], PlannedRule] = {}
    for plan in plans:
        for planned in plan.rules:
            rule = planned.rule
            seen.setdefault((plan.policy.policy_id, rule.rule_id, rule.text), planned)
    return list(seen.values())


def _no_work(plan: RunPlan) -> Iterator[Fault]:
    """An error where a run would teach or show nothing; the first stage would refuse it too."""
    from policyalign_assets.evaluation.case_plan import NoCases
    from policyalign_assets.stages.run_plan import NothingTrained

    try:
        plan.require_work()
    except (NoCases, NothingTrained) as error:
        problem, _, fix = str(error).partition("\nFix: ")
        line = plan.rules[0].rule.line
        yield Fault(plan.policy.policy_id, line, problem, f"{fix[:1].upper()}{fix[1:]}")


def _unique(faults: Iterator[Fault]) -> list[Fault]:
    return list(dict.fromkeys(faults))


def _as_json(rules: Sequence[PlannedRule], faults: Sequence[Fault]) -> dict[str, list[object]]:
    return {
        "rules": [_row(planned) for planned in rules],
        "problems": [
            {
                "level": fault.level,
                "path": fault.path,
                "line": fault.line,
                "problem": fault.problem,
                "fix": fault.fix,
            }
            for fault in faults
        ],
    }


def _row(planned: PlannedRule) -> dict[str, Any]:
    rule = planned.rule
    return {
        "id": rule.rule_id,
        "text": rule.words,
        "kind": rule.kind,
        "action": rule.action or rule.demand,
        "condition": rule.condition,
        "exception": "; ".join(rule.exceptions) or None,
        "measured": planned.measured,
        "why": planned.why,
    }


def _show(rules: Sequence[PlannedRule], faults: Sequence[Fault]) -> None:
    for planned in rules:
        click.echo(f"{planned.rule.rule_id}  {planned.rule.text}")
        for line in _reading_lines(planned.rule):
            click.echo(f"    {line}")
        click.echo(f"    {planned.why}")
    for fault in faults:
        click.echo(f"{fault.level}: {fault}")
    errors = sum(fault.level == "error" for fault in faults)
    click.echo(
        f"{len(rules)} rules, {sum(planned.measured for planned in rules)} of them measured; "
        f"{errors} errors, {len(faults) - errors} warnings"
    )


def _show_proposals(rules: Sequence[Rule], as_json: bool) -> None:
    """What the configured model proposes; nothing is changed by it."""
    from policyalign_assets.cli.reader_model import configured_reader
    from policyalign_assets.policy.importing.proposals import propose

    name, ask = configured_reader()
    for rule, proposal in zip(rules, propose(rules, ask), strict=True):
        click.echo(f"proposed by {name}: {rule.rule_id}  {rule.text}", err=as_json)
        for line in proposal.lines:
            click.echo(f"    {line}", err=as_json)


def _reading_lines(rule: Rule) -> Iterator[str]:
    forbids = " (forbids)" if rule.kind == "condition" and rule.forbids else ""
    said = rule.action or rule.demand
    yield f"{rule.kind}{forbids}{f': {said}' if said else ''}"
    if rule.condition:
        yield f"when: {rule.condition}"
    if rule.exceptions:
        yield f"except: {'; '.join(rule.exceptions)}"
    if rule.permitted:
        yield f"allows: {'; '.join(rule.permitted)}"
    if rule.limits:
        yield f"limits: {rule.limits}"
    if rule.severity:
        yield f"severity: {rule.severity}"
    if rule.language != "en":
        yield f"language: {rule.language}"


def _too_long(
    documents: Sequence[PolicyDocument], settings: Settings
) -> tuple[list[Fault], Callable[[str], int]]:
    """An error for each policy whose prompt exceeds the model's context, and its token counter."""
    from policyalign_assets.engine.responses import PromptTooLong
    from policyalign_assets.stages.prompt_length import require_fit, token_counter

    faults = []
    for document in documents:
        try:
            require_fit(document, settings.model, response=1)
        except PromptTooLong as error:
            problem, _, fix = str(error).partition(". Fix: ")
            faults.append(Fault(document.policy_id, None, problem, f"{fix[:1].upper()}{fix[1:]}"))
    return faults, token_counter(settings.model)
