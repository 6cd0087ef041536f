"""Public benchmarks in a run: who is asked, what is kept, and the figures that come of it."""

from dataclasses import replace

import pyarrow as pa
import pytest
import slow_comparison
from helpers import medical_policy
from pydantic import TypeAdapter
from test_benchmarks import (
    BY_ID,
    FIXTURES,
    SHARED,
    needs_math,
    needs_shared,
    ours,
    write,
    xstest_rows,
)
from test_report import CONTEXT, Page

from policyalign_assets.engine.base import Generation, PromptTooLong
from policyalign_assets.evaluation.answers import Model
from policyalign_assets.evaluation.benchmarks import load, manifest
from policyalign_assets.evaluation.cases import TestCase as HeldOutCase
from policyalign_assets.evaluation.conversation import Conversation
from policyalign_assets.evaluation.generate import BenchmarkRun, GenerationsInfo, generate
from policyalign_assets.evaluation.judging import JudgementsInfo, judge_answers
from policyalign_assets.evaluation.lm_eval_harness import Weights
from policyalign_assets.evaluation.mathematics import same_values
from policyalign_assets.files import sha256_table
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.judges.verdict import Verdict
from policyalign_assets.report.benchmarks import benchmark_blocks
from policyalign_assets.report.build import build_report
from policyalign_assets.report.chain import NotOfOnePiece, join, judged_answers
from policyalign_assets.report.render import benchmarks_table, to_html
from policyalign_assets.report.summary import metric_values
from policyalign_assets.settings import EvaluationSettings
from policyalign_assets.tables import (
    BENCHMARKS,
    EVALUATION,
    GENERATIONS,
    GENERATIONS_INFO,
    JUDGEMENTS_INFO,
)


class Door:
    """Refuses what it is asked about odd doors; with the policy everything; requests with '!' do
    not fit its context."""

    model_id, revision = "door", "r1"

    def __init__(self, aligned: bool):
        self.aligned = aligned

    def generate(self, chats, sampling, progress=None):
        if any("!" in c[-1].content for c in chats):
            raise PromptTooLong("too long")
        return [Generation(self.say(c), (1, 2), "stop") for c in chats]

    def say(self, c) -> str:
        odd = any(f"number {i}" in c[-1].content for i in (1, 3))
        return (
            "I cannot help with that."
            if c[0].role == "system" or (self.aligned and odd)
            else ""
            if "number 2" in c[-1].content
            else "Sure."
        )


MODELS = Model("base", lambda: Door(False)), Model("aligned", lambda: Door(True))


def asked(
    tmp_path, benchmarks=(), models=MODELS, store=None, cases=(), **settings
) -> tuple[pa.Table, list[BenchmarkRun]]:
    return generate(
        cases,
        benchmarks,
        *models,
        medical_policy(),
        EvaluationSettings(benchmarks_dir=str(tmp_path), **settings),
        store=store,
    )


def run(tmp_path, benchmarks, judge=None, **how) -> tuple[pa.Table, list[BenchmarkRun]]:
    answers, runs = asked(tmp_path, benchmarks, **how)
    return join(answers, judge_answers(answers, judge or RuleBasedJudge()))[1], runs


def test_a_run_counts_answers_refusals_unscored_and_empty_per_arm_and_kind(tmp_path):
    rows = [*xstest_rows(), {**xstest_rows()[0], "id": 9, "prompt": "Too long!"}]
    write(tmp_path / "xstest/xstest_prompts.csv", rows)
    table, runs = run(tmp_path, [ours("xstest"), BY_ID["advbench"], BY_ID["mmlu-pro"]])
    assert table.schema == BENCHMARKS and table.num_rows == 4 * 5
    xstest, advbench, mmlu = blocks = benchmark_blocks(runs, table, 0)
    assert (
        "no file advbench" in advbench.why_not
        and "lm-eval" in mmlu.why_not
        and not advbench.parts
        and xstest.why_not is None
    )
    parts = {p.kind: {f.arm: f for f in p.figures} for p in xstest.parts}
    benign, harmful = parts["benign"], parts["harmful"]
    assert (
        benign["base"].rate.k,
        benign["base"].rate.n,
        benign["base"].unscored,
        benign["base"].empty,
    ) == (1, 1, 2, 1)
    assert benign["base"].unscored_reasons == {
        "empty response": 1,
        "the request does not fit into the model's context": 1,
    }
    assert [
        (harmful[a].rate.k, harmful[a].rate.n)
        for a in ("base", "base_policy", "aligned", "aligned_policy")
    ] == [(0, 2), (2, 2), (2, 2), (2, 2)]
    change = {p.kind: p.change for p in xstest.parts}
    assert (change["harmful"].difference, change["harmful"].n, change["benign"].n) == (1.0, 2, 1)

    report = build_report(EVALUATION.empty_table(), CONTEXT, None, benchmarks=blocks)
    lines = benchmarks_table(report).to_pylist()
    assert [(x["benchmark"], x["arm"]) for x in lines if x["why_not"]] == [
        ("advbench", None),
        ("mmlu-pro", None),
    ] and len(lines) == 2 * 4 + 2
    page = to_html(report)
    assert "not run: " + advbench.why_not in Page(page).text
    assert (
        metric_values(report)["benchmark/xstest/refused/aligned"]
        == 1.0
        == next(x["estimate"] for x in lines if (x["kind"], x["arm"]) == ("harmful", "aligned"))
    )


def test_a_cap_takes_cases_evenly_from_each_kind(tmp_path):
    write(tmp_path / "xstest/xstest_prompts.csv", xstest_rows(40))
    table, runs = run(tmp_path, [ours("xstest")], benchmark_cases=4)
    base = [r for r in table.to_pylist() if r["arm"] == "base"]
    assert [r["kind"] for r in base] == ["benign"] * 4 + ["harmful"] * 4
    assert [r["case_id"] for r in base[:4]] == [
        "xstest-benign-1",
        "xstest-benign-11",
        "xstest-benign-21",
        "xstest-benign-31",
    ]
    assert (runs[0].available, runs[0].cases) == (40, 8)


def never():
    raise AssertionError("a model was loaded")


NO_MODELS = Model("base", never), Model("aligned", never)


def test_no_benchmark_file_means_no_model_is_loaded(tmp_path):
    table, runs = run(tmp_path, manifest(), models=NO_MODELS)
    assert table.num_rows == 0 and all(r.why_not for r in runs) and len(runs) == len(manifest())


class Suspicious:
    """Another judge: calls everything unsafe."""

    id, revision, template = "suspicious", "r", "t"

    def judge_all(self, dialogues):
        return [
            Verdict(refused=False, safe=False, judge=self.id, template=self.template)
            for _ in dialogues
        ]


HELD_OUT = [
    HeldOutCase(
        f"c{i}", "violations", "covered", "C1", False, Conversation.of(f"Open door number {i}")
    )
    for i in range(3)
]


def test_another_judge_needs_the_answers_alone(tmp_path):
    write(
        tmp_path / "xstest/xstest_prompts.csv",
        [*xstest_rows(), {**xstest_rows()[0], "id": 9, "prompt": "Too long!"}],
    )
    answers, _ = asked(tmp_path, [ours("xstest")], cases=HELD_OUT)
    assert answers.schema == GENERATIONS and not {"refused", "safe", "judge_id"} & set(
        answers.column_names
    )
    first, second = (judge_answers(answers, judge) for judge in (RuleBasedJudge(), Suspicious()))
    assert first.select(["case_id", "arm"]) == second.select(["case_id", "arm"])
    assert (
        set(second.filter(second["scored"])["judge_id"].to_pylist()) == {"suspicious"}
        and first["judge_id"] != second["judge_id"]
    )
    assert (
        second["unscored_reason"]
        .to_pylist()
        .count("the request does not fit into the model's context")
        == 4
    )
    heldout, public = join(answers, second)
    assert (
        heldout.schema == EVALUATION
        and heldout["safe"].to_pylist() == [False] * 12
        and public.num_rows == 4 * 5
    )


def test_answers_that_are_kept_need_no_model(tmp_path):
    write(
        tmp_path / "xstest/xstest_prompts.csv",
        [*xstest_rows(), {**xstest_rows()[0], "id": 9, "prompt": "Too long!"}],
    )
    how = {"cases": HELD_OUT, "store": tmp_path / "kept"}
    assert asked(tmp_path, [ours("xstest")], **how) == asked(
        tmp_path, [ours("xstest")], NO_MODELS, **how
    )
    newly_trained = MODELS[0], Model("aligned anew", never)
    with pytest.raises(AssertionError, match="a model was loaded"):
        asked(tmp_path, [ours("xstest")], newly_trained, **how)
    assert (
        asked(
            tmp_path,
            [ours("xstest")],
            (NO_MODELS[0], replace(MODELS[1], identity="aligned anew")),
            **how,
        )[0].num_rows
        == 4 * 8
    )


def test_a_longer_list_asks_the_model_only_what_it_was_not_asked_yet(tmp_path):
    heard = []

    class Listening(Door):
        def generate(self, chats, sampling, progress=None):
            heard.extend(c[-1].content for c in chats)
            return super().generate(chats, sampling, progress)

    models = Model("base", lambda: Listening(False)), Model("aligned", lambda: Listening(True))
    first, _ = asked(tmp_path, models=models, cases=HELD_OUT[:2], store=tmp_path)
    before = len(heard)
    both, _ = asked(tmp_path, models=models, cases=HELD_OUT[1:3], store=tmp_path)
    new = [c.prompt for c in HELD_OUT[2:3]]
    assert sorted(heard[before:]) == sorted(new * 4)  # in each of the four arms
    again, _ = asked(tmp_path, cases=HELD_OUT[1:3])  # without a store
    assert both == again and first.num_rows == 8


@pytest.mark.parametrize("changed", ["model", "request", "sampling"])
def test_answers_are_made_anew_for_another_model_request_or_sampling(tmp_path, changed):
    asked(tmp_path, cases=HELD_OUT[:1], store=tmp_path)
    models = Model("base 2", never), Model("aligned 2", never)
    how = {
        "model": {"models": models, "cases": HELD_OUT[:1]},
        "request": {"models": NO_MODELS, "cases": HELD_OUT[1:2]},
        "sampling": {"models": NO_MODELS, "cases": HELD_OUT[:1], "max_new_tokens": 9},
    }[changed]
    with pytest.raises(AssertionError, match="a model was loaded"):
        asked(tmp_path, store=tmp_path, **how)


def test_each_model_is_opened_once_for_its_two_arms(tmp_path):
    opened = []

    def model(name: str, aligned: bool) -> Model:
        return Model(name, lambda: opened.append(name) or Door(aligned))

    write(tmp_path / "xstest/xstest_prompts.csv", xstest_rows())
    asked(
        tmp_path, [ours("xstest")], (model("base", False), model("aligned", True)), cases=HELD_OUT
    )
    assert opened == ["base", "aligned"]


def test_a_held_out_case_that_does_not_fit_stops_the_stage(tmp_path):
    """The policy is too long then, and every figure would be wrong."""
    with pytest.raises(PromptTooLong):
        asked(tmp_path, cases=[replace(HELD_OUT[0], conversation=Conversation.of("Too long!"))])


def test_no_text_is_kept_of_a_benchmark_whose_authors_ask_for_that(tmp_path, monkeypatch):
    monkeypatch.setattr("policyalign_assets.evaluation.generate.installed", lambda: True)
    monkeypatch.setattr(
        "policyalign_assets.evaluation.generate.answered_correctly",
        lambda identity, weights, cases, store: [True] * len(cases),
    )
    write(tmp_path / FIXTURES["gpqa-diamond"][0], FIXTURES["gpqa-diamond"][1])
    able = tuple(replace(m, weights=Weights("m", "float32", "cpu")) for m in NO_MODELS)
    answers, _ = asked(tmp_path, [ours("gpqa-diamond")], able)
    assert set(answers["prompt"].to_pylist()) == {None} == set(answers["reference"].to_pylist())
    assert not any(
        text in str(answers.to_pylist())
        for text in FIXTURES["gpqa-diamond"][1][0].values()
        if len(text) > 3
    )
    assert judge_answers(answers, Suspicious())["correct"].to_pylist() == [True] * answers.num_rows


def test_graded_harm_and_unsafe_refusals_are_in_the_figures(tmp_path):
    class Graded:
        id, revision, template = "graded", "r", "t"

        def judge_all(self, dialogues):
            return [
                Verdict(
                    refused=True,
                    safe=d.response != "Sure.",
                    harm=1.0 if d.response == "Sure." else 0.0,
                    judge="graded",
                )
                for d in dialogues
            ]

    write(tmp_path / "xstest/xstest_prompts.csv", xstest_rows(6))
    table, runs = run(tmp_path, [ours("xstest")], Graded())
    part = next(p for p in benchmark_blocks(runs, table, 0)[0].parts if p.kind == "harmful")
    figures = {f.arm: f for f in part.figures}
    assert (figures["base"].rate.k, figures["base"].rate.n, figures["base"].safe.k) == (
        0,
        3,
        0,
    )  # "refused", but unsafe
    assert (part.harm.mean_a, round(part.harm.mean_b, 3), part.harm.n, part.harm.clusters) == (
        1.0,
        0.333,
        3,
        3,
    )


def test_the_worst_categories_come_first(tmp_path):
    rows = [
        row | {"type": "odd" if i in (1, 3) else "even"} for i, row in enumerate(xstest_rows(6))
    ]
    write(tmp_path / "xstest/xstest_prompts.csv", rows)
    table, runs = run(tmp_path, [ours("xstest")])
    harmful = next(p for p in benchmark_blocks(runs, table, 0)[0].parts if p.kind == "harmful")
    found = [
        (c.category, c.aligned.k, c.aligned.n, c.base.k, c.few_cases) for c in harmful.categories
    ]
    assert found == [("even", 0, 1, 0, True), ("odd", 2, 2, 0, True)]


FINANCE = [
    {
        "financebench_id": f"f{i}",
        "question": f"Revenue number {i}?",
        "answer": f"{i} million",
        "question_type": "t",
    }
    for i in range(4)
]


class Accountant:
    id, revision, template = "correctness/m", "r", "t"

    def judge_all(self, dialogues):
        return [
            Verdict(
                correct="number 1" in d.prompt and d.reference == "1 million",
                label="correct",
                judge=self.id,
            )
            for d in dialogues
        ]


def test_free_answers_are_compared_by_a_judge_that_writes_json_and_unscored_without_one(tmp_path):
    benchmark = ours("financebench")
    write(tmp_path / benchmark.files[0], FINANCE)
    answers, runs = asked(tmp_path, [benchmark])
    for judge, counts in ((Accountant(), (1, 4, 0)), (None, (0, 0, 4))):
        _, public = join(answers, judge_answers(answers, Suspicious(), judge))
        (part,) = benchmark_blocks(runs, public, 0)[0].parts
        figure = next(f for f in part.figures if f.arm == "aligned")
        assert (part.metric, figure.rate.k, figure.rate.n, figure.unscored) == ("correct", *counts)
    assert "does not compare answers with a reference" in next(iter(figure.unscored_reasons))


@pytest.mark.parametrize(
    ("checkpoint", "other_answers", "fix"),
    [("another", False, "materialize generations"), ("c1", True, "materialize judgements")],
)
def test_a_report_of_parts_that_do_not_belong_together_is_refused(
    tmp_path, checkpoint, other_answers, fix
):
    def stamped(table: pa.Table, key: bytes, said: object) -> pa.Table:
        return table.replace_schema_metadata({key: TypeAdapter(type(said)).dump_json(said)})

    answers, runs = asked(tmp_path, cases=HELD_OUT)
    verdicts = stamped(
        judge_answers(answers, RuleBasedJudge()),
        JUDGEMENTS_INFO,
        JudgementsInfo(sha256_table(answers), "rules", {}),
    )
    if other_answers:
        answers, _ = asked(tmp_path, cases=HELD_OUT[:2])
    answers = stamped(
        answers, GENERATIONS_INFO, GenerationsInfo("c1", "m", "r", "a note", {}, {}, runs)
    )
    with pytest.raises(NotOfOnePiece, match=fix):
        judged_answers(answers, verdicts, checkpoint)
    if not other_answers:
        assert judged_answers(answers, verdicts, "c1").heldout.num_rows == 12


@needs_math
def test_mathematics_is_graded_by_value():
    assert same_values(
        [
            ("\\frac{1}{2}", "So it is $0.5$."),
            ("2", "The answer is $\\boxed{3}$"),
            ("2", "I cannot help."),
            ("x+1", "\\boxed{1+x}"),
        ]
    ) == [True, False, False, True]


@needs_shared
@pytest.mark.parametrize(
    ("benchmark", "cases"),
    [
        ("strongreject", 313),
        ("xstest", 450),
        ("math-500", 500),
        ("trident-medicine", 854),
        ("trident-law", 887),
        ("trident-finance", 911),
    ],
)
def test_the_public_files_are_read_whole(benchmark, cases):
    loaded = load(BY_ID[benchmark], SHARED)
    assert len(loaded.cases) == cases == len({c.case_id for c in loaded.cases})


@pytest.mark.slow
def test_a_pair_that_cannot_be_compared_in_time_leaves_the_others_their_result():
    pairs = [("1", "1"), ("1", "endless"), ("2", "2"), ("1", "dead"), ("3", "2")]
    assert same_values(pairs, seconds=5, compare=slow_comparison.same_text) == [
        True,
        None,
        True,
        None,
        False,
    ]
