"""Runs the public benchmarks of a domain: the four arms answer, the configured judge or the reference answer scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from policyalign_assets.engine.base import Chat, Engine, Generation, PromptTooLong, Sampling, chat
from policyalign_assets.evaluation.benchmarks import Benchmark, BenchmarkCase, Loaded, NotRun, load
from policyalign_assets.evaluation.capability import HarnessFailed, answered_correctly, installed
from policyalign_assets.evaluation.evaluate import ARMS, findings
from policyalign_assets.evaluation.generations import Answer, Model, answers
from policyalign_assets.evaluation.judges.verdict import Dialogue, Judge, Verdict
from policyalign_assets.settings import EvaluationSettings
from policyalign_assets.tables import BENCHMARKS

TOO_LONG = "the request does not fit into the model's context"
NOT_COMPARED = "the answer could not be compared with the reference"


@dataclass(frozen=True)
class BenchmarkRun:
    """`why_not` is set exactly where the benchmark has no rows. `available` cases were there, `cases` of them were asked."""

    benchmark: Benchmark
    why_not: str | None = None
    version: str | None = None
    source: str | None = None
    available: int = 0
    cases: int = 0


def run_benchmarks(benchmarks: Sequence[Benchmark], base: Model, aligned: Model, policy_text: str, judge: Judge, settings: EvaluationSettings,
                   report: Callable[[str], None] = lambda _: None, store: Path | None = None) -> tuple[pa.Table, list[BenchmarkRun]]:
    """Judged answers (BENCHMARKS) and, for every benchmark, what was run or why not. Loads no model where nothing can be run."""
    runs, cases = [], []
    for benchmark in benchmarks:
        try:
            loaded = _loaded(benchmark, settings, base, aligned)
        except NotRun as reason:
            runs.append(BenchmarkRun(benchmark, str(reason)))
            continue
        chosen = _evenly(loaded.cases, settings.benchmark_cases)
        cases += chosen
        runs.append(BenchmarkRun(benchmark, None, loaded.version, loaded.source, len(loaded.cases), len(chosen)))
    choices = [c for c in cases if c.choices]
    cases = [c for c in cases if not c.choices]
    tables = [BENCHMARKS.empty_table()]
    for arm, model in (("base", base), ("aligned", aligned)) if choices else ():
        report(f"arm {arm}: {len(choices)} multiple-choice questions")
        tables.append(_chosen(arm, model, choices, store))
    for arm in ARMS if cases else ():
        system = policy_text if arm.endswith("_policy") else None
        report(f"arm {arm}: {len(cases)} cases of public benchmarks")
        said = answers(base if arm.startswith("base") else aligned, [chat(c.prompt, system) for c in cases],
                       Sampling(settings.max_new_tokens, 0.0, settings.seed), store, generate_what_fits)
        tables.append(pa.Table.from_pylist(_rows(arm, cases, said, judge), schema=BENCHMARKS))
    return pa.concat_tables(tables), runs


def generate_what_fits(engine: Engine, chats: Sequence[Chat], sampling: Sampling) -> list[Generation | None]:
    """As `engine.generate`, with None for each chat that does not fit. The engine refuses before any work, so halving is cheap."""
    try:
        return list(engine.generate(chats, sampling)) if chats else []
    except PromptTooLong:
        if len(chats) == 1:
            return [None]
    middle = len(chats) // 2
    return generate_what_fits(engine, chats[:middle], sampling) + generate_what_fits(engine, chats[middle:], sampling)


def grade(pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """For (reference, answer) pairs of mathematics: is it the same value? None where math-verify fails.

    In a process of its own: math-verify limits its time by a signal, which only a main thread gets.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as worker:
        return worker.submit(_grade, list(pairs)).result()


def _grade(pairs: list[tuple[str, str]]) -> list[bool | None]:
    from math_verify import parse, verify

    def same(reference: str, answer: str) -> bool | None:
        try:
            return bool(verify(parse(f"\\boxed{{{reference}}}"), parse(answer)))
        except Exception:  # sympy fails in many ways on what models write
            return None

    return [same(reference, answer) for reference, answer in pairs]


def _chosen(arm: str, model: Model, cases: Sequence[BenchmarkCase], store: Path | None) -> pa.Table:
    """A harness that fails leaves its questions unscored; the rest of the report stands."""
    try:
        correct = answered_correctly(model.identity, model.weights, cases, store)
        verdicts = [Verdict()] * len(cases)
    except HarnessFailed as error:
        correct, verdicts = [None] * len(cases), [Verdict(reason=str(error))] * len(cases)
    nothing = Answer("", 0, False)
    rows = [_row(arm, case, nothing, verdict, hit) | {"response": None, "empty": False}
            for case, verdict, hit in zip(cases, verdicts, correct, strict=True)]
    return pa.Table.from_pylist(rows, schema=BENCHMARKS)


def _loaded(benchmark: Benchmark, settings: EvaluationSettings, *models: Model) -> Loaded:
    if benchmark.runner == "none":
        raise NotRun("its free answers need a judge of correctness, which is not built")
    if benchmark.runner == "lm-eval":
        if not installed():
            raise NotRun("its questions are asked through lm-eval, which is not installed. Mend: pip install 'policyalign-assets[eval]'")
        if any(model.weights is None for model in models):
            raise NotRun("its questions are asked through lm-eval, which cannot load this model")
    elif benchmark.answer and find_spec("math_verify") is None:
        raise NotRun("its answers are compared by math-verify, which is not installed. Mend: pip install 'policyalign-assets[eval]'")
    return load(benchmark, Path(settings.benchmarks_dir) if settings.benchmarks_dir else None, settings.benchmarks_from_hub)


def _evenly(cases: list[BenchmarkCase], most: int | None) -> list[BenchmarkCase]:
    """At most `most` cases of each kind, evenly over the file, so that every category is in."""
    chosen = []
    for kind in dict.fromkeys(c.kind for c in cases):
        same = [c for c in cases if c.kind == kind]
        n = min(most or len(same), len(same))
        chosen += [same[i * len(same) // n] for i in range(n)]
    return chosen


def _rows(arm: str, cases: Sequence[BenchmarkCase], said: Sequence[Answer | None], judge: Judge) -> list[dict]:
    asked = [i for i, answer in enumerate(said) if answer is not None]
    chats = [i for i in asked if cases[i].kind != "question"]
    questions = [i for i in asked if cases[i].kind == "question"]
    verdicts = dict(zip(chats, judge.judge_all([Dialogue(cases[i].prompt, said[i].text) for i in chats]), strict=True))
    correct = dict(zip(questions, grade([(cases[i].answer, said[i].text) for i in questions]) if questions else []))
    return [_row(arm, case, answer, verdicts.get(i), correct.get(i)) for i, (case, answer) in enumerate(zip(cases, said, strict=True))]


def _row(arm: str, case: BenchmarkCase, answer: Answer | None, verdict: Verdict | None, correct: bool | None) -> dict:
    if answer is None:
        verdict = Verdict(reason=TOO_LONG)
    elif verdict is None:
        verdict = Verdict(reason=NOT_COMPARED if correct is None else None)
    return {"benchmark": case.benchmark, "kind": case.kind, "case_id": case.case_id, "arm": arm, "category": case.category, "cluster": case.cluster,
            "prompt": case.prompt, "reference": case.answer, "response": answer.text if answer else "", "correct": correct,
            "truncated": answer is not None and answer.truncated, "empty": answer is not None and not answer.text,
            "tokens": answer.tokens if answer else None, **findings(verdict)}
