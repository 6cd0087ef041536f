"""`policyalign align` asks for assets that Dagster can make for one partition of a policy."""

import dagster as dg
import pytest
from click.testing import CliRunner

from policyalign_assets.cli import align
from policyalign_assets.cli.main import main
from policyalign_assets.definitions import defs
from policyalign_assets.orchestration.partitions import partitions
from policyalign_assets.records import ReportRecord
from policyalign_assets.runtime.exchange import encode


def test_the_selected_assets_share_the_partitions_of_policies(tmp_path, monkeypatch):
    (tmp_path / "dagster.yaml").touch()
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(align, "_materialize", lambda arguments, *_: asked.append(arguments) or 0)
    done = CliRunner().invoke(main, ["align", "medical|general-conduct"])
    assert done.exit_code == 0, done.output
    assert [a[1] for a in asked[:1]] == ["policy_catalog"]
    selected = [dg.AssetKey(name) for name in asked[1][1].split(",")]
    graph = defs.resolve_asset_graph()
    kinds = {graph.get(key).partitions_def for key in selected}
    assert kinds - {None} == {partitions}
    # everything that has these partitions is made: nothing of a partition is left out
    mine = {k for k in graph.materializable_asset_keys if graph.get(k).partitions_def == partitions}
    assert mine <= set(selected)


def test_a_deployment_is_made_by_its_own_assets(tmp_path, monkeypatch):
    (tmp_path / "dagster.yaml").touch()
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(align, "_materialize", lambda arguments, *_: asked.append(arguments) or 0)
    assert CliRunner().invoke(main, ["align", "ward"]).exit_code == 0
    assert asked[1] == ["--select", "deployed_checkpoint,deployment_report", "--partition", "ward"]
    assert CliRunner().invoke(main, ["align", "../ward"]).exit_code == 1


@pytest.mark.parametrize(
    ("target", "stored", "again"),
    [
        (
            "medical|clinic",
            "benchmark_report/medical/clinic",
            "distilled_checkpoint,generations,judgements,benchmark_report,leaderboard",
        ),
        ("ward", "deployment_report/ward", "deployed_checkpoint,deployment_report"),
    ],
)
def test_a_warm_start_that_may_not_stand_is_followed_by_a_training_from_base(
    tmp_path, monkeypatch, target, stored, again
):
    (tmp_path / "dagster.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLICYALIGN_DATA_DIR", str(tmp_path / "data"))
    report = tmp_path / "data/assets" / f"{stored}.json"
    report.parent.mkdir(parents=True)
    asked = []

    def materialize(arguments, *_):
        asked.append(arguments[1])
        may_stand = len(asked) > 2  # the catalog, the warm start, then the training from base
        report.write_bytes(encode(ReportRecord("r", "h", {}, may_stand)))
        return 0

    monkeypatch.setattr(align, "_materialize", materialize)
    done = CliRunner().invoke(main, ["align", target])
    assert done.exit_code == 0 and asked[2:] == [again]
    assert "Training starts from the base model" in done.output
