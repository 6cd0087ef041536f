"""Opens the engine that the settings name, and closes it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from policyalign_assets.engine.base import AdapterEngine, TokenEngine
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.generation.vllm_engine import VllmEngine
from policyalign_assets.engine.generation.vllm_server_engine import VllmServerEngine
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.settings import ModelSettings


@contextmanager
def opened(settings: ModelSettings, loaded: LoadedModel | None = None) -> Iterator[TokenEngine]:
    """Opens an engine over the base model.

    Pass `loaded`, the same model, if the caller also needs its logits: the `transformers` engine
    then generates with those weights, and vLLM frees its memory between calls.
    Raises EngineUnavailable, ServersDown and ModelNotFound.
    """
    if settings.engine == "transformers":
        yield TransformersEngine(loaded or load_model(settings), settings.batch_tokens)
        return
    with opened_vllm(settings, beside_a_model=loaded is not None) as engine:
        yield engine


@contextmanager
def opened_vllm(
    settings: ModelSettings, lora_rank: int = 1, beside_a_model: bool = False
) -> Iterator[AdapterEngine]:
    """Opens vLLM: in this process, or the servers that the settings name.

    In this process it has room for an adapter of `lora_rank`; see `VllmEngine` for
    `beside_a_model`. Servers were started with their own limits.
    """
    if settings.engine == "vllm-server":
        with opened_servers(settings) as servers:
            yield servers
        return
    engine = VllmEngine(settings, lora_rank, beside_a_model)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def opened_servers(settings: ModelSettings) -> Iterator[VllmServerEngine]:
    """Opens the servers that the settings name. Raises ServersDown and ServerRefuses."""
    engine = VllmServerEngine(settings)
    try:
        yield engine
    finally:
        engine.close()
