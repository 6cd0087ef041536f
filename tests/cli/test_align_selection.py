"""`policyalign align` asks for assets that Dagster can make for one partition of a policy."""

import dagster as dg
from click.testing import CliRunner

from policyalign_assets.cli import align
from policyalign_assets.cli.main import main
from policyalign_assets.definitions import defs
from policyalign_assets.orchestration.partitions import partitions


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
