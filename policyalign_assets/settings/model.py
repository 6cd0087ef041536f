"""Settings of the model that is aligned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from policyalign_assets.settings.base import BUNDLED, NO_EFFECT, Section


class ModelSettings(Section):
    id: str = Field(
        BUNDLED,
        description="the model: `bundled`, `english`, `smollm2`, a local folder, a GGUF file, or a "
        "hub id",
    )
    revision: str | None = Field(
        None, description="pinned revision (commit) on the hub; not for local folders"
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="the engine that generates text; log-probabilities always come from "
        "`transformers`",
    )
    gpu_memory: float = Field(
        0.45,
        gt=0,
        le=0.95,
        description="share of the GPU's memory for vLLM: its copy of the weights and its key-value "
        "cache",
        json_schema_extra=NO_EFFECT,
    )
    batch_tokens: int = Field(
        16_384,
        gt=0,
        description="tokens (prompt + response) in one generation or scoring batch",
        json_schema_extra=NO_EFFECT,
    )

    template_arguments: dict[str, bool | int | float | str] = Field(
        {},
        description='arguments of the chat template, for example {"enable_thinking": false}; the '
        "deployed model must be asked with the same ones",
    )

    def shaping(self) -> dict[str, Any]:
        values = super().shaping()
        if not self.template_arguments:  # as before the setting existed, so nothing is out of date
            del values["template_arguments"]
        return values

    @field_validator("template_arguments")
    @classmethod
    def _names_of_template_arguments(cls, arguments: dict[str, object]) -> dict[str, object]:
        ours = {"messages", "add_generation_prompt", "strftime_now", "tools", "documents"}
        for name in arguments:
            if not name.isidentifier() or name in ours:
                raise ValueError(
                    f"template_arguments contains {name!r}, which is no argument of a template "
                    "that can be set. Fix: name a variable that the chat template reads, such as "
                    "enable_thinking"
                )
        return arguments

    @model_validator(mode="after")
    def _revision_belongs_to_a_hub(self):
        if self.revision and (self.id == BUNDLED or Path(self.id).exists()):
            raise ValueError(
                f"model.revision={self.revision!r} is set, but only models of the hub have "
                f"revisions, and {self.id!r} is none. Fix: unset model.revision"
            )
        return self
