"""Multiple choice through lm-eval: the numbers are those that its own command line gives for the
same adapter."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_benchmark_runs import asked, never
from test_benchmarks import FIXTURES, ours, write

from policyalign_assets.engine.loading import load_model
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.evaluation.answers import Model
from policyalign_assets.evaluation.benchmarks import NotRun, load
from policyalign_assets.evaluation.judging import judge_answers
from policyalign_assets.evaluation.lm_eval_harness import (
    HarnessFailed,
    Weights,
    answered_correctly,
    command,
    installed,
    write_tasks,
)
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.report.benchmarks import benchmark_blocks
from policyalign_assets.report.chain import join
from policyalign_assets.settings import ModelSettings

pytestmark = pytest.mark.slow

needs_lm_eval = pytest.mark.skipif(
    not installed(), reason="lm-eval is not installed (extra `eval`)"
)
MEDMCQA = [
    {
        "id": f"i{i}",
        "question": f"Which of these is number {i}?",
        "opa": f"number {i % 4}",
        "opb": f"thing {i}",
        "opc": "a door",
        "opd": "a key",
        "cop": i % 4,
        "subject_name": "s",
    }
    for i in range(16)
]


def cases(tmp_path, benchmark="medmcqa", rows=MEDMCQA):
    write(tmp_path / FIXTURES[benchmark][0], rows)
    return load(ours(benchmark), tmp_path).cases


@pytest.mark.parametrize(
    ("benchmark", "row", "answer"),
    [
        ("medmcqa", MEDMCQA[3], "a key"),
        (
            "mmlu-pro",
            {
                **FIXTURES["mmlu-pro"][1][0],
                "options": ["yes", "no", "maybe"],
                "answer": "C",
                "answer_index": 2,
            },
            "maybe",
        ),
        ("medqa", {"question": "q", "options": {"A": "yes", "B": "no"}, "answer_idx": "B"}, "no"),
        ("lexam", {"Question": "q", "choices": ["ja", "nein"], "gold": 1}, "nein"),
        ("gpqa-diamond", FIXTURES["gpqa-diamond"][1][0], "a"),
    ],
)
def test_the_right_choice_is_found_however_its_home_writes_it(tmp_path, benchmark, row, answer):
    write(tmp_path / ours(benchmark).files[0], [row])
    (case,) = load(ours(benchmark), tmp_path).cases
    assert case.answer == answer in case.choices


def test_the_place_of_the_right_choice_tells_nothing(tmp_path):
    row = FIXTURES["gpqa-diamond"][1][0]
    places = [c.choices.index("a") for c in cases(tmp_path, "gpqa-diamond", [row] * 200)]
    assert all(30 <= places.count(place) <= 70 for place in range(4))


@pytest.mark.parametrize("wrong", [{"cop": 4}, {"cop": -1}, {"opb": "number 0"}])
def test_a_question_without_a_single_right_choice_is_not_run(tmp_path, wrong):
    with pytest.raises(NotRun, match="row 1 has no single right choice"):
        cases(tmp_path, rows=[MEDMCQA[0] | wrong])


@needs_lm_eval
def test_the_figures_are_those_of_the_command_line_for_the_same_adapter(tmp_path):
    torch.manual_seed(0)
    adapted = get_peft_model(
        load_model(ModelSettings()).model,
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    weights = Weights(str(BUNDLED_WEIGHTS), "float32", "cpu", adapter=tmp_path / "adapter")
    questions = cases(tmp_path)
    correct = answered_correctly("m", weights, questions, tmp_path / "store")

    folder = tmp_path / "by hand"
    folder.mkdir()
    subprocess.run(
        command(weights, write_tasks(questions, folder), folder), check=True, capture_output=True
    )
    (results,) = folder.glob("out/**/results_*.json")
    assert sum(correct) / len(correct) == pytest.approx(
        json.loads(results.read_text())["results"]["policyalign_medmcqa"]["acc,none"]
    )
    assert 0 < sum(correct) < len(correct)

    nowhere = Weights("/nowhere", "float32", "cpu")
    assert (
        answered_correctly("m", nowhere, questions, tmp_path / "store") == correct
    )  # kept, so not asked again


@pytest.mark.parametrize(
    "program", ["raise SystemExit('out of memory')", "print('nothing was logged')"]
)
def test_a_harness_that_fails_leaves_its_questions_unscored(tmp_path, monkeypatch, program):
    monkeypatch.setattr("policyalign_assets.evaluation.generate.installed", lambda: True)
    monkeypatch.setattr(
        "policyalign_assets.evaluation.lm_eval_harness.command",
        lambda *_: [sys.executable, "-c", program],
    )
    cases(tmp_path)
    broken = Weights("a model", "float32", "cpu")
    answers, runs = asked(
        tmp_path, [ours("medmcqa")], (Model("base", never, broken), Model("aligned", never, broken))
    )
    (part,) = benchmark_blocks(runs, join(answers, judge_answers(answers, RuleBasedJudge()))[1], 0)[
        0
    ].parts
    assert [(f.arm, f.rate.n, f.unscored) for f in part.figures] == [
        ("base", 0, 16),
        ("aligned", 0, 16),
    ]
    reason = (
        "lm-eval failed: out of memory"
        if "memory" in program
        else "lm-eval logged no answer to 16 of 16 questions"
    )
    assert all(list(f.unscored_reasons) == [reason] for f in part.figures)


def test_a_harness_that_does_not_end_is_stopped_with_all_its_processes(tmp_path, monkeypatch):
    started = tmp_path / "child"
    program = (
        "import subprocess, sys, time, pathlib;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid)); time.sleep(600)"
    )
    monkeypatch.setattr(
        "policyalign_assets.evaluation.lm_eval_harness.command",
        lambda *_: [sys.executable, "-c", program],
    )
    monkeypatch.setattr("policyalign_assets.evaluation.lm_eval_harness.HOURS", 3 / 3600)
    with pytest.raises(HarnessFailed, match="did not end within"):
        answered_correctly("m", Weights("a model", "float32", "cpu"), cases(tmp_path))
    child = Path(f"/proc/{started.read_text()}/stat")
    for _ in range(100):
        if not child.exists() or child.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("a process that lm-eval started still runs")


def test_a_harness_that_cannot_be_started_leaves_its_questions_unscored(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "policyalign_assets.evaluation.lm_eval_harness.command", lambda *_: ["/nowhere/python"]
    )
    with pytest.raises(HarnessFailed, match="cannot be started"):
        answered_correctly("m", Weights("a model", "float32", "cpu"), cases(tmp_path))
