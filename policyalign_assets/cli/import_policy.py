"""`policyalign import`: a draft policy from a document."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from policyalign_assets.cli.options import json_option, policies_option
from policyalign_assets.cli.reader_model import configured_reader
from policyalign_assets.policy import known_domains

if TYPE_CHECKING:
    from policyalign_assets.policy.importing.draft import Imported


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--policy", "policy_id", required=True, help="Name of the policy to make.")
@click.option(
    "--domain",
    "domains",
    multiple=True,
    type=click.Choice(known_domains()),
    help="Domain that it applies to, once for each; default: general.",
)
@click.option("--owner", default="", help="Who answers for the policy.")
@click.option("--title", default="", help="Title; default: that of the document.")
@click.option(
    "--reader",
    is_flag=True,
    help="Let the configured generator or model propose how rules are read; it quotes and never "
    "writes.",
)
@click.option("--dry-run", is_flag=True, help="Print the draft instead of writing it.")
@policies_option
@json_option("Print one JSON object: path, rules, changes, proposals, notes, faults.")
def import_policy(
    file: Path,
    policy_id: str,
    domains: tuple[str, ...],
    owner: str,
    title: str,
    reader: bool,
    dry_run: bool,
    policies_dir: Path,
    as_json: bool,
) -> None:
    """Make a draft policy of FILE: Markdown, text, HTML, Word or PDF.

    Each rule of the draft names the place of the document that it comes from. The draft is not
    trained until somebody has checked it and 'reviewed: NAME, DATE' stands in its front matter.
    Importing a newer version keeps the ids of the rules whose text is alike.
    """
    from policyalign_assets.policy.importing import import_document

    asked = configured_reader() if reader else None
    made = import_document(
        file,
        policies_dir,
        policy_id,
        domains=domains or ("general",),
        owner=owner,
        title=title,
        write=not dry_run,
        reader=asked,
    )
    if as_json:
        click.echo(json.dumps(_as_json(made, dry_run), indent=1, default=str))
        return
    if dry_run:
        click.echo(made.text)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(made.kinds.items()))
    click.echo(f"{len(made.rules)} rules ({kinds})", err=dry_run)
    for change in made.changes:
        if change.word == "same":
            continue
        rule = change.rule or change.before
        assert rule is not None
        click.echo(f"{change.word}: {rule.rule_id}: {rule.text}", err=dry_run)
    texts = {rule.rule_id: rule.text for rule in made.rules}
    name = asked[0] if asked else ""
    for proposal in made.proposals:
        if lines := list(proposal.lines):
            text = texts.get(proposal.rule_id, "split")
            click.echo(f"proposed by {name}: {proposal.rule_id}: {text}", err=dry_run)
            for line in lines:
                click.echo(f"    {line}", err=dry_run)
    for line in _remarks(made.notes, made.unplaced):
        click.echo(line, err=dry_run)
    for fault in made.faults:
        click.echo(f"check: {fault}", err=dry_run)
    if made.unchanged:
        click.echo("No rule has changed since the last import.", err=dry_run)
    elif not dry_run:
        click.echo(
            f"Draft: {made.path}. Check each rule with 'policyalign lint {policy_id}', then add"
            " 'reviewed: NAME, DATE' to its front matter."
        )


def _as_json(made: "Imported", dry_run: bool) -> dict[str, Any]:
    return {
        "path": None if dry_run else str(made.path),
        "text": made.text if dry_run else None,
        "unchanged": made.unchanged,
        "kinds": made.kinds,
        "rules": [asdict(rule) for rule in made.rules],
        "changes": [asdict(change) for change in made.changes if change.word != "same"],
        "proposals": [asdict(proposal) for proposal in made.proposals],
        "notes": made.notes,
        "not placed": [{"place": place, "text": text} for text, place in made.unplaced],
        "check": [str(fault) for fault in made.faults],
    }


def _remarks(notes: tuple[str, ...], unplaced: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for note in notes:
        yield f"note: {note}"
    for text, place in unplaced:
        yield f"not placed: {place}: {text[:160]}"
