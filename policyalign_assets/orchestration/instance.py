"""Finds the folder of the Dagster instance: the one with dagster.yaml, here or above."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click

NO_INSTANCE = (
    "there is no dagster.yaml in {folder} or above it, and DAGSTER_HOME is not set, so Dagster "
    "would "
    "keep its history in a temporary folder and forget it. Fix: go to the folder of your project, "
    "or make one with `policyalign init`."
)


def instance_folder(folder: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """DAGSTER_HOME, or the nearest folder from `folder` upwards that holds a dagster.yaml.

    Raises click.ClickException, which says what to do.
    """
    if home := environ.get("DAGSTER_HOME"):
        return Path(home)
    folder = (folder or Path.cwd()).absolute()
    for place in (folder, *folder.parents):
        if (place / "dagster.yaml").is_file():
            return place
    raise click.ClickException(NO_INSTANCE.format(folder=folder))


def enter_project() -> Path:
    """Goes to the folder that `instance_folder` finds, and returns it.

    Paths in dagster.yaml are relative to where Dagster is started: from a subfolder it would begin
    another, empty history there. With DAGSTER_HOME set, the folder is the user's choice and stays.
    """
    home = instance_folder()
    if not os.environ.get("DAGSTER_HOME"):
        os.chdir(home)
    return home


def history_is_kept(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether Dagster's commands, run here, find an instance: they do not look above."""
    return bool(environ.get("DAGSTER_HOME")) or Path("dagster.yaml").is_file()
