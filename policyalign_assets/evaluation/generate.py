"""The four arms answer held-out cases and public benchmarks.

An arm is the base or the aligned model, without or with the policy as its system message. Verdicts
are made later (see judging.py), except for multiple choice, which lm-eval both asks and scores.
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
from policyalign_assets.evaluation.answers import (
    Answer,
    Generate,
    Model,
    all_at_once,
    answers,
)
from policyalign_assets.evaluation.benchmarks import Benchmark, BenchmarkCase, Loaded, NotRun, load
from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.lm_eval_harness import (
    HarnessFailed,
    answered_correctly,
    installed,
)
from policyalign_assets.evaluation.suites import ARMS
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import EvaluationSettings
from policyalign_assets.tables import GENERATIONS

CODE_VERSION = 1  # raise it when new code changes what is asked and how answers are kept

TOO_LONG = "the request does not fit into the model's context"

Row = dict[str, Any]
AnyCase = TestCase | BenchmarkCase


@dataclass(frozen=True)
class BenchmarkRun:
    """What became of one benchmark. `available` cases were read, and `cases` of them were asked.

    `why_not` is set if and only if the benchmark was not run.
    """

    benchmark: Benchmark
    why_not: str | None = None
    version: str | None = None
    source: str | None = None
    available: int = 0
    cases: int = 0


@dataclass(frozen=True)
class GenerationsInfo:
    """What the rows of a table of answers do not say; kept in its schema metadata (GENERATIONS_INFO).

    settings: by section.
    """

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
    """Greedy answers of each arm (GENERATIONS), and what became of each benchmark.

    store: folder in which answers are kept. Answers that it holds are not generated again, and a
        model all of whose answers it holds is not loaded.
    Raises PromptTooLong if the policy and a held-out case do not fit into the model's context. A
    case of a public benchmark that does not fit stays unanswered.
    """
    runs, public = _public(benchmarks, settings, base, aligned)
    choices, free = [c for c in public if c.choices], [c for c in public if not c.choices]
    unquotable = {b.id for b in benchmarks if not b.quotable}
    sampling = Sampling(settings.max_new_tokens, 0.0, settings.seed)
    rows: list[Row] = []
    # lm-eval loads the models itself, so it runs before they fill the memory of this process.
    for arm, model in (("base", base), ("aligned", aligned)) if choices else ():
        report(f"arm {arm}: {len(choices)} multiple-choice questions")
        rows += _chosen(arm, model, choices, store)
    groups: list[tuple[list[AnyCase], Generate]] = [
        ([*cases], all_at_once),
        ([*free], what_fits),
    ]
    of_base, of_aligned = tuple(ARMS)[:2], tuple(ARMS)[2:]
    for arms, unopened in ((of_base, base), (of_aligned, aligned)):
        model = replace(unopened, engine=cache(unopened.engine))  # loaded at most once for both
        for arm in arms:
            system = policy.prompt_text if arm.endswith("_policy") else None
            report(
                f"arm {arm}: {len(cases)} held-out cases, {len(free)} cases of public benchmarks"
            )
            for group, how in groups:
                if group:
                    chats = [chat(c.prompt, system) for c in group]
                    made = answers(model, chats, sampling, store, how)
                    rows += [answer_row(arm, c, a) for c, a in zip(group, made, strict=True)]
    same = {"policy_hash": policy.content_hash}
    return pa.Table.from_pylist(
        [{**row, **same, **(_NO_TEXT if row["benchmark"] in unquotable else {})} for row in rows],
        GENERATIONS,
    ), runs


def what_fits(engine: Engine, chats: Sequence[Chat], sampling: Sampling) -> list[Generation | None]:
    """As `engine.generate`, with None for each chat that does not fit into the context.

    The engine refuses before any work, so trying halves costs little.
    """
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
    install = "Fix: pip install 'policyalign-assets[eval]'."
    if benchmark.scoring == "likelihood":
        if not installed():
            raise NotRun(f"its questions need lm-eval, which is not installed. {install}")
        if any(model.weights is None for model in models):
            raise NotRun("its questions need lm-eval, which cannot load this model")
    elif benchmark.scoring == "value" and find_spec("math_verify") is None:
        raise NotRun(f"its answers need math-verify, which is not installed. {install}")
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
) -> list[Row]:
    """Rows of multiple-choice questions. If lm-eval fails, its questions stay unanswered."""
    correct: Sequence[bool | None] = [None] * len(cases)
    reason = None
    try:
        if model.weights is None:
            raise HarnessFailed("lm-eval cannot load this model")
        correct = answered_correctly(model.identity, model.weights, cases, store)
    except HarnessFailed as error:
        reason = str(error)
    return [
        answer_row(arm, case, None)
        | {"response": None, "empty": False, "correct": hit, "unanswered": reason}
        for case, hit in zip(cases, correct, strict=True)
    ]


_NOTHING: Row = dict.fromkeys(GENERATIONS.names)
_NO_TEXT: Row = {"prompt": None, "reference": None}


def answer_row(arm: str, case: AnyCase, answer: Answer | None) -> Row:
    """A row of GENERATIONS without the policy's hash. `answer` is None if the chat did not fit."""
    if answer is None:
        outcome: Row = {"unanswered": TOO_LONG, "response": ""}
    else:
        outcome = {"response": answer.text, "tokens": answer.tokens}
    return {
        **_NOTHING,
        "case_id": case.case_id,
        "arm": arm,
        "kind": case.kind,
        "prompt": case.prompt,
        **_about(case),
        **outcome,
        "truncated": answer is not None and answer.truncated,
        "empty": answer is not None and not answer.text,
    }


def _about(case: AnyCase) -> Row:
    if isinstance(case, TestCase):
        return {
            "suite": case.suite,
            "rule_id": case.rule_id,
            "wrapped": case.wrapped,
            "cluster": case.cluster,
            "reference": case.expected or None,
            "scoring": "text" if case.expected else "judge",
        }
    return {
        "benchmark": case.benchmark,
        "category": case.category,
        "cluster": case.cluster,
        "reference": case.answer,
        "scoring": case.scoring,
    }
