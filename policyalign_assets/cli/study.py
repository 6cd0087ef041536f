"""`policyalign study`: what each part of the method earns, beside what a team would do instead."""

import json
import os
from functools import partial
from pathlib import Path

import click


@click.command()
@click.option("--sweep", type=click.Path(path_type=Path), help="The sweep file; else the shipped.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder of the results.")
@click.option("--arm", "arms", multiple=True, help="Run this arm alone; may be repeated.")
@click.option("--seed", "seeds", type=int, multiple=True, help="This seed alone; may be repeated.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the page of all results here.")
@click.option("--json", "in_json", is_flag=True, help="Print all figures as one JSON object.")
@click.option("--show", is_flag=True, help="Run nothing: only say what is there.")
def study(
    sweep: Path | None,
    work: Path | None,
    arms: tuple[str, ...],
    seeds: tuple[int, ...],
    page: Path | None,
    in_json: bool,
    show: bool,
) -> None:
    """Run what is missing of the study, and write its page.

    Each arm of the sweep file is run with each seed, and each result is kept in --work, by default
    the folder `study` among the results. A stopped study goes on where it was. An edit of the
    sweep file, of a policy or of the code runs again what it touches. Several commands may run at
    once: each takes trials that no other one holds.
    """
    if show and (arms or seeds):
        raise click.UsageError("--show is about all trials. Fix: leave out --arm and --seed.")
    from policyalign_assets.study.run import as_json, run_study, state_of, write_page
    from policyalign_assets.study.sweep import SHIPPED, read_sweep
    from policyalign_assets.threads import wait_politely

    wait_politely(os.environ)
    found = read_sweep(sweep or SHIPPED)
    work = work or Path(os.environ.get("POLICYALIGN_DATA_DIR", "data")) / "study"
    policies = Path(os.environ.get("POLICYALIGN_POLICIES_DIR", "policies"))
    if not show:
        run_study(found, work, policies, arms, seeds, partial(click.echo, err=in_json))
    state = state_of(found, work, policies)
    if page:
        write_page(found, state, page)
        click.echo(f"page: {page}", err=in_json)
    if in_json:
        click.echo(json.dumps(as_json(found, state), indent=1))
        return
    for line in state.missing_lines():
        click.echo(line)
    click.echo(f"{len(state.results)} results are there, {len(state.missing)} are missing")
    if state.earlier:
        click.echo(f"an earlier version of the code made {state.earlier} of the results")
