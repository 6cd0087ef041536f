"""`policyalign lint`: how each rule of a policy is read, and everything that is wrong with it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from policyalign_assets.cli.options import policies_option
from policyalign_assets.policy import (
    Examined,
    Fault,
    PolicyError,
    ReadingRow,
    Rule,
    applicable_domains,
    examine_file,
    examine_policy,
    list_policies,
    list_unread,
    reading_row,
)

_DOCUMENTS = (".docx", ".html", ".htm", ".pdf")


@click.command()
@click.argument("policy_or_file", required=False)
@policies_option
@click.option("--domain", help="Read the policy as it applies to this domain; default: all.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option(
    "--model",
    "model_id",
    help="Folder or name of a model: count the prompt's tokens with its tokenizer.",
)
@click.pass_context
def lint(
    ctx: click.Context,
    policy_or_file: str | None,
    policies_dir: Path,
    domain: str | None,
    as_json: bool,
    model_id: str | None,
) -> None:
    """Show how each rule of POLICY_OR_FILE is read, and list all of its faults at once.

    POLICY_OR_FILE is the name of a policy in the policies folder, or any Markdown, text, Word, HTML
    or PDF file. Without it, all policies are read. The exit code is 1 where there are errors;
    warnings do not change it.
    """
    examined = list(_examined(policy_or_file, policies_dir, domain))
    faults = _unique(f for found in examined for f in found.faults)
    if model_id:
        faults += _too_long(examined, model_id)
    rules = _rules(examined)
    if as_json:
        click.echo(json.dumps(_as_json(rules, faults), indent=2, ensure_ascii=False))
    else:
        _show(rules, faults)
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
        return [d for d in header.domains if d in ("medical", "legal", "financial", "general")] or (
            "general",
        )


def _rules(examined: Sequence[Examined]) -> list[Rule]:
    """The rules of all domains, each once."""
    seen: dict[tuple[str, str, str], Rule] = {}
    for found in examined:
        if found.document is not None:
            for rule in found.document.rules:
                seen.setdefault((found.document.policy_id, rule.rule_id, rule.text), rule)
    return list(seen.values())


def _unique(faults: Iterator[Fault]) -> list[Fault]:
    return list(dict.fromkeys(faults))


def _as_json(rules: Sequence[Rule], faults: Sequence[Fault]) -> dict[str, list[object]]:
    return {
        "rules": [dict(reading_row(rule)) for rule in rules],
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


def _show(rules: Sequence[Rule], faults: Sequence[Fault]) -> None:
    for rule in rules:
        row = reading_row(rule)
        click.echo(f"{row['id']}  {rule.text}")
        for line in _reading_lines(rule, row):
            click.echo(f"    {line}")
    for fault in faults:
        click.echo(f"{fault.level}: {fault}")
    errors = sum(fault.level == "error" for fault in faults)
    counted = sum(reading_row(rule)["measured"] for rule in rules)
    click.echo(
        f"{len(rules)} rules, {counted} of them measured; {errors} errors, "
        f"{len(faults) - errors} warnings"
    )


def _reading_lines(rule: Rule, row: ReadingRow) -> Iterator[str]:
    forbids = " (forbids)" if rule.kind == "condition" and rule.forbids else ""
    action = f": {row['action']}" if row["action"] else ""
    yield f"{row['kind']}{forbids}{action}"
    if row["condition"]:
        yield f"when: {row['condition']}"
    if row["exception"]:
        yield f"except: {row['exception']}"
    if rule.permitted:
        yield f"allows: {'; '.join(rule.permitted)}"
    if rule.severity:
        yield f"severity: {rule.severity}"
    if rule.language != "en":
        yield f"language: {rule.language}"
    yield f"{'measured' if row['measured'] else 'not measured'}: {row['why']}"


def _too_long(examined: Sequence[Examined], model_id: str) -> list[Fault]:
    """An error for each policy whose prompt exceeds the model's context."""
    from policyalign_assets.engine.responses import PromptTooLong
    from policyalign_assets.settings import ModelSettings
    from policyalign_assets.stages.prompt_length import require_fit

    faults = []
    for document in (found.document for found in examined if found.document is not None):
        try:
            require_fit(document, ModelSettings(id=model_id), response=1)
        except PromptTooLong as error:
            problem, _, fix = str(error).partition(". Fix: ")
            faults.append(Fault(document.policy_id, None, problem, f"{fix[:1].upper()}{fix[1:]}"))
    return faults
