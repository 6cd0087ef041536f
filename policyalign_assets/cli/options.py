"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def policies_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--policies FOLDER`, passed as `policies_dir`; its default is that of the pipeline."""
    return click.option(
        "--policies",
        "policies_dir",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="POLICYALIGN_POLICIES_DIR",
        default="policies",
        show_default=True,
        show_envvar=True,
        help="Folder that holds the policies.",
    )(command)


def public_keys_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--key FILE.pub`, several times, passed as `public_keys`."""
    return click.option(
        "--key",
        "public_keys",
        type=click.Path(dir_okay=False, path_type=Path),
        multiple=True,
        help="A public key that you trust, from elsewhere than the bundle. Can be given several "
        "times.",
    )(command)
