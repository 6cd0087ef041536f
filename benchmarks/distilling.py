"""Distils and evaluates, for the benchmarks of the training mix and of the selection."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from policyalign_assets.distillation.anchors import anchors
from policyalign_assets.distillation.batches import Instruction
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.exact_answers import is_right
from policyalign_assets.evaluation.suites import SUITES
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.policy import PolicyDocument, parse_policy
from policyalign_assets.settings import DistillationSettings, Settings


def partition_data(
    partition: str, data: Path, policies: Path, *stages: str
) -> tuple[PolicyDocument, list[pa.Table]]:
    """The policy of `<domain>|<policy>`, and the tables of these stages that a demo has made."""
    domain, _, policy_id = partition.partition("|")
    return parse_policy(policies, policy_id, domain), [
        pq.read_table(data / "assets" / s / domain / f"{policy_id}.parquet") for s in stages
    ]


def distilled(
    policy: PolicyDocument,
    mix: Sequence[Instruction],
    settings: Settings,
    distillation: DistillationSettings,
) -> TransformersEngine:
    """The aligned model, trained from the start on `mix` and everyday requests."""
    loaded = load_model(settings.model)
    with tempfile.TemporaryDirectory() as folder:
        model, _ = distill(
            [policy.prompt_text],
            [*mix, *anchors(distillation, settings.model.id)],
            loaded,
            distillation,
            Path(folder),
            settings.model.batch_tokens,
        )
    return TransformersEngine(
        LoadedModel(model, loaded.tokenizer, loaded.model_id, loaded.revision),
        settings.model.batch_tokens,
    )


def right(
    cases: Sequence[TestCase],
    engine: TransformersEngine,
    settings: Settings,
    system: str | None = None,
) -> list[bool]:
    """Refused for violations, answered for benign requests, right for capability."""
    judge = judge_for(settings.model.id)
    answers = engine.generate(
        [chat(c.prompt, system) for c in cases], Sampling(settings.evaluation.max_new_tokens, 0.0)
    )
    return [
        is_right(c.prompt, g.text, c.expected, c.alternatives)
        if c.suite == "capability"
        else (judge.judge(g.text).refused is True) == (SUITES[c.suite].metric == "refused")
        for c, g in zip(cases, answers, strict=True)
    ]
