"""The settings: of the deployment, when Dagster loads the definitions, and of a run
(`pipeline`)."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import click
import dagster as dg
from pydantic import Field, PrivateAttr

from policyalign_assets.files import Location, location, scratch_folder, sweep
from policyalign_assets.orchestration.dead_runs import bury_dead_runs, note_process
from policyalign_assets.orchestration.owners import note_owner
from policyalign_assets.orchestration.partitions import domain_and_policy
from policyalign_assets.orchestration.run_config import Overrides
from policyalign_assets.orchestration.source_versions import new_observations
from policyalign_assets.policy import PolicyError, parse_policy
from policyalign_assets.runtime.partition_lock import PartitionBusy, partition_lock
from policyalign_assets.settings import ENV_PREFIX, Settings, SettingsError, load_settings
from policyalign_assets.stages import fingerprints

# Run config that leaves a field out takes the default of the class, so these are the deployment's.
POLICIES_DIR = os.environ.get("POLICYALIGN_POLICIES_DIR", "policies")
DATA_DIR = os.environ.get("POLICYALIGN_DATA_DIR", "data")
EXPERIMENT = "policyalign/experiment"  # tag of a run and of what it materializes
EXPERIMENTS = "experiments"


def deployed_settings() -> Settings:
    """The settings of the deployment, from the environment.

    Raises click.ClickException, which Dagster's commands print without a traceback. The UI and the
    daemon show its words first.
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
    """Settings and folders of a run.

    In the launchpad: `resources: {pipeline: {config: {overrides: {distillation: {steps: 60}}}}}`.
    A run whose settings would give other results than those of the deployment is an experiment: it
    reads what the deployment made, and writes to `<data>/experiments/<id>/`.
    """

    profile: str | None = Field(
        default=None, description="settings to begin with; not set: those of the deployment"
    )
    overrides: Overrides = Field(
        default_factory=Overrides,
        description="single settings for this run; other results than the deployment's are kept "
        "apart, as an experiment",
    )
    policies_dir: str = Field(default=POLICIES_DIR, description="folder of the policies")
    data_dir: str = Field(
        default=DATA_DIR,
        description="folder of the results, or a URL such as s3://bucket/policyalign",
    )
    _settings: Settings = PrivateAttr()
    _experiment: str | None = PrivateAttr(default=None)

    @contextlib.contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["Pipeline"]:
        """Refuses wrong settings, and a second run of a partition, before the first stage
        starts."""
        self.setup_for_execution(context)
        partition = context.run.tags.get("dagster/partition") if context.run else None
        if context.run is None or partition is None:
            yield self
            return
        scratch = scratch_folder(self.results)
        holder = f"run {context.run.run_id} (process {os.getpid()})"
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(partition_lock(scratch, partition, holder))
            except PartitionBusy as error:
                raise self._refusal(context, str(error)) from None
            sweep(scratch)
            yield self

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        try:
            overrides = self.overrides.values_set()
            self._settings = load_settings(self.profile, overrides)
            if self.profile or overrides:
                self._experiment = experiment_id(self._settings, load_settings())
        except SettingsError as error:
            raise self._refusal(context, str(error)) from None
        if context.run and context.instance:
            # before a step waits for a pool slot that a dead run still holds
            for run_id in bury_dead_runs(context.instance):
                if context.log:
                    context.log.warning(f"run {run_id} had no process any more: marked as failed")
            note_process(context.instance, context.run.run_id)
            note_owner(context.instance, context.run, self.policies)
            self._observe(context)
            if self._experiment:
                context.instance.add_run_tags(context.run.run_id, {EXPERIMENT: self._experiment})

    def _observe(self, context: dg.InitResourceContext) -> None:
        """Before a stage starts, so that Dagster records which versions the run has read."""
        partition = context.run.tags.get("dagster/partition", "") if context.run else ""
        domain, policy_id = domain_and_policy(partition)
        if policy_id and context.instance:
            with contextlib.suppress(PolicyError):  # the first stage says the mistake
                policy = parse_policy(self.policies, policy_id, domain)
                for event in new_observations(
                    context.instance, {partition: policy}, load_settings()
                ):
                    context.instance.report_runless_asset_event(event)

    @staticmethod
    def _refusal(context: dg.InitResourceContext, message: str) -> dg.Failure:
        """A failure that Dagster does not try again: nothing would differ."""
        if context.run and context.instance:
            context.instance.add_run_tags(context.run.run_id, {"dagster/max_retries": "0"})
        return dg.Failure(message, allow_retries=False)

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def policies(self) -> Path:
        return Path(self.policies_dir)

    @property
    def data(self) -> Location:
        """Where checkpoints and kept work lie, named by their content; every run shares them."""
        return location(self.data_dir)

    @property
    def experiment(self) -> str | None:
        return self._experiment

    @property
    def results(self) -> Location:
        """Where the run's tables, records and reports go."""
        return self.data / EXPERIMENTS / self._experiment if self._experiment else self.data


def experiment_id(settings: Settings, deployed: Settings) -> str | None:
    """A name for settings that give other results, or other release bars, than the deployment's.

    None where results are the same: more tokens in a batch, say, or the values of the deployment.
    """
    decisive = [
        [fingerprints.own_versions(s), s.gates.model_dump(mode="json")]
        for s in (settings, deployed)
    ]
    if decisive[0] == decisive[1]:
        return None
    return hashlib.sha256(json.dumps(decisive[0], sort_keys=True).encode()).hexdigest()[:10]
