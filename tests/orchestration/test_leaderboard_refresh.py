"""The leaderboard is made again by itself after a new report, and not before."""

import dagster as dg
import pytest

from policyalign_assets.orchestration.leaderboard import leaderboard
from policyalign_assets.orchestration.partitions import NAME, partitions
from policyalign_assets.orchestration.resources import Pipeline

KEY = "medical|alpha"


@dg.asset(partitions_def=partitions)
def benchmark_report() -> None: ...


@pytest.mark.slow
def test_a_new_report_asks_for_the_leaderboard():
    defs = dg.Definitions(
        assets=[benchmark_report, leaderboard], resources={"pipeline": Pipeline()}
    )
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(NAME, [KEY, "legal|alpha"])
        look = dg.evaluate_automation_conditions(defs, instance)
        assert look.total_requested == 0
        instance.report_runless_asset_event(
            dg.AssetMaterialization("benchmark_report", partition=KEY)
        )
        look = dg.evaluate_automation_conditions(defs, instance, cursor=look.cursor)
        # though the other partition has no report yet
        assert look.get_num_requested(dg.AssetKey("leaderboard")) == 1
        look = dg.evaluate_automation_conditions(defs, instance, cursor=look.cursor)
        assert look.total_requested == 0
