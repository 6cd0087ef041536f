"""The settings: of this deployment, when Dagster loads the definitions, and of a run, as the resource `pipeline`."""

import os
from pathlib import Path
from typing import Any

import click
import dagster as dg
from pydantic import PrivateAttr

from policyalign_assets.files import Location, location
from policyalign_assets.orchestration.dead_runs import note_process
from policyalign_assets.orchestration.owners import note_owner
from policyalign_assets.settings import ENV_PREFIX, Settings, SettingsError, load_settings

POLICIES_DIR = os.environ.get("POLICYALIGN_POLICIES_DIR", "policies")


def deployed_settings() -> Settings:
    """Settings of now; a run may override them, and is then out of date by design.

    Raises click.ClickException, which Dagster's commands print without a traceback. The UI and the daemon show its words first.
    """
    try:
        return load_settings()
    except SettingsError as error:
        given = sorted(
            name
            for name in os.environ
            if name == f"{ENV_PREFIX}PROFILE" or (name.startswith(ENV_PREFIX) and "__" in name)
        )
        raise click.ClickException(
            f"{error}" + (f"\nSet by the environment: {', '.join(given)}." if given else "")
        ) from None


class Pipeline(dg.ConfigurableResource):
    """Run config: `resources: {pipeline: {config: {profile: ..., overrides: {distillation: {steps: 60}}}}}`."""

    profile: str | None = None
    overrides: dict[str, Any] = {}
    policies_dir: str = POLICIES_DIR
    data_dir: str = "data"  # or a URL: s3://bucket/policyalign
    _settings: Settings = PrivateAttr()

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Refuses wrong settings here, before the first stage of a run starts."""
        try:
            self._settings = load_settings(self.profile, self.overrides)
        except SettingsError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        if context.run:
            note_process(context.instance, context.run.run_id)
            note_owner(context.instance, context.run, self.policies)

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def policies(self) -> Path:
        return Path(self.policies_dir)

    @property
    def data(self) -> Location:
        return location(self.data_dir)
