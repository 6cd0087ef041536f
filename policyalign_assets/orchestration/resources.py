"""The settings of a run, given to every asset as the resource `pipeline`."""

from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import PrivateAttr

from policyalign_assets.files import Location, location
from policyalign_assets.orchestration.dead_runs import note_process
from policyalign_assets.settings import Settings, SettingsError, load_settings


class Pipeline(dg.ConfigurableResource):
    """Run config: `resources: {pipeline: {config: {profile: ..., overrides: {distillation: {steps: 60}}}}}`."""

    profile: str | None = None
    overrides: dict[str, Any] = {}
    policies_dir: str = "policies"
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

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def policies(self) -> Path:
        return Path(self.policies_dir)

    @property
    def data(self) -> Location:
        return location(self.data_dir)
