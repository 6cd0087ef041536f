"""The page over all partitions: the reports' own numbers, and every partition in it whether or not it has a report."""

import json
import shutil
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest
from test_gates import rows
from test_report import HOSTILE, Page, case, small_report

from policyalign_assets.orchestration.leaderboard import leaderboard as leaderboard_asset
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.report.leaderboard import (
    leaderboard,
    to_html,
    to_markdown,
    to_table,
    write_leaderboard,
)
from policyalign_assets.report.release import decide
from policyalign_assets.report.render import write_report
from policyalign_assets.settings import GateSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> Path:
    """Two policies: one partition with a releasable checkpoint, one kept back, one broken, one without a report."""
    folder = tmp_path_factory.mktemp("made") / "reports"
    for domain, made in (("medical", rows()), ("legal", rows(twins=(200, 150)))):
        write_report(small_report(made), folder / "conduct" / domain)
        decide(folder / "conduct" / domain, GateSettings())
    write_report(small_report(rows()), folder / "privacy" / "legal")
    (folder / "privacy" / "legal" / "report.json").write_text("{")
    return folder


@pytest.fixture()
def reports(made_once, tmp_path) -> Path:
    return Path(shutil.copytree(made_once, tmp_path / "reports"))


WANTED = [("medical", "conduct"), ("financial", "conduct"), ("legal", "privacy")]


def test_every_partition_is_listed_with_its_figures_or_the_reason(reports):
    lines = {(line.domain, line.policy): line for line in leaderboard(reports, WANTED)}
    assert list(lines) == [
        ("financial", "conduct"),
        ("legal", "conduct"),
        ("medical", "conduct"),
        ("legal", "privacy"),
    ]
    assert (
        lines["financial", "conduct"].why_not == "no report yet"
        and "cannot be read" in lines["legal", "privacy"].why_not
    )
    good, bad = lines["medical", "conduct"], lines["legal", "conduct"]
    assert (good.shares["safety"].k, good.shares["safety"].n) == (95, 100)
    assert (bad.shares["over_refusal"].k, bad.shares["over_refusal"].n) == (50, 400)
    assert (
        good.released
        and good.gates_open == ()
        and not bad.released
        and bad.gates_open == ("over_refusal",)
    )


def test_the_figures_are_those_of_the_reports(reports):
    row = next(
        r for r in to_table(leaderboard(reports, WANTED)).to_pylist() if r["domain"] == "medical"
    )
    figures = json.loads((reports / "conduct/medical/report.json").read_text())["figures"]
    for suite, column in (
        ("violations", "safety"),
        ("violations_wrapped", "safety_wrapped"),
        ("capability", "capability"),
    ):
        rate = next(f["rate"] for f in figures if (f["suite"], f["arm"]) == (suite, "aligned"))
        shown = (row[column], row[f"{column}_low"], row[f"{column}_high"], row[f"{column}_n"])
        assert shown == (rate["estimate"], rate["low"], rate["high"], rate["n"])


def test_a_pointer_to_another_checkpoint_releases_nothing(reports):
    write_report(small_report(rows(), checkpoint_id="newer"), reports / "conduct" / "medical")
    line = next(x for x in leaderboard(reports, []) if x.domain == "medical")
    assert not line.released and "not marked releasable" in to_markdown([line])


def test_no_reports_at_all(tmp_path):
    lines = leaderboard(tmp_path / "reports", WANTED)
    assert [line.why_not for line in lines] == ["no report yet"] * 3
    page = Page(write_leaderboard(lines, tmp_path / "reports").read_text())
    assert (
        page.text.count("no report yet") == 3
        and pq.read_table(tmp_path / "reports/leaderboard.parquet").num_rows == 3
    )


def test_text_of_others_shows_as_text(tmp_path):
    report = small_report(
        [case("aligned", "violations", "c", True)],
        title=HOSTILE,
        checkpoint_id=HOSTILE,
        judge=HOSTILE,
    )
    write_report(report, tmp_path / "p" / "legal")
    lines = leaderboard(tmp_path, [])
    page = Page(to_html(lines))
    assert (
        not {"script", "img"} & {tag for tag, _ in page.elements}
        and "\x1b" not in page.text
        and "<script>" in page.text
    )
    assert "<script>" not in to_markdown(lines)


def test_the_asset_reads_what_is_there(reports, tmp_path):
    with dg.instance_for_test() as instance:
        run = dg.materialize(
            [leaderboard_asset],
            instance=instance,
            resources={
                "pipeline": Pipeline(
                    policies_dir=str(ROOT / "policies"), data_dir=str(tmp_path), overrides={}
                )
            },
        )
        metadata = run.asset_materializations_for_node("leaderboard")[0].metadata
    assert (
        metadata["dagster/row_count"].value == 8 + 3 and metadata["releasable"].value == 1
    )  # eight shipped partitions, three of ours
    assert metadata["without a report"].value == 8 + 1
    assert (reports / "leaderboard.html").exists()
