"""Engines of the base model and of aligned ones, for the report's answers.

Each is made only when an answer of it is missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial

from policyalign_assets.distillation.checkpoint import adapter_folder, load_aligned
from policyalign_assets.engine.base import AdapterEngine, Engine
from policyalign_assets.engine.generation.opening import opened_vllm
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.files import Location
from policyalign_assets.records import Checkpoint
from policyalign_assets.settings import ModelSettings


@contextmanager
def base_and_aligned(
    settings: ModelSettings,
    base: LoadedModel | None,
    checkpoints: Sequence[Checkpoint],
    data: Location,
) -> Iterator[tuple[Callable[[], Engine], list[Callable[[], Engine]]]]:
    """A function that opens the base model, and one for each checkpoint.

    `base` may be None where the weights are at servers alone.

    With vLLM all of them give the one engine, set to the model that is asked for: use one before
    you ask for the next.

    Raises CheckpointChanged and NotAnAdapter, from the functions of the aligned models.
    """
    if settings.engine == "transformers":
        assert base is not None

        def opened(checkpoint: Checkpoint) -> TransformersEngine:
            # An adapter is put onto the model that it is given, so it gets one of its own.
            below = load_model(settings) if checkpoint.tuning == "lora" else base
            return TransformersEngine(load_aligned(checkpoint, below, data), settings.batch_tokens)

        yield (
            lambda: TransformersEngine(base, settings.batch_tokens),
            [partial(opened, checkpoint) for checkpoint in checkpoints],
        )
        return
    with ExitStack() as stack:

        @cache
        def vllm() -> AdapterEngine:
            with adapter_folder(checkpoints[0], data) as folder:
                rank = json.loads((folder / "adapter_config.json").read_text())["r"]
            return stack.enter_context(opened_vllm(settings, rank, beside_a_model=True))

        def of_base() -> AdapterEngine:
            vllm().use_adapter(None)
            return vllm()

        def of_aligned(checkpoint: Checkpoint) -> AdapterEngine:
            with adapter_folder(checkpoint, data) as folder:
                vllm().use_adapter(
                    lambda target: shutil.copytree(folder, target, dirs_exist_ok=True),
                    checkpoint.checkpoint_id,
                )
            return vllm()

        yield of_base, [partial(of_aligned, checkpoint) for checkpoint in checkpoints]
