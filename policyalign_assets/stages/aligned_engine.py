"""The engines of the base and of the aligned model, for the report's answers: each is made when
an answer of it is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

from policyalign_assets.distillation.checkpoint import adapter_folder, load_aligned
from policyalign_assets.engine.base import Engine
from policyalign_assets.engine.generation.opening import opened_vllm
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.generation.vllm_engine import VllmEngine
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.files import Location
from policyalign_assets.records import Checkpoint
from policyalign_assets.settings import ModelSettings


@contextmanager
def base_and_aligned(
    settings: ModelSettings, base: LoadedModel, checkpoint: Checkpoint, data: Location
) -> Iterator[tuple[Callable[[], Engine], Callable[[], Engine]]]:
    """Two functions. With vLLM both give the one engine, set to the model that is asked for: use
    one before you ask for the other.

    Raises CheckpointChanged and NotAnAdapter, from the function of the aligned model.
    """
    if settings.engine == "transformers":

        def aligned() -> TransformersEngine:
            below = (
                load_model(settings) if checkpoint.tuning == "lora" else base
            )  # an adapter is put onto the model that it is given
            return TransformersEngine(load_aligned(checkpoint, below, data), settings.batch_tokens)

        yield lambda: TransformersEngine(base, settings.batch_tokens), aligned
        return
    with ExitStack() as stack:

        @cache
        def vllm() -> VllmEngine:
            with adapter_folder(checkpoint, data) as folder:
                rank = json.loads((folder / "adapter_config.json").read_text())["r"]
            return stack.enter_context(opened_vllm(settings, rank, beside_a_model=True))

        def of_base() -> VllmEngine:
            vllm().use_adapter(None)
            return vllm()

        def of_aligned() -> VllmEngine:
            with adapter_folder(checkpoint, data) as folder:
                vllm().use_adapter(
                    lambda target: shutil.copytree(folder, target, dirs_exist_ok=True),
                    checkpoint.checkpoint_id,
                )
            return vllm()

        yield of_base, of_aligned
