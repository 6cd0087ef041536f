"""Options that several commands share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class Bundle(click.ParamType[Path]):
    """A bundle's folder, or the target of the one that the ledger calls current.

    A target is `domain|policy`, or the name of a deployment. A folder that exists comes first.
    """

    name = "bundle"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if isinstance(value, Path):
            return value
        from policyalign_assets.policy.deployments import NAME
        from policyalign_assets.releases.current import current_bundle

        releases = Path(os.environ.get("POLICYALIGN_DATA_DIR", "data")) / "releases"
        is_target = "|" in value or (bool(NAME.fullmatch(value)) and not Path(value).is_dir())
        if is_target and (current := current_bundle(releases, value)) is not None:
            return current
        if "|" in value:
            self.fail(
                f"no bundle of {value!r} is released in {releases}, or it is not there. Fix: name "
                "the bundle's folder, or release the partition.",
                param,
                ctx,
            )
        if not Path(value).is_dir():
            self.fail(
                f"{value!r} is no folder, and {releases} holds no released bundle of a deployment "
                "of that name. Fix: name the bundle's folder, or a target that is released.",
                param,
                ctx,
            )
        return Path(value)


def bundle_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """The argument BUNDLE, passed as `bundle`."""
    return click.argument("bundle", type=Bundle())(command)


def json_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--json`, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=help_text)


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
