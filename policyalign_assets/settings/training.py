"""Settings of the distillation, of one policy and of a deployment."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    model_validator,
)

from policyalign_assets.settings.base import NO_EFFECT, Section


class DistillationSettings(Section):
    tuning: Literal["lora", "full"] = Field(
        "lora", description="what is trained: an adapter, or every weight (docs/method.md)"
    )
    teacher: Literal["frozen", "ema", "student"] = "frozen"
    ema_decay: float = Field(0.99, gt=0, lt=1)
    top_k: int = Field(
        256,
        ge=1,
        description="number of the student's top tokens in the reverse KL, which is not "
        "renormalised (docs/method.md)",
    )
    tail: bool = Field(False, description="count all other tokens as one more token")
    forward_weight: float = Field(
        1.0,
        ge=0,
        le=1,
        description="weight of the forward KL that is added to the reverse KL; 0 is the paper's "
        "loss (docs/method.md)",
    )
    learning_rate: float = Field(
        1.2e-3, gt=0, le=1, description="the default is 1.2e-4 with tuning='full'"
    )
    lr_decay: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the steps, at the end, over which the learning rate falls linearly "
        "towards 0",
    )
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    lora_rank: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    anchors: int = Field(
        200,
        ge=0,
        description="everyday requests among the instructions, which preserve the other skills",
    )
    anchors_file: str | None = Field(
        None,
        description="text file with one everyday request per line; without it, only the bundled "
        "and the English model have everyday requests",
        json_schema_extra=NO_EFFECT,
    )
    steps: int = Field(
        150, ge=1, description="rollout batches, for up to `steps_for_rules` rules; more for more"
    )
    steps_for_rules: int = Field(
        10,
        ge=1,
        description="rules that `steps` is enough for; a policy with more rules trains for "
        "proportionally more steps, so that each rule is seen equally often",
    )
    batch_size: int = Field(32, ge=1, description="instructions per rollout batch")
    mini_batch_size: int = Field(32, ge=1, description="instructions per optimizer update")
    micro_batch_tokens: int = Field(
        16_384,
        ge=1,
        description="tokens per forward and backward pass, with padding but without the shared "
        "policy; halved if they do not fit into memory",
        json_schema_extra=NO_EFFECT,
    )
    gradient_checkpointing: bool = Field(
        False,
        description="save memory: compute the student's activations again for the backward pass",
        json_schema_extra=NO_EFFECT,
    )
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, gt=0, le=2)
    save_every: int = Field(25, ge=1, json_schema_extra=NO_EFFECT)
    processes: int = Field(
        1,
        ge=1,
        description="processes that train together, each on its own GPU (docs/deploy.md)",
        json_schema_extra=NO_EFFECT,
    )
    accelerate_config: str | None = Field(
        None,
        description="YAML file for `accelerate launch`, for FSDP2; without it, DDP is used",
        json_schema_extra=NO_EFFECT,
    )
    seed: int = Field(13, ge=0)
    seeds: int = Field(
        1,
        ge=1,
        le=20,
        description="training runs, with `seed` and the seeds that follow; each is evaluated, the "
        "report shows mean, spread and worst, and every release gate holds for the worst run",
    )

    def planned_steps(self, rules: int) -> int:
        """`steps` for up to `steps_for_rules` rules, and in proportion, rounded up, for more.

        `rules` counts those with training rows. All rules share each batch, so with a fixed number
        of steps each rule of a long policy would be seen less often than one of a short policy.
        """
        return max(self.steps, -(-self.steps * rules // self.steps_for_rules))

    @model_validator(mode="before")
    @classmethod
    def _full_fine_tuning_wants_smaller_steps(cls, data):
        return (
            {"learning_rate": 1.2e-4, **data}
            if isinstance(data, dict) and data.get("tuning") == "full"
            else data
        )

    @model_validator(mode="after")
    def _batches_nest(self):
        if self.batch_size % self.mini_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of "
                f"mini_batch_size={self.mini_batch_size}. Fix: change one of them"
            )
        if self.mini_batch_size % self.processes:
            raise ValueError(
                f"mini_batch_size={self.mini_batch_size} must be a multiple of "
                f"processes={self.processes}. Fix: change one of them"
            )
        if self.accelerate_config and self.processes == 1:
            raise ValueError(
                f"accelerate_config={self.accelerate_config!r} has no effect with processes=1. "
                "Fix: set processes to the number of GPUs, or unset accelerate_config"
            )
        return self


class DeploymentSettings(Section):
    teacher: Literal["routed", "union"] = Field(
        "routed",
        description="who teaches a model that follows several policies: for each request the "
        "teacher that reads its own policy, or one teacher that reads all policies at once",
    )
    answer_tokens: int = Field(
        24,
        ge=1,
        description="length of a teacher's answer from which one tells whether it declines a "
        "benign request of another policy",
    )


class WarmStartSettings(Section):
    """Whether an edit is trained from the last released adapter instead of from the base model."""

    enabled: bool = Field(
        False,
        description="after an edit, go on from the last released adapter of the partition or "
        "deployment, and train from the base model only where that is not possible or not enough",
    )
    longest_chain: int = Field(
        5,
        ge=1,
        le=50,
        description="adapters that may descend from one another since the last training from the "
        "base model",
    )
    round_steps: int = Field(
        30, ge=1, description="training steps between two looks at the held-back requests"
    )
    rounds: int = Field(
        3, ge=1, description="rounds after which a warm start that is not done is given up"
    )
    replay: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of each batch that repeats what no edit has touched",
    )
    learning_rate_factor: float = Field(
        0.5, gt=0, le=1, description="multiple of distillation.learning_rate"
    )
    probe_rows: int = Field(
        4, ge=1, description="requests of each rule and kind that are held back to look at"
    )
    agreement: float = Field(
        0.97,
        ge=0.8,
        le=1,
        description="share of the held-back requests on which the student must decline or answer "
        "as the teacher does: of those that the teacher declines, of those that it answers, and "
        "of those that the edit touches; below 1, one request of each may differ in any case",
    )

    def shaping(self) -> dict[str, Any]:
        """Where it is off, the other values decide nothing."""
        return super().shaping() if self.enabled else {"enabled": False}
