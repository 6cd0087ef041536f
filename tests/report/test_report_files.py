"""The files of a report: numbers that agree, hostile text that stays text, pages of cases."""

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_report import (
    CONTEXT,
    HOSTILE,
    SAMPLED,
    Page,
    case,
    sample_report,
    sample_rows,
    sample_training,
    small_report,
    table,
    unscored,
)
from test_transcripts import LONG

from policyalign_assets.evaluation.red_team_coverage import RedTeamCoverage
from policyalign_assets.evaluation.suites import ARMS, SUITES
from policyalign_assets.report.build import build_report
from policyalign_assets.report.case_pages import case_pages
from policyalign_assets.report.contents import ReportContext
from policyalign_assets.report.folders import publish
from policyalign_assets.report.formatting import markdown_cell, visible
from policyalign_assets.report.plots import main_plot, training_plot
from policyalign_assets.report.render import to_html, to_json, write_report
from policyalign_assets.report.summary import markdown_summary, metric_values


@pytest.mark.slow
def test_json_parquet_and_html_carry_the_same_numbers(tmp_path: Path):
    folder = tmp_path / "new" / "folder"
    page = write_report(sample_report(), folder)
    figures = json.loads((folder / "report.json").read_text())["figures"]
    lines = pq.read_table(folder / "figures.parquet").to_pylist()
    shares = Page(page.read_text()).shares
    assert len(figures) == len(lines) == len(shares) == len(SAMPLED) * len(ARMS)
    for figure, line in zip(figures, lines, strict=True):
        rate = {name: line[name] for name in ("estimate", "low", "high", "n", "k")}
        assert rate | {"clusters": None} == figure["rate"]
        for name in (
            "suite",
            "arm",
            "metric",
            "cases",
            "unscored",
            "truncated",
            "empty",
            "mean_tokens",
        ):
            assert line[name] == figure[name]
        assert shares[line["suite"], line["arm"]] == [line["estimate"], line["mean_tokens"]]


@pytest.mark.slow
def test_coverage_of_red_team_prompts_is_shown_by_rule_where_it_was_measured():
    of_all = RedTeamCoverage(HOSTILE, None, 427, 360, 250, 0.25, 0.9, 0.15, 0.1333, "TF-IDF")
    of_rule = dataclasses.replace(
        of_all, rule_id="M1", instructions=3, compared=3, control=None, between=None
    )
    found = build_report(
        table(sample_rows()), CONTEXT, sample_training(), coverage=[of_all, of_rule]
    )
    assert json.loads(to_json(found))["coverage"][1]["rule_id"] == "M1"
    html = to_html(found)
    page = Page(html)
    assert "427 harmful requests measured" in page.text
    assert "script" not in {tag for tag, _ in page.elements}
    rows = [a["data-rule"] for _, a in page.elements if "data-rule" in a]
    assert rows == ["all", "M1"]
    assert "13.3" in page.text and "no harmless prompts" in page.text
    assert 'id="coverage"' not in to_html(sample_report())


def test_nothing_half_written_is_left_behind(tmp_path: Path, monkeypatch):
    report = small_report([case("aligned", "twins", "c", True)])
    folder = publish(tmp_path, "one", lambda aside: write_report(report, aside))
    before = (folder / "report.html").read_text()
    monkeypatch.setattr("policyalign_assets.report.render.to_html", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish(tmp_path, "two", lambda aside: write_report(report, aside))
    assert (folder / "report.html").read_text() == before
    assert json.loads((tmp_path / "current.json").read_text()) == {"report": "one"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current.json", "one"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "benchmarks.parquet",
        "figures.parquet",
        "report.html",
        "report.json",
    ]


def hostile_page() -> str:
    rows = [
        case(
            arm,
            suite,
            f"{HOSTILE}{i}",
            arm == "aligned",
            prompt=HOSTILE,
            response=HOSTILE,
            unscored_reason=HOSTILE,
        )
        for arm in ARMS
        for suite in SUITES
        for i in range(3)
    ]
    rows += [unscored(case("aligned", "violations", "u", True), unscored_reason=HOSTILE)]
    rows += [
        case("aligned", suite, "bad", False, prompt=HOSTILE, response=HOSTILE) for suite in SUITES
    ]
    rules = [
        {"rule_id": "A1", "text": HOSTILE, "kind": HOSTILE, "measured": True, "why_not": ""},
        {
            "rule_id": HOSTILE,
            "text": HOSTILE,
            "kind": HOSTILE,
            "measured": False,
            "why_not": HOSTILE,
        },
    ]
    texts = {
        field.name: HOSTILE
        for field in dataclasses.fields(ReportContext)
        if field.type in ("str", "str | None")
    }
    dicts = {
        name: {HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}}
        for name in ("settings", "versions", "funnel")
    }
    return to_html(small_report(rows, rules=rules, **texts, **dicts))


@pytest.mark.slow
def test_hostile_text_appears_only_as_text():
    html = hostile_page()
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "form", "base", "svg"}
    assert all(
        attributes["src"].startswith("data:image/png;base64,")
        for tag, attributes in page.elements
        if tag == "img"
    )
    names = {name for _, attributes in page.elements for name in attributes}
    assert not any(name.startswith("on") for name in names)
    links = {attributes["href"] for _, attributes in page.elements if "href" in attributes}
    assert links == {"../index.html"}
    assert (
        "<script>alert(1)</script>" in page.text
        and "<|im_end|>" in page.text
        and "␛[31mred" in page.text
    )
    assert not set(re.findall(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html))
    assert "⟨U+202E⟩" in page.text


@pytest.mark.slow
def test_the_page_needs_no_network_and_forbids_it():
    html = to_html(sample_report())
    policy = next(
        a["content"]
        for tag, a in Page(html).elements
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert not re.search(r"https?://|url\(|@import", html)
    assert "<script" not in html
    assert all(a.get("alt") for tag, a in Page(html).elements if tag == "img")


def test_visible_shows_what_hides():
    assert visible("a\x1b[0m\r\n\tb\x7f\x9b") == "a␛[0m␍\n\tb␡⟨U+009B⟩"
    assert (
        visible("\u202e\u2066\u200b\U000e0041\u2028\ud800")
        == "⟨U+202E⟩⟨U+2066⟩⟨U+200B⟩⟨U+E0041⟩⟨U+2028⟩⟨U+D800⟩"
    )
    assert visible("naïve 日本 می\u200cخواهم") == "naïve 日本 می\u200cخواهم"


@pytest.mark.slow
def test_markdown_summary_is_one_table_with_escaped_cells():
    assert markdown_cell("a|b\n![x](http://e) <b> `c`") == r"a\|b \!\[x\](http://e) &lt;b&gt; \`c\`"
    summary = markdown_summary(sample_report())
    assert len([line for line in summary.splitlines() if line.startswith("|")]) == 2 + len(SAMPLED)
    assert "<script>" not in markdown_summary(small_report(sample_rows()[:4], title=HOSTILE))


@pytest.mark.slow
def test_metric_values_are_flat_fractions():
    values = metric_values(sample_report())
    assert {
        f"{name}/{arm}"
        for name in ("safety", "safety_wrapped", "over_refusal", "capability")
        for arm in ARMS
    } < values.keys()
    assert values["internalisation"] == pytest.approx(0.98, abs=0.03)
    assert all(isinstance(value, float) and 0 <= value <= 1 for value in values.values())


@pytest.mark.slow
def test_plots_are_png_and_repeatable():
    report = sample_report()
    assert main_plot(report).startswith(b"\x89PNG") and main_plot(report) == main_plot(report)
    assert training_plot(report.training).startswith(b"\x89PNG")


# ---- pages of cases ------------------------------------------------------------------------------
def test_every_case_is_on_the_page_of_its_suite_failures_first():
    rows = [case(arm, "twins", f"c{i}", i != 2) for arm in ARMS for i in range(4)]
    (page,) = case_pages(table(rows), CONTEXT, False)
    assert page.file == "cases-twins.html" and "fails in 1;" not in page.html
    shown = re.findall(r"c\d(?= · )", page.html)
    assert shown[0] == "c2" and sorted(shown) == ["c0", "c1", "c2", "c3"]
    assert page.html.count("<article") == 4 and "The aligned model fails in 1" in page.html


def test_hostile_cases_appear_as_text_and_only_the_filter_script_may_run():
    rows = [
        case(arm, "twins", HOSTILE, True, prompt=HOSTILE, response=HOSTILE + "</pre></script>")
        for arm in ARMS
    ]
    (page,) = case_pages(table(rows), dataclasses.replace(CONTEXT, title=HOSTILE), False)
    shown = Page(page.html)
    assert [tag for tag, _ in shown.elements].count("script") == 1
    assert "<script>alert(1)</script>" in shown.text and "␛[31mred" in shown.text
    policy = next(a["content"] for _, a in shown.elements if a.get("http-equiv"))
    script = page.html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "unsafe-inline'; script" in policy


def test_pages_of_cases_cut_harmful_answers_short():
    rows = [case("aligned", "violations", "c", False, response=LONG)]
    (cut,), (whole,) = (case_pages(table(rows), CONTEXT, show) for show in (False, True))
    assert LONG not in cut.html and "[redacted:" in cut.html and LONG in whole.html
