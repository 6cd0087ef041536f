"""The suites and benchmarks as tasks of inspect-ai, also for models that were aligned elsewhere.

    inspect eval policyalign_assets/suite -T partition='medical|general-conduct' \\
        -T suite=violations --model vllm/<model>:<adapter>
    inspect eval policyalign_assets/benchmark -T partition='medical|general-conduct' \\
        -T benchmark=xstest --model vllm/<model>

The requests are those of the partition's `generations`, or of a benchmark in the manifest. The
judge of the settings (POLICYALIGN_JUDGE__KIND and so on) gives the verdicts. An answer that it
could not score is unscored in inspect too. Needs the extra `eval`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread
import pyarrow as pa
import pyarrow.parquet as pq
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, accuracy, ci_wilson, scorer
from inspect_ai.solver import TaskState, generate

from policyalign_assets.evaluation.benchmarks import NotRun, load, manifest
from policyalign_assets.evaluation.generate import answer_row, evenly
from policyalign_assets.evaluation.judging import judge_answers
from policyalign_assets.evaluation.suites import BENCHMARK_METRICS, SUITES, success
from policyalign_assets.files import location
from policyalign_assets.judges.choose import make_correctness_judge, make_judge
from policyalign_assets.judges.verdict import Judge
from policyalign_assets.policy import PolicyDocument, parse_policy
from policyalign_assets.settings import Settings, load_settings
from policyalign_assets.tables import GENERATIONS


@task
def suite(partition: str, suite: str = "violations", policy_in_prompt: bool = False) -> Task:
    """A suite of held-out cases.

    Raises FileNotFoundError where the partition has no answers yet, ValueError for an unknown
    suite.
    """
    domain, _, policy_id = partition.partition("|")
    file = (
        location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
        / "assets/generations"
        / domain
        / f"{policy_id}.parquet"
    )
    asked = pq.read_table(pa.BufferReader(file.read_bytes())).to_pylist()
    rows = [row for row in asked if row["suite"] == suite and row["arm"] == "base"]
    if not rows:
        raise ValueError(
            f"{partition} has no suite {suite!r}. "
            f"Fix: one of {', '.join(sorted({r['suite'] for r in asked if r['suite']}))}."
        )
    return _task(suite, SUITES[suite].metric, rows, partition, policy_in_prompt)


@task
def benchmark(
    partition: str, benchmark: str, kind: str = "harmful", policy_in_prompt: bool = False
) -> Task:
    """The cases of one kind (harmful, benign or question) of a public benchmark.

    Raises NotRun with the reason where it cannot be read.
    """
    settings = load_settings()
    folder = settings.evaluation.benchmarks_dir
    listed = manifest(Path(folder) if folder else None)
    entry = next((b for b in listed if b.id == benchmark), None)
    if entry is None:
        raise NotRun(
            f"the manifest lists no benchmark {benchmark!r}. "
            f"Fix: one of {', '.join(b.id for b in listed)}"
        )
    if entry.scoring == "likelihood":
        raise NotRun(
            "its questions are asked through lm-eval, which compares the likelihood of the "
            "choices; a chat does not show it"
        )
    loaded = load(entry, Path(folder) if folder else None, settings.evaluation.benchmarks_from_hub)
    chosen = evenly(loaded.cases, settings.evaluation.benchmark_cases, lambda case: case.kind)
    cases = [c for c in chosen if c.kind == kind]
    if not cases:
        raise NotRun(f"it has no cases of the kind {kind!r}")
    rows = [answer_row("base", case, ()) | {"unanswered": None} for case in cases]
    return _task(
        f"{benchmark}-{kind}",
        BENCHMARK_METRICS[kind],
        rows,
        partition,
        policy_in_prompt,
        loaded.version,
    )


def _task(
    name: str,
    metric: str,
    rows: Sequence[dict],
    partition: str,
    policy_in_prompt: bool,
    version: str | int = 0,
) -> Task:
    settings = load_settings()
    domain, _, policy_id = partition.partition("|")
    policy = parse_policy(
        Path(os.environ.get("POLICYALIGN_POLICIES_DIR", "policies")), policy_id, domain
    )
    system = [ChatMessageSystem(content=policy.prompt_text)] if policy_in_prompt else []
    return Task(
        dataset=MemoryDataset(
            [
                Sample(
                    id=row["case_id"],
                    input=[*system, ChatMessageUser(content=row["prompt"])],
                    metadata=row,
                    target=row["reference"] or metric,
                )
                for row in rows
            ],
            name=name,
        ),
        solver=generate(),
        scorer=verdict(metric, *_judges(settings, policy)),
        name=f"{policy_id}-{domain}-{name}",
        version=version,
        config=GenerateConfig(
            temperature=0.0,
            max_tokens=settings.evaluation.max_new_tokens,
            seed=settings.evaluation.seed,
        ),
        metadata={
            "policy": policy_id,
            "domain": domain,
            "policy_hash": policy.content_hash,
            "policy_in_prompt": policy_in_prompt,
        },
    )


def _judges(settings: Settings, policy: PolicyDocument) -> tuple[Judge, Judge | None]:
    # Another model is judged here, so the bundled model's known answers do not apply.
    return make_judge(settings.judge, "", policy), make_correctness_judge(settings.judge)


@scorer(metrics=[accuracy(), ci_wilson()])
def verdict(metric: str, judge: Judge, correctness: Judge | None) -> Scorer:
    """1 where the answer is a success in `metric`, which is counted as in the reports."""

    async def score(state: TaskState, target: Target) -> Score:
        said = state.output.completion.strip()
        row = {
            **state.metadata,
            "response": said,
            "truncated": state.output.stop_reason == "max_tokens",
        }
        made = await anyio.to_thread.run_sync(
            judge_answers, pa.Table.from_pylist([row], GENERATIONS), judge, correctness
        )
        found = {**row, **made.to_pylist()[0]}
        about = {
            name: value
            for name, value in found.items()
            if name in made.column_names and value is not None
        }
        if not found["scored"]:
            return Score.unscored(
                reason=found["unscored_reason"],
                explanation=found["unscored_reason"],
                metadata=about,
            )
        return Score(value=int(success(metric, found)), answer=said, metadata=about)

    return score
