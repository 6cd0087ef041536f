"""The judged answers as inspect logs: read back by inspect itself, with the report's own shares."""

from importlib.util import find_spec

import pyarrow.parquet as pq
import pytest
from test_gates import evaluation
from test_report import HOSTILE, small_report, table, unscored

from policyalign_assets.integrations.inspect_log import NO_TEXT, write_logs
from policyalign_assets.report.render import to_json
from policyalign_assets.tables import BENCHMARKS

pytestmark = pytest.mark.skipif(
    find_spec("inspect_ai") is None, reason="inspect-ai is not installed (extra `eval`)"
)


def first_rows() -> list[dict]:
    return [row for row in evaluation() if int(row["case_id"][1:]) < 60]


def test_inspect_reads_the_logs_and_finds_the_reports_shares(tmp_path):
    from inspect_ai.log import read_eval_log

    made = [
        unscored(r) if i % 50 == 0 else r | {"response": HOSTILE}
        for i, r in enumerate(first_rows())
    ]
    report = small_report(made, created_at="2026-07-02T10:15:00+00:00")
    (tmp_path / "report.json").write_text(to_json(report))
    pq.write_table(table(made), tmp_path / "cases.parquet")
    logs = {path.stem: read_eval_log(str(path)) for path in write_logs(tmp_path, tmp_path / "logs")}
    assert len(logs) == len(report.figures) == 15
    for figure in report.figures:
        log = logs[f"medical-v2-medical-{figure.suite}-{figure.arm}"]
        (score,) = log.results.scores
        assert (
            score.metrics["share"].value == figure.rate.estimate
            and score.metrics["high"].value == figure.rate.high
        )
        assert (score.scored_samples, score.unscored_samples) == (figure.rate.n, figure.unscored)
        values = [s.scores[figure.metric].value for s in log.samples]
        assert (
            sum(v == 1 for v in values) == figure.rate.k
            and sum(v != v for v in values) == figure.unscored
        )  # NaN: inspect's unscored
        reasons = {
            s.scores[figure.metric].reason
            for s in log.samples
            if s.scores[figure.metric].value != s.scores[figure.metric].value
        }
        assert reasons <= {"judge gave no verdict"} and {
            s.output.completion for s in log.samples
        } >= {HOSTILE}


def test_a_question_whose_text_is_not_kept_has_none_in_the_log(tmp_path):
    from inspect_ai.log import read_eval_log

    (tmp_path / "report.json").write_text(
        to_json(small_report([], created_at="2026-07-02T10:15:00+00:00"))
    )
    pq.write_table(table([]), tmp_path / "cases.parquet")
    row = {
        "benchmark": "gpqa-diamond",
        "kind": "question",
        "case_id": "q1",
        "arm": "base",
        "correct": True,
        "scored": True,
    }
    pq.write_table(
        BENCHMARKS.empty_table().from_pylist([row], BENCHMARKS),
        tmp_path / "benchmark_cases.parquet",
    )
    (path,) = write_logs(tmp_path, tmp_path / "logs")
    (sample,) = read_eval_log(str(path)).samples
    assert sample.input[-1].text == NO_TEXT and sample.scores["correct"].value == 1
