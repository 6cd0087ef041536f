"""The four arms answer held-out cases and public benchmarks.

An arm is the base or the aligned model, without or with the policy as its system message. Verdicts
are made later (see judging.py), except for multiple choice, which lm-eval both asks and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from policyalign_assets.engine.base import Sampling
from policyalign_assets.evaluation.answers import (
    Answer,
    Generate,
    Model,
    Request,
    all_at_once,
    answers,
    what_fits,
)
from policyalign_assets.evaluation.benchmarks import Benchmark, BenchmarkCase, Loaded, NotRun, load
from policyalign_assets.evaluation.case_plan import RulePlan
from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.conversation import Conversation
from policyalign_assets.evaluation.lm_eval_harness import (
    HarnessFailed,
    answered_correctly,
    installed,
)
from policyalign_assets.evaluation.red_team_coverage import RedTeamCoverage
from policyalign_assets.evaluation.suites import ALIGNED_POLICY, ARMS, SUITES, TEACHER
from policyalign_assets.evaluation.withdrawn import WithdrawnRules
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import EvaluationSettings
from policyalign_assets.tables import GENERATIONS

CODE_VERSION = 5  # raise it when new code changes what is asked, in which form, or the info
TOO_LONG = "the request does not fit into the model's context"

Row = dict[str, Any]
AnyCase = TestCase | BenchmarkCase
AnyCaseT = TypeVar("AnyCaseT", TestCase, BenchmarkCase)


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
    """What the rows of GENERATIONS do not say; kept in the table's metadata (GENERATIONS_INFO).

    settings: by section.
    rules: how each rule was to be measured.
    left_out: held-out requests that are no case, by rule id and reason.
    coverage: of the benchmarks' harmful requests by what was synthesized.
    repeats: {arm: checkpoint id} of further training runs (`distillation.seeds`).
    withdrawn: rules that the last release had and the policy lacks; None without a release.
    """

    checkpoint_id: str
    model_id: str
    model_revision: str
    model_note: str
    settings: dict[str, dict[str, Any]]
    versions: dict[str, str]
    benchmarks: list[BenchmarkRun]
    rules: list[RulePlan] = field(default_factory=list)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    coverage: list[RedTeamCoverage] = field(default_factory=list)
    repeats: dict[str, str] = field(default_factory=dict)
    withdrawn: WithdrawnRules | None = None


def generate(
    cases: Sequence[TestCase],
    benchmarks: Sequence[Benchmark],
    base: Model,
    aligned: Model,
    policy: PolicyDocument,
    settings: EvaluationSettings,
    report: Callable[[str], None] = lambda _: None,
    store: Path | None = None,
    repeats: Mapping[str, Model] = MappingProxyType({}),
    earlier: pa.Table | None = None,
) -> tuple[pa.Table, list[BenchmarkRun]]:
    """Greedy answers of each arm (GENERATIONS), and what became of each benchmark.

    The aligned model with the policy in its prompt is asked `with_policy_cases` of each suite and
    of each kind in a benchmark, and no probes.

    repeats: further aligned models by arm (`suites.repeat_arm`). They are asked what the aligned
        model is asked without the policy in its prompt.
    store: folder in which answers are kept. Answers that it holds are not generated again, and a
        model all of whose answers it holds is not loaded.
    earlier: rows of GENERATIONS from before an edit. Most answers stay as they were, which is
        faster to check than to find out. They decide no answer.
    Raises PromptTooLong if the policy and a held-out case do not fit into the model's context. A
    case of a probe or of a public benchmark that does not fit stays unanswered.
    """
    runs, public = _public(benchmarks, settings, base, aligned, *repeats.values())
    choices, free = [c for c in public if c.choices], [c for c in public if not c.choices]
    unquotable = {b.id for b in benchmarks if not b.quotable}
    sampling = Sampling(settings.max_new_tokens, 0.0, settings.seed)
    rows: list[Row] = []
    # lm-eval loads the models itself, so it runs before they fill the memory of this process.
    models = {"base": base, "aligned": aligned, **repeats}
    for arm, model in models.items() if choices else ():
        report(f"arm {arm}: {len(choices)} multiple-choice questions")
        rows += _chosen(arm, model, choices, store)
    probes = [c for c in cases if SUITES[c.suite].probe]
    gated = [c for c in cases if not SUITES[c.suite].probe]
    Groups = tuple[tuple[Sequence[AnyCase], Generate], ...]
    groups: Groups = ((gated, all_at_once), (free, what_fits), (probes, what_fits))
    most = settings.with_policy_cases
    few: Groups = (
        (evenly(gated, most, lambda case: case.suite), all_at_once),
        (evenly(free, most, lambda case: f"{case.benchmark} {case.kind}"), what_fits),
    )
    of_base, of_aligned = tuple(ARMS)[:2], tuple(ARMS)[2:]
    guesses = _guesses(earlier.to_pylist() if earlier else [])
    of_repeats = [((arm,), model) for arm, model in repeats.items()]
    for arms, unopened in ((of_base, base), (of_aligned, aligned), *of_repeats):
        model = replace(unopened, engine=cache(unopened.engine))  # loaded at most once for both
        for arm in arms:
            system = policy.prompt_text if arm.endswith("_policy") else None
            asked = few if arm == ALIGNED_POLICY else groups
            public_cases = len(asked[1][0])
            own = sum(len(group) for group, _ in asked) - public_cases
            report(f"arm {arm}: {own} held-out cases, {public_cases} cases of public benchmarks")
            if arm not in of_base:  # it was taught what the teacher says
                guesses[arm] = _guesses(rows).get(TEACHER, {}) | guesses.get(arm, {})
            for group, how in asked:
                made = replies_of(
                    model,
                    group,
                    system,
                    policy.prompt_text,
                    sampling,
                    store,
                    how,
                    guesses.get(arm, {}),
                )
                rows += [answer_row(arm, c, a) for c, a in zip(group, made, strict=True)]
    same = {"policy_hash": policy.content_hash}
    return pa.Table.from_pylist(
        [{**row, **same, **(_NO_TEXT if row["benchmark"] in unquotable else {})} for row in rows],
        GENERATIONS,
    ), runs


def _guesses(rows: Iterable[Row]) -> dict[str, dict[str, str]]:
    """{arm: {request: answer}} of the requests that stand alone."""
    guesses: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["prompt"] and row["response"] and not row["conversation"]:
            guesses.setdefault(row["arm"], {})[row["prompt"]] = row["response"]
    return guesses


class Asked(Protocol):
    """Whatever holds a conversation: a held-out case, or a case of a benchmark."""

    @property
    def conversation(self) -> Conversation: ...


def replies_of(
    model: Model,
    cases: Sequence[Asked],
    system: str | None,
    policy: str,
    sampling: Sampling,
    store: Path | None,
    generate: Generate,
    guesses: Mapping[str, str] = MappingProxyType({}),
) -> list[list[Answer | None]]:
    """The model's replies in each conversation, in order. None stands for one that did not fit.

    The model replies to the first open turn of all cases, then to the second of those that have
    one, and so on. A conversation ends early where a reply did not fit.
    """
    made: list[list[Answer | None]] = [[] for _ in cases]
    while True:
        open_cases = [
            i
            for i, case in enumerate(cases)
            if len(made[i]) < case.conversation.replies and None not in made[i]
        ]
        if not open_cases:
            return made
        requests = []
        for i in open_cases:
            conversation = cases[i].conversation
            earlier = [a.text for a in made[i] if a is not None]
            chat = conversation.chat(earlier, policy if conversation.with_policy else system)
            guess = "" if earlier else guesses.get(conversation.text, "")
            requests.append(Request(chat, conversation.opening_of(earlier), guess))
        new = answers(model, requests, sampling, store, generate)
        for i, answer in zip(open_cases, new, strict=True):
            made[i].append(answer)


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
        chosen = evenly(loaded.cases, settings.benchmark_cases, lambda case: case.kind)
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


def evenly(
    cases: Sequence[AnyCaseT], most: int | None, kind_of: Callable[[AnyCaseT], str]
) -> list[AnyCaseT]:
    """At most `most` cases of each kind, evenly over the file, so that every category is in."""
    chosen = []
    for kind in dict.fromkeys(map(kind_of, cases)):
        same = [c for c in cases if kind_of(c) == kind]
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
        answer_row(arm, case, ())
        | {"response": None, "empty": False, "correct": hit, "unanswered": reason}
        for case, hit in zip(cases, correct, strict=True)
    ]


_NOTHING: Row = dict.fromkeys(GENERATIONS.names)
_NO_TEXT: Row = {"prompt": None, "conversation": None, "reference": None, "alternatives": None}


def answer_row(arm: str, case: AnyCase, replies: Sequence[Answer | None]) -> Row:
    """A row of GENERATIONS without the policy's hash.

    replies: the model's, in order; None for one that did not fit, nothing if it was not asked.
    """
    last = replies[-1] if replies else None
    before = [reply.text for reply in replies[:-1] if reply is not None]
    if last is None:
        outcome: Row = {"unanswered": TOO_LONG, "response": ""}
    else:
        outcome = {"response": last.text}
        outcome["tokens"] = sum(reply.tokens for reply in replies if reply is not None)
    return {
        **_NOTHING,
        "case_id": case.case_id,
        "arm": arm,
        "kind": case.kind,
        "prompt": case.conversation.text,
        "conversation": case.conversation.transcript(before),
        **_about(case),
        **outcome,
        "truncated": any(reply is not None and reply.truncated for reply in replies),
        "empty": last is not None and not last.text,
    }


def _about(case: AnyCase) -> Row:
    if isinstance(case, TestCase):
        return {
            "suite": case.suite,
            "rule_id": case.rule_id,
            "wrapped": case.wrapped,
            "cluster": case.cluster,
            "reference": case.expected or None,
            "alternatives": list(case.alternatives) or None,
            "scoring": case.scoring,
        }
    return {
        "benchmark": case.benchmark,
        "category": case.category,
        "cluster": case.cluster,
        "reference": case.answer,
        "scoring": case.scoring,
    }
