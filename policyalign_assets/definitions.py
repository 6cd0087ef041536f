"""Everything that Dagster loads.

Check it with `dagster definitions validate -m policyalign_assets.definitions`.
"""

from pathlib import Path

import dagster as dg

from policyalign_assets.orchestration import (
    alerts,
    assets,
    catalog,
    data_checks,
    deployments,
    doctor_check,
    external,
    leaderboard,
    observed,
    release_checks,
    study,
)
from policyalign_assets.orchestration.launchers import launcher_from_environment
from policyalign_assets.orchestration.realign import (
    alignment_job,
    nightly_realignment,
    policy_changes,
)
from policyalign_assets.orchestration.resources import DATA_DIR, POLICIES_DIR, Pipeline
from policyalign_assets.orchestration.storage import ParquetStorage, RecordStorage

defs = dg.Definitions(
    assets=[
        *dg.load_assets_from_modules([assets, catalog, deployments, leaderboard, study]),
        *external.external_assets,
        *observed.observed_assets,
    ],
    asset_checks=dg.load_asset_checks_from_modules([data_checks, doctor_check, release_checks]),
    jobs=[alignment_job, deployments.deployment_job],
    sensors=[
        policy_changes,
        deployments.deployment_changes,
        observed.source_changes,
        leaderboard.leaderboard_refresh,
        alerts.run_failures,
    ],
    schedules=[nightly_realignment],
    resources={
        "pipeline": Pipeline(),
        # Of sensors, which look every few seconds: Dagster takes 0.1 s to make a Pipeline.
        "policies": Path(POLICIES_DIR),
        "launcher": launcher_from_environment(),
        "tables": ParquetStorage(data_dir=DATA_DIR),
        "records": RecordStorage(data_dir=DATA_DIR),
    },
    # The stages of a partition are a chain, so one process runs them one after another. A killed
    # run then leaves no process behind.
    executor=dg.in_process_executor,
)
