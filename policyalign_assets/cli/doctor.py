"""`policyalign doctor`: whether the configured model, judge, generator and files can work."""

from __future__ import annotations

from pathlib import Path

import click

from policyalign_assets.cli.options import policies_option

MARKS = {"ok": "ok   ", "note": "note ", "error": "ERROR", "not checked": "-    "}


@click.command()
@click.argument("policy_id", required=False)
@policies_option
@click.option("--domain", default="general", show_default=True, help="The domain of the policy.")
@click.option("--profile", help="The settings profile; default: POLICYALIGN_PROFILE.")
@click.option(
    "--model", "model_id", help="Folder or hub id of a model; default: the configured one."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.pass_context
def doctor(
    ctx: click.Context,
    policy_id: str | None,
    policies_dir: Path,
    domain: str,
    profile: str | None,
    model_id: str | None,
    as_json: bool,
) -> None:
    """Examine the configured model, judge, generator and files before anything expensive starts.

    With POLICY_ID, it also measures whether the model follows that policy while the policy is in
    its prompt. A model that does not cannot be aligned. Exit code 1 means that an error was found.
    """
    from policyalign_assets.doctor.examine import examine_all
    from policyalign_assets.policy import parse_policy
    from policyalign_assets.settings import load_settings

    overrides = {"model": {"id": model_id}} if model_id else None
    settings = load_settings(profile, overrides)
    policy = parse_policy(policies_dir, policy_id, domain) if policy_id else None
    result = examine_all(settings, policy)
    if as_json:
        click.echo(result.to_json())
    else:
        for finding in result.findings:
            click.echo(f"{MARKS[finding.level]} {finding}")
        errors = len(result.errors)
        click.echo(
            f"{result.model_id}, revision {result.model_revision or 'unknown'}, profile "
            f"{settings.profile}: {errors} error{'' if errors == 1 else 's'}"
        )
    ctx.exit(0 if result.ok else 1)
