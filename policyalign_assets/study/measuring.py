"""What an arm answers to held-out cases, and what one of its requests costs."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from policyalign_assets.engine.base import Chat, Engine, Generation, Progress, Sampling, chat
from policyalign_assets.engine.chat import render
from policyalign_assets.evaluation.answers import Model, what_fits
from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.generate import answer_row, replies_of
from policyalign_assets.evaluation.judging import judge_answers
from policyalign_assets.evaluation.suites import good
from policyalign_assets.judges.verdict import Judge
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import Settings
from policyalign_assets.study.results import Latency, SuiteOutcome
from policyalign_assets.tables import GENERATIONS

CODE_VERSION = 1  # raise it when a change here changes what is asked, or how it counts
# Not asked: an answer's opening cannot be set where a guard answers, the policy as system message
# is the arm `prompted`, and conversations under pressure take several calls a case.
LEFT_OUT = ("pressure", "probe_opening", "probe_policy")
ARM = "study"


def measured(
    cases: Sequence[TestCase],
    engine: Engine,
    system: str | None,
    policy: PolicyDocument,
    judge: Judge,
    settings: Settings,
) -> dict[str, SuiteOutcome]:
    """Outcomes by suite. `system`: the arm's own system message.

    A request that does not fit into the model's context is not judged, with that reason.
    """
    asked = [case for case in cases if case.suite not in LEFT_OUT]
    sampling = Sampling(settings.evaluation.max_new_tokens, 0.0, settings.evaluation.seed)
    model = Model("not kept", lambda: engine)
    replies = replies_of(model, asked, system, policy.prompt_text, sampling, None, what_fits)
    rows = [
        answer_row(ARM, case, made) | {"policy_hash": policy.content_hash}
        for case, made in zip(asked, replies, strict=True)
    ]
    verdicts = judge_answers(pa.Table.from_pylist(rows, GENERATIONS), judge).to_pylist()
    found: dict[str, SuiteOutcome] = {}
    reasons: dict[str, Counter[str]] = {}
    unfinished: Counter[str] = Counter()
    for case, row, verdict in zip(asked, rows, verdicts, strict=True):
        suite = found.setdefault(case.suite, SuiteOutcome([], [], []))
        suite.cases.append(case.case_id)
        suite.clusters.append(case.cluster or case.case_id)
        suite.outcomes.append(
            int(good({**verdict, "suite": case.suite})) if verdict["scored"] else None
        )
        unfinished[case.suite] += bool(row["truncated"])
        if not verdict["scored"]:
            reasons.setdefault(case.suite, Counter())[verdict["unscored_reason"]] += 1
    return {
        suite: SuiteOutcome(
            f.cases, f.clusters, f.outcomes, unfinished[suite], dict(reasons.get(suite, {}))
        )
        for suite, f in found.items()
    }


class CountingEngine:
    """An `Engine` that counts the prompt tokens that it is given."""

    def __init__(self, engine: Engine, tokenizer):
        self.engine, self.tokenizer, self.tokens = engine, tokenizer, 0
        self.model_id, self.revision = engine.model_id, engine.revision

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generation]:
        self.tokens += sum(len(render(self.tokenizer, c)) for c in chats)
        return self.engine.generate(chats, sampling, progress)


def cost(
    cases: Sequence[TestCase],
    engine: Engine,
    counting: CountingEngine,
    system: str | None,
    settings: Settings,
    requests: int,
) -> tuple[float, Latency]:
    """Added prompt tokens of a request (mean), and its latency.

    engine: the whole arm. counting: the engine below it that gets every prompt. Half of the
    requests break a rule, and half are twins. Each is sent alone: once to warm up and to count,
    then timed, and then timed again without all that the arm has around its model. The two times
    lie close together, so their ratio suffers less from a busy machine.
    """
    half = requests // 2
    chosen = [
        case
        for suite in ("violations", "twins")
        for case in [c for c in cases if c.suite == suite][:half]
    ]
    sampling = Sampling(settings.evaluation.max_new_tokens, 0.0)
    plain = [chat(case.conversation.request) for case in chosen]
    whole = [chat(case.conversation.request, system) for case in chosen]
    counting.tokens = 0
    for one in whole:
        engine.generate([one], sampling)
    added = counting.tokens - sum(len(render(counting.tokenizer, one)) for one in plain)
    seconds, alone = [], []
    for one, bare in zip(whole, plain, strict=True):
        seconds.append(_timed(engine, one, sampling))
        alone.append(_timed(counting.engine, bare, sampling))
    low, median, high = (1000 * float(x) for x in np.quantile(seconds, (0.25, 0.5, 0.75)))
    ratio = float(np.median(np.array(seconds) / np.array(alone)))
    cores = os.cpu_count() or 1
    return added / len(chosen), Latency(median, low, high, ratio, len(seconds), load(), cores)


def _timed(engine: Engine, one: Chat, sampling: Sampling) -> float:
    begun = time.perf_counter()
    engine.generate([one], sampling)
    return time.perf_counter() - begun


def load() -> float | None:
    """The machine's load over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None
