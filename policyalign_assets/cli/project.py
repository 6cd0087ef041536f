"""Finds the project that a command belongs to: the nearest folder above with a dagster.yaml."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

FOLDERS = {
    "POLICYALIGN_DATA_DIR": "data",
    "POLICYALIGN_POLICIES_DIR": "policies",
    "POLICYALIGN_DEPLOYMENTS_DIR": "deployments",
}


def project_above(folder: Path | None = None) -> Path | None:
    """The project around `folder`, or None where `folder` is one itself or is in none."""
    folder = (folder or Path.cwd()).absolute()
    places = (folder, *folder.parents)
    found = next((place for place in places if (place / "dagster.yaml").is_file()), None)
    return None if found == folder else found


def use_project_above(environ: MutableMapping[str, str] = os.environ) -> None:
    """In a subfolder of a project, lets the commands read the results and policies of the project.

    What the environment names already stays.
    """
    if project := project_above():
        for name, folder in FOLDERS.items():
            environ.setdefault(name, str(project / folder))
