"""Goes on training from a parent's adapter, and says whether the result may stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from policyalign_assets.distillation.batches import Instruction
from policyalign_assets.distillation.checkpoint import CheckpointChanged, adapter_folder
from policyalign_assets.distillation.continuation import Continuation
from policyalign_assets.distillation.trainer import distill_from
from policyalign_assets.distillation.tuning import Model
from policyalign_assets.distillation.warm_start import Edit, Probe, WarmMix, warm_mix
from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.judges.verdict import Dialogue
from policyalign_assets.settings import DistillationSettings
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.stages.parents import NoParent, Parent


@dataclass(frozen=True)
class WarmStarted:
    """A model that may stand, its TRAINING table, and its lineage for the provenance."""

    model: Model
    training: pa.Table
    lineage: dict[str, Any]


def go_on_from(
    parent: Parent,
    edit: Edit,
    rows: Sequence[Instruction],
    everyday: Sequence[Instruction],
    texts: Sequence[str],
    loaded: LoadedModel,
    distillation: DistillationSettings,
    work: Path,
    context: StageContext,
) -> WarmStarted:
    """`rows`: the present requests, then those of `edit.former`. `texts`: the policies' prompts.

    `loaded` is used up. Raises NoParent where the student does not reach the teacher on the
    requests that were held back, so that training must start from the base model.
    """
    settings = context.settings.warm_start
    older = len(edit.former) - edit.freed
    touched = [*edit.touched, *[True] * edit.freed, *[False] * older]
    mix = warm_mix(rows, touched, everyday, settings, distillation.seed)
    parent_id = parent.checkpoint.checkpoint_id
    context.report(
        f"warm start from {parent_id}: {mix.touched} requests that the edit touches, "
        f"{mix.replayed} replayed, {len(mix.held)} held back"
    )
    probe = Probe(
        mix,
        _declined(mix, texts, loaded, distillation.max_new_tokens, context),
        judge_for(context.settings.model.id),
        settings.agreement,
    )

    def done(answers: list[str]) -> bool:
        enough = probe.done(answers)
        context.report(f"held-back requests: {probe.readings[-1].sentence}")
        return enough

    trained_with = distillation.model_copy(
        update={
            "steps": settings.rounds * settings.round_steps,
            "learning_rate": distillation.learning_rate * settings.learning_rate_factor,
        }
    )
    try:
        with adapter_folder(parent.checkpoint, context.data) as folder:
            model, training = distill_from(
                Continuation(folder, settings.round_steps, probe.asked, done),
                texts,
                mix.rows,
                loaded,
                trained_with,
                work,
                context.settings.model.batch_tokens,
                context.report,
            )
    except CheckpointChanged:
        raise NoParent(f"the files of checkpoint {parent_id} are missing or changed") from None
    last = probe.readings[-1]
    if not last.done:
        raise NoParent(
            f"the warm start from {parent_id} did not reach the teacher in {training.num_rows} "
            f"steps ({last.sentence})"
        )
    lineage = {
        "parent": parent_id,
        "ancestors": parent.ancestors + 1,
        "why": f"{training.num_rows} steps ({last.sentence}); adapters since the base model: "
        f"{parent.ancestors + 2}",
        "settings": settings.model_dump(mode="json"),
        "touched": mix.touched,
        "replayed": mix.replayed,
        "held back": len(mix.held),
        "teacher's answers that could not be read": probe.unread,
    }
    return WarmStarted(model, training, lineage)


def _declined(
    mix: WarmMix, texts: Sequence[str], loaded: LoadedModel, tokens: int, context: StageContext
) -> list[bool | None]:
    """Whether the teacher declines each held-back request; None where that cannot be read."""
    engine = TransformersEngine(loaded, context.settings.model.batch_tokens)
    answers = engine.generate(
        [chat(row.text, texts[row.policy]) for row in mix.held], Sampling(tokens)
    )
    verdicts = judge_for(context.settings.model.id).judge_all(
        [Dialogue(row.text, answer.text) for row, answer in zip(mix.held, answers, strict=True)]
    )
    return [verdict.refused for verdict in verdicts]
