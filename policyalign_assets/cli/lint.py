"""`policyalign lint`: how each rule of a policy is read."""

from pathlib import Path

import click

from policyalign_assets.cli.options import policies_option
from policyalign_assets.policy import applicable_domains, parse_policy


@click.command()
@click.argument("policy")
@policies_option
def lint(policy: str, policies_dir: Path) -> None:
    """Show how each rule of POLICY is read, for every domain that it applies to."""
    for domain in applicable_domains(policies_dir, policy):
        click.echo(f"{policy} ({domain})")
        for rule in parse_policy(policies_dir, policy, domain).rules:
            click.echo(f"  {rule.rule_id}  {rule.kind}  {rule.action or '-'}  {rule.text}")
