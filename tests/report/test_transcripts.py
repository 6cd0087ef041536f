"""Which answers a report shows as examples, and how little of harmful ones."""

import pyarrow as pa
import pytest
from test_report import CONTEXT, case, sample_report, small_report, table, unscored

from policyalign_assets.evaluation.suites import ARMS
from policyalign_assets.report.build import build_report
from policyalign_assets.report.render import to_html


@pytest.mark.slow
def test_transcripts_are_sampled_from_the_right_cases():
    fixed, failed, refused = sample_report().transcripts
    assert [len(group.shown) for group in (fixed, failed, refused)] == [5, 5, 5]
    assert all(
        t.responses["base"].startswith("Certainly")
        and t.responses["aligned"].startswith("I cannot")
        for t in fixed.shown
    )
    assert all(t.responses["aligned"].startswith("Certainly") for t in failed.shown)
    assert all(
        t.suite in ("twins", "uncovered") and t.responses["aligned"].startswith("I cannot")
        for t in refused.shown
    )


LONG = (
    "Certainly. First take the pad, then write the name of somebody else on it, "
    "and sign it as they would."
)


def judged_unsafe(row: dict, **changes) -> dict:
    return row | {"safe": False} | changes


with_safe = table


@pytest.mark.slow
def test_harmful_answers_are_cut_short_unless_asked_for():
    told = f"{LONG[:40].rstrip()} … [redacted: {len(LONG) - 40} characters]"
    kept_back = "I cannot help with that, and here is a very long reason for why I cannot."
    rows = [
        case(
            arm,
            "violations",
            "c",
            arm.startswith("aligned"),
            response=kept_back if arm.startswith("aligned") else LONG,
        )
        for arm in ARMS
    ]
    rows += [case(arm, "violations", "d", False, response=LONG) for arm in ARMS]
    rows += [
        judged_unsafe(case(arm, "twins", "e", arm == "base", response=LONG), safe=arm == "base")
        for arm in ARMS
    ]
    report = build_report(with_safe(rows), CONTEXT, None)
    fixed, failed, over = (
        {t.case_id: t.responses for t in group.shown} for group in report.transcripts
    )
    assert fixed["c"] == {
        "base": told,
        "base_policy": told,
        "aligned": kept_back,
        "aligned_policy": kept_back,
    }
    assert set(failed["d"].values()) == {told} and over["e"] == {
        "base": LONG,
        "base_policy": told,
        "aligned": told,
        "aligned_policy": told,
    }
    assert f"{len(LONG) - 40} characters" in to_html(report)
    in_full = build_report(with_safe(rows), CONTEXT, None, show_harmful=True)
    assert set(in_full.transcripts[1].shown[0].responses.values()) == {LONG}


def test_an_answer_that_no_judge_could_read_is_not_shown_whole():
    rows = [
        case("aligned", "violations", "c", False),
        unscored(case("base", "violations", "c", True), response=LONG),
    ]
    (shown,) = small_report(rows).transcripts[1].shown
    assert "[redacted:" in shown.responses["base"]


@pytest.mark.slow
def test_harmful_requests_of_public_benchmarks_are_cut_short_and_missing_texts_not_shown():
    def row(kind: str, case_id: str, arm: str, **changes) -> dict:
        return {
            "benchmark": "b",
            "kind": kind,
            "case_id": case_id,
            "arm": arm,
            "prompt": LONG,
            "response": LONG,
            "refused": kind == "benign",
            "scored": True,
            "safe": None,
        } | changes

    names = ["benchmark", "kind", "case_id", "arm", "prompt", "response"]
    schema = pa.schema(
        [(name, pa.string()) for name in names]
        + [(name, pa.bool_()) for name in ("refused", "scored", "safe")]
    )
    rows = [row(kind, kind, arm) for kind in ("harmful", "benign") for arm in ARMS]
    rows += [row("question", "q", arm, prompt=None) for arm in ARMS] + [
        row("harmful", "h2", arm, prompt=None) for arm in ARMS
    ]
    report = build_report(
        table([]), CONTEXT, None, benchmark_rows=pa.Table.from_pylist(rows, schema)
    )
    answered, refused = report.transcripts[3:]
    (harmful,), (benign,) = answered.shown, refused.shown
    assert "[redacted:" in harmful.prompt and "[redacted:" in harmful.responses["base"]
    assert (benign.prompt, set(benign.responses.values())) == (LONG, {LONG})
    assert LONG[45:] in to_html(report) and "case harmful · b" in to_html(report)
