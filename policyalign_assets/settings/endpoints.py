"""Settings of OpenAI-compatible endpoints, and which variables may hold their keys."""

from __future__ import annotations

import os
import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    model_validator,
)

from policyalign_assets.settings.base import ENV_PREFIX, NO_EFFECT, VARIABLE, Section

# Variables that may hold an endpoint's key. Run config must not be able to send any other secret of
# the machine to an endpoint.
KEY_VARIABLE = re.compile(r"POLICYALIGN_(?:[A-Z0-9]+_)*(?:KEY|TOKEN)(?:_[A-Z0-9]+)*")


def may_hold_a_key(variable: str) -> bool:
    """Whether the environment variable of this name may hold an endpoint's key.

    It may if its name says so (POLICYALIGN_JUDGE_KEY), or if the deployment lists it in
    POLICYALIGN_KEY_VARIABLES, where names are separated by commas.
    """
    listed = os.environ.get(ENV_PREFIX + "KEY_VARIABLES", "").split(",")
    return bool(KEY_VARIABLE.fullmatch(variable)) or variable in {v.strip() for v in listed}


class EndpointSettings(Section):
    """Settings of an OpenAI-compatible endpoint."""

    base_url: str | None = Field(
        None,
        description="address, for example http://localhost:8000/v1 for `vllm serve`",
        json_schema_extra=NO_EFFECT,
    )
    model: str | None = Field(None, description="name under which the endpoint serves the model")
    revision: str | None = Field(
        None, description="revision of the weights; it is recorded in every row"
    )
    api_key_variable: str | None = Field(
        None,
        pattern=VARIABLE,
        description="environment variable that holds the key: POLICYALIGN_..._KEY or "
        "POLICYALIGN_..._TOKEN, or one that POLICYALIGN_KEY_VARIABLES lists",
        json_schema_extra=NO_EFFECT,
    )
    timeout: float = Field(
        120, gt=0, description="seconds for one attempt", json_schema_extra=NO_EFFECT
    )
    retries: int = Field(
        4,
        ge=0,
        le=20,
        description="attempts after the first, with growing random pauses",
        json_schema_extra=NO_EFFECT,
    )
    concurrency: int = Field(
        16, ge=1, le=1024, description="requests at the same time", json_schema_extra=NO_EFFECT
    )
    token_parameter: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens",
        description="name of the parameter that limits tokens; reasoning models need the second",
        json_schema_extra=NO_EFFECT,
    )
    omit_parameters: tuple[Literal["temperature", "seed"], ...] = Field(
        (), description="parameters that are not sent, because the endpoint refuses them"
    )
    extra_parameters: dict[str, str | int | float | bool] = Field(
        {}, description="parameters sent with every request, for example reasoning_effort"
    )
    ca_file: str | None = Field(
        None,
        description="PEM file of the authority that signed the endpoint's TLS certificate",
        json_schema_extra=NO_EFFECT,
    )

    @model_validator(mode="after")
    def _extra_parameters_replace_none_of_ours(self) -> EndpointSettings:
        ours = {"model", "messages", "stream", "n", "max_tokens", "max_completion_tokens"}
        if taken := sorted(ours & set(self.extra_parameters)):
            raise ValueError(
                f"extra_parameters contains {taken[0]!r}, which is sent anyway. Fix: leave it out"
            )
        return self


def check_endpoint(
    base_url: str, section: str, field: str = "base_url", key_field: str = "api_key_variable"
) -> None:
    """Raises ValueError for an address that is none, or that shows credentials."""
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(
            f"{section}.{field} must begin with http:// or https:// and name a host. "
            "Fix: write it like http://localhost:8000"
        )
    if url.username or url.password or url.query:
        raise ValueError(
            f"{section}.{field} contains credentials or a query, which reports would show. "
            f"Fix: remove them and use {section}.{key_field}"
        )


class GeneratorSettings(EndpointSettings):
    """The model that writes the drafts. Without an endpoint, it is the model to align."""

    @model_validator(mode="after")
    def _an_endpoint_has_a_url_and_a_model(self) -> GeneratorSettings:
        if not self.base_url:
            if self.model or self.revision or self.api_key_variable:
                raise ValueError(
                    "generator.model, revision or api_key_variable is set, but generator.base_url "
                    "is not. Fix: set generator.base_url too, or unset the others"
                )
            return self
        if not self.model:
            raise ValueError(
                "generator.base_url is set, but generator.model is not. Fix: set generator.model"
            )
        check_endpoint(self.base_url, "generator")
        return self
