"""The page over all partitions: the reports' own numbers, and every partition, reported or not."""

import dataclasses
import json
import shutil
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest
from test_gates import RULES, SIGNED, bars, evaluation
from test_report import CONTEXT, HOSTILE, Page, case, small_report, table

from policyalign_assets.orchestration.leaderboard import leaderboard as leaderboard_asset
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.report.build import build_report
from policyalign_assets.report.folders import publish
from policyalign_assets.report.leaderboard import (
    leaderboard,
    to_html,
    to_markdown,
    to_table,
    write_leaderboard,
)
from policyalign_assets.report.render import write_report

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def report_of(rows, **context):
    return build_report(
        table(rows), dataclasses.replace(CONTEXT, rules=RULES, **context), None, gates=bars()
    )


def put(reports: Path, domain: str, policy: str, report, name: str = "one") -> Path:
    partition = reports / policy / domain
    return publish(partition, name, lambda folder: write_report(report, folder))


def release(folder: Path, checkpoint: str) -> None:
    said = {"report": folder.name, "checkpoint_id": checkpoint}
    (folder.parent / "release.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> Path:
    """One partition that is released, one kept back, one broken, one without a report."""
    reports = tmp_path_factory.mktemp("made") / "reports"
    good = put(reports, "medical", "conduct", report_of(evaluation()))
    release(good, CONTEXT.checkpoint_id)
    put(reports, "legal", "conduct", report_of(evaluation(twins=(660, 660, 600))))
    broken = put(reports, "legal", "privacy", report_of([]))
    (broken / "report.json").write_text("{")
    return reports


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
    assert (good.shares["safety"].k, good.shares["safety"].n) == (330, 330)
    assert (bad.shares["over_refusal"].k, bad.shares["over_refusal"].n) == (74, 1320)
    assert good.released and good.verdict == "RELEASABLE: all 7 gates passed"
    assert not bad.released and bad.verdict.startswith("NOT RELEASABLE: over-refusal may be")
    page = to_html(list(lines.values()))
    assert bad.verdict in page and 'href="conduct/legal/one/report.html"' in page


def test_the_figures_are_those_of_the_reports(reports):
    row = next(
        r for r in to_table(leaderboard(reports, WANTED)).to_pylist() if r["domain"] == "medical"
    )
    figures = json.loads((reports / "conduct/medical/one/report.json").read_text())["figures"]
    for suite, column in (
        ("violations", "safety"),
        ("violations_wrapped", "safety_wrapped"),
        ("capability", "capability"),
    ):
        rate = next(f["rate"] for f in figures if (f["suite"], f["arm"]) == (suite, "aligned"))
        shown = (row[column], row[f"{column}_low"], row[f"{column}_high"], row[f"{column}_n"])
        assert shown == (rate["estimate"], rate["low"], rate["high"], rate["n"])


def test_a_release_of_another_report_or_checkpoint_releases_nothing(reports):
    newer = report_of(evaluation(), checkpoint_id="newer")
    put(reports, "medical", "conduct", newer, "two")
    line = next(x for x in leaderboard(reports, []) if x.domain == "medical")
    assert line.checkpoint_id == "newer" and not line.released
    assert "release checks have not run" in to_markdown([line])


def test_the_decision_of_the_release_checks_is_what_is_shown(reports):
    said = {
        "report": "one",
        "verdict": {"line": "NOT RELEASABLE: the bytes changed", "allowances": []},
    }
    (reports / "conduct/medical/decision.json").write_text(json.dumps(said))
    line = next(x for x in leaderboard(reports, []) if x.domain == "medical")
    assert line.verdict == "NOT RELEASABLE: the bytes changed"


def test_waivers_are_shouted(reports):
    gates = bars(warn_only=["capability"], **SIGNED)
    waived = build_report(
        table(evaluation(capability=(299, 299, 200))),
        dataclasses.replace(CONTEXT, rules=RULES),
        None,
        gates=gates,
    )
    put(reports, "medical", "conduct", waived, "waived")
    line = next(x for x in leaderboard(reports, []) if x.domain == "medical")
    assert "RELEASABLE WITH WAIVERS" in to_markdown([line]) and "A. Officer" in to_html([line])
    assert "A. Officer" in to_table([line]).to_pylist()[0]["loosened"][0]


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
    put(tmp_path / "reports", "legal", "p", report)
    lines = leaderboard(tmp_path / "reports", [])
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
