"""Times TRL's `SDFTTrainer` on the model, policy, prompts and token counts of our own step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
import workload
from peft import LoraConfig

from policyalign_assets.engine.base import chat
from policyalign_assets.engine.chat import render
from policyalign_assets.settings import DistillationSettings


def trl_steps(
    build: dict[str, Any],
    policy: str,
    prompts: Sequence[str],
    settings: DistillationSettings,
    threads: int,
) -> tuple[list[float], int]:
    """Seconds of each of `settings.steps` steps, and the peak bytes on the GPU.

    build: arguments of `workload.random_model`. TRL caches no policy prefix and does not merge the
    adapter for rollouts; everything else is set alike.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    torch.set_num_threads(threads)
    loaded = workload.random_model(**build)

    class Clock(TrainerCallback):
        begun, seconds = 0.0, []

        def on_step_begin(self, *_, **__):
            self.begun = time.perf_counter()

        def on_step_end(self, *_, **__):
            if loaded.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.begun)

    Clock.seconds = []
    cpu = loaded.device.type == "cpu"
    longest = max(len(render(loaded.tokenizer, chat(p))) for p in prompts) + settings.max_new_tokens
    most = max(1, settings.micro_batch_tokens // longest)
    rows = max(
        n for n in range(1, settings.batch_size + 1) if settings.batch_size % n == 0 and n <= most
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SDFTConfig(
            output_dir=folder,
            use_cpu=cpu,
            bf16=False,
            per_device_train_batch_size=rows,
            num_generations=1,
            gradient_accumulation_steps=settings.batch_size // rows,
            gradient_checkpointing=settings.gradient_checkpointing,
            max_prompt_length=None,
            max_completion_length=settings.max_new_tokens,
            generation_kwargs={"min_new_tokens": settings.max_new_tokens},
            lr_scheduler_type="constant",
            learning_rate=settings.learning_rate,
            distillation_mode="topk_logits",
            distillation_topk=settings.top_k,
            distillation_alpha=1.0,
            distillation_is_clip=None,
            teacher_model_kind="base",
            max_steps=settings.steps,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            temperature=settings.temperature,
            dataloader_num_workers=0,
        )
        rows = [
            {"prompt": [{"role": "user", "content": p}], "privileged_context": policy}
            for p in prompts
        ]
        trainer = SDFTTrainer(
            model=loaded.model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=loaded.tokenizer,
            peft_config=LoraConfig(
                r=settings.lora_rank,
                lora_alpha=settings.lora_alpha,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[Clock()],
        )

        def with_policy(
            prompt, context
        ):  # TRL puts the context into the user's turn; a policy is a system message
            return [{"role": "system", "content": context}, *prompt]

        trainer.teacher_context_builder._compose_teacher_prompt = with_policy
        trainer.remove_callback(
            next(
                c
                for c in trainer.callback_handler.callbacks
                if type(c).__name__ == "PrinterCallback"
            )
        )
        lengths = {
            len(ids)
            for ids in trainer._tokenize_prompts([with_policy(r["prompt"], policy) for r in rows])
        }
        ours = {len(render(loaded.tokenizer, chat(p, policy))) for p in prompts}
        assert lengths == ours, f"TRL sees prompts of {lengths} tokens, ours are {ours}"
        trainer.train()
    return Clock.seconds, 0 if cpu else torch.cuda.max_memory_allocated()
