"""The four arms answer held-out cases and public benchmarks: base and aligned model, each without and with the policy in context.

No verdict is made here (see judging.py), but where a harness of its own asks and compares at once: multiple choice, lm-eval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from policyalign_assets.engine.base import Chat, Engine, Generation, PromptTooLong, Sampling, chat
from policyalign_assets.evaluation.answers import Answer, Model, all_at_once, answers
from policyalign_assets.evaluation.benchmarks import Benchmark, BenchmarkCase, Loaded, NotRun, load
from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.lm_eval_harness import (
    HarnessFailed,
    answered_correctly,
    installed,
)
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import EvaluationSettings
from policyalign_assets.tables import GENERATIONS

ARMS = ("base", "base_policy", "aligned", "aligned_policy")
TOO_LONG = "the request does not fit into the model's context"


@dataclass(frozen=True)
class BenchmarkRun:
    """`why_not` is set exactly where the benchmark has no rows. `available` cases were there, `cases` of them were asked."""

    benchmark: Benchmark
    why_not: str | None = None
    version: str | None = None
    source: str | None = None
    available: int = 0
    cases: int = 0


@dataclass(frozen=True)
class GenerationsInfo:
    """What a table of answers does not say in its rows; travels as its schema metadata (GENERATIONS_INFO). `settings`: by section."""

    checkpoint_id: str
    model_id: str
    model_revision: str
    model_note: str
    settings: dict[str, dict[str, Any]]
    versions: dict[str, str]
    benchmarks: list[BenchmarkRun]


def generate(
    cases: Sequence[TestCase],
    benchmarks: Sequence[Benchmark],
    base: Model,
    aligned: Model,
    policy: PolicyDocument,
    settings: EvaluationSettings,
    report: Callable[[str], None] = lambda _: None,
    store: Path | None = None,
) -> tuple[pa.Table, list[BenchmarkRun]]:
    """Greedy answers of each arm (GENERATIONS) and, for every benchmark, what was asked or why not.

    `store`: folder in which answers are kept; what is there is not asked again, and then no model is loaded.
    Raises PromptTooLong where the policy with a held-out case does not fit; a benchmark's case that does not is unanswered.
    """
    runs, public = _public(benchmarks, settings, base, aligned)
    choices, free = [c for c in public if c.choices], [c for c in public if not c.choices]
    unquotable = {b.id for b in benchmarks if not b.quotable}
    sampling = Sampling(settings.max_new_tokens, 0.0, settings.seed)
    rows: list[dict] = []
    # the harness loads the models itself: before they fill the memory here
    for arm, model in (("base", base), ("aligned", aligned)) if choices else ():
        report(f"arm {arm}: {len(choices)} multiple-choice questions")
        rows += _chosen(arm, model, choices, store)
    for arms, unopened in ((ARMS[:2], base), (ARMS[2:], aligned)):
        model = replace(unopened, engine=cache(unopened.engine))  # at most once for both arms
        for arm in arms:
            system = policy.prompt_text if arm.endswith("_policy") else None
            report(
                f"arm {arm}: {len(cases)} held-out cases, {len(free)} cases of public benchmarks"
            )
            for asked, how in ((cases, all_at_once), (free, what_fits)):
                said = (
                    answers(model, [chat(c.prompt, system) for c in asked], sampling, store, how)
                    if asked
                    else []
                )
                rows += [
                    answer_row(arm, case, answer) for case, answer in zip(asked, said, strict=True)
                ]
    same = {"policy_hash": policy.content_hash}
    return pa.Table.from_pylist(
        [{**row, **same, **(_NO_TEXT if row["benchmark"] in unquotable else {})} for row in rows],
        GENERATIONS,
    ), runs


def what_fits(engine: Engine, chats: Sequence[Chat], sampling: Sampling) -> list[Generation | None]:
    """As `engine.generate`, with None for each chat that does not fit. The engine refuses before any work, so halving is cheap."""
    try:
        return list(engine.generate(chats, sampling)) if chats else []
    except PromptTooLong:
        if len(chats) == 1:
            return [None]
    middle = len(chats) // 2
    return what_fits(engine, chats[:middle], sampling) + what_fits(engine, chats[middle:], sampling)


def _public(
    benchmarks: Sequence[Benchmark], settings: EvaluationSettings, *models: Model
) -> tuple[list[BenchmarkRun], list[BenchmarkCase]]:
    runs, cases = [], []
    for benchmark in benchmarks:
        try:
            loaded = _loaded(benchmark, settings, *models)
        except NotRun as reason:
            runs.append(BenchmarkRun(benchmark, str(reason)))
            continue
        chosen = evenly(loaded.cases, settings.benchmark_cases)
        cases += chosen
        runs.append(
            BenchmarkRun(
                benchmark, None, loaded.version, loaded.source, len(loaded.cases), len(chosen)
            )
        )
    return runs, cases


def _loaded(benchmark: Benchmark, settings: EvaluationSettings, *models: Model) -> Loaded:
    if benchmark.scoring == "likelihood":
        if not installed():
            raise NotRun(
                "its questions are asked through lm-eval, which is not installed. Mend: pip install 'policyalign-assets[eval]'"
            )
        if any(model.weights is None for model in models):
            raise NotRun("its questions are asked through lm-eval, which cannot load this model")
    elif benchmark.scoring == "value" and find_spec("math_verify") is None:
        raise NotRun(
            "its answers are compared by math-verify, which is not installed. Mend: pip install 'policyalign-assets[eval]'"
        )
    return load(
        benchmark,
        Path(settings.benchmarks_dir) if settings.benchmarks_dir else None,
        settings.benchmarks_from_hub,
    )


def evenly(cases: list[BenchmarkCase], most: int | None) -> list[BenchmarkCase]:
    """At most `most` cases of each kind, evenly over the file, so that every category is in."""
    chosen = []
    for kind in dict.fromkeys(c.kind for c in cases):
        same = [c for c in cases if c.kind == kind]
        n = min(most or len(same), len(same))
        chosen += [same[i * len(same) // n] for i in range(n)]
    return chosen


def _chosen(
    arm: str, model: Model, cases: Sequence[BenchmarkCase], store: Path | None
) -> list[dict]:
    """A harness that fails leaves its questions unanswered; the rest stands."""
    correct: Sequence[bool | None] = [None] * len(cases)
    reason = None
    try:
        correct = answered_correctly(model.identity, model.weights, cases, store)
    except HarnessFailed as error:
        reason = str(error)
    return [
        answer_row(arm, case, None)
        | {"response": None, "empty": False, "correct": hit, "unanswered": reason}
        for case, hit in zip(cases, correct, strict=True)
    ]


_NOTHING = dict.fromkeys(GENERATIONS.names)
_NO_TEXT = {"prompt": None, "reference": None}


def answer_row(arm: str, case: TestCase | BenchmarkCase, answer: Answer | None) -> dict:
    """A row of GENERATIONS, without the policy's hash. `answer`: None where the request did not fit."""
    if isinstance(case, TestCase):
        about = {
            "suite": case.suite,
            "rule_id": case.rule_id,
            "wrapped": case.wrapped,
            "reference": case.expected or None,
            "scoring": "text" if case.expected else "judge",
        }
    else:
        about = {
            "benchmark": case.benchmark,
            "category": case.category,
            "cluster": case.cluster,
            "reference": case.answer,
            "scoring": case.scoring,
        }
    said = (
        {"unanswered": TOO_LONG, "response": ""}
        if answer is None
        else {"response": answer.text, "tokens": answer.tokens}
    )
    return {
        **_NOTHING,
        "case_id": case.case_id,
        "arm": arm,
        "kind": case.kind,
        "prompt": case.prompt,
        **about,
        **said,
        "truncated": answer is not None and answer.truncated,
        "empty": answer is not None and not answer.text,
    }
