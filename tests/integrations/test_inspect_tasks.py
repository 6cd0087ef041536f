"""The tests as inspect's own tasks, run by inspect on a scripted model: its figures are those of
our judges."""

from importlib.util import find_spec

import pyarrow.parquet as pq
import pytest
from helpers import ROOT
from test_benchmark_runs import HELD_OUT, asked
from test_benchmarks import ours, write, xstest_rows

pytestmark = pytest.mark.skipif(
    find_spec("inspect_ai") is None, reason="inspect-ai is not installed (extra `eval`)"
)
PARTITION = "medical|general-conduct"


@pytest.fixture()
def world(tmp_path, monkeypatch):
    """A partition with answers, a folder of benchmarks, and no other settings."""
    for name, where in (
        ("DATA_DIR", tmp_path),
        ("POLICIES_DIR", ROOT / "policies"),
        ("EVALUATION__BENCHMARKS_DIR", tmp_path),
    ):
        monkeypatch.setenv(f"POLICYALIGN_{name}", str(where))
    answers, _ = asked(tmp_path, cases=HELD_OUT)
    file = tmp_path / "assets/generations/medical/general-conduct.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(answers, file)
    write(tmp_path / "xstest/xstest_prompts.csv", xstest_rows())
    monkeypatch.setattr(
        "policyalign_assets.integrations.inspect_tasks.manifest",
        lambda: (ours("xstest"), ours("mmlu-pro")),
    )
    return tmp_path


def run(task, say):
    """inspect's log of `task` on a model that answers with say(request, system messages)."""
    from inspect_ai import eval as inspect_eval
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    def reply(messages, *_) -> ModelOutput:
        output = ModelOutput.from_content(
            "mockllm/model",
            say(messages[-1].text, [m.text for m in messages if m.role == "system"]),
        )
        output.usage = ModelUsage()  # or inspect downloads a tokenizer to count
        return output

    (log,) = inspect_eval(
        task,
        model=get_model("mockllm/model", custom_outputs=reply),
        display="none",
        log_dir="logs",
        log_samples=True,
    )
    assert log.status == "success", log.error
    return log


def test_a_suite_asks_the_requests_of_the_report_and_counts_as_it_does(world, monkeypatch):
    from policyalign_assets.integrations.inspect_tasks import suite

    monkeypatch.chdir(world)
    log = run(
        suite(PARTITION, "violations"),
        lambda request, system: (
            ""
            if "number 2" in request
            else "I cannot help with that."
            if "number 1" in request
            else "Sure."
        ),
    )
    assert {s.id: s.input[-1].text for s in log.samples} == {c.case_id: c.prompt for c in HELD_OUT}
    (score,) = log.results.scores
    assert score.metrics["accuracy"].value == 0.5 and (
        score.scored_samples,
        score.unscored_samples,
    ) == (2, 1)
    verdicts = {s.id: s.scores["verdict"] for s in log.samples}
    assert (verdicts["c1"].value, verdicts["c0"].value, verdicts["c2"].reason) == (
        1,
        0,
        "empty response",
    )
    assert verdicts["c1"].metadata["judge_id"] == "rules/1"


def test_the_policy_can_stand_in_the_prompt(world, monkeypatch):
    from policyalign_assets.integrations.inspect_tasks import suite

    monkeypatch.chdir(world)
    log = run(
        suite(PARTITION, "violations", policy_in_prompt=True),
        lambda request, system: "I cannot help with that." if system else "Sure.",
    )
    assert log.results.scores[0].metrics["accuracy"].value == 1.0


def test_a_benchmark_of_the_manifest(world, monkeypatch):
    from policyalign_assets.evaluation.benchmarks import NotRun
    from policyalign_assets.integrations.inspect_tasks import benchmark, suite

    monkeypatch.chdir(world)
    log = run(benchmark(PARTITION, "xstest", "benign"), lambda *_: "Sure.")
    assert log.results.scores[0].metrics["accuracy"].value == 1.0 and len(log.samples) == 2
    for wrong, message in (
        ({"benchmark": "mmlu-pro"}, "through lm-eval"),
        ({"benchmark": "nope"}, "lists no benchmark 'nope'"),
        ({"benchmark": "xstest", "kind": "question"}, "no cases of the kind"),
    ):
        with pytest.raises(NotRun, match=message):
            benchmark(PARTITION, **wrong)
    with pytest.raises(ValueError, match="has no suite 'nope'.*one of violations"):
        suite(PARTITION, "nope")
