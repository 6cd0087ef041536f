"""Settings of the model that is aligned."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from policyalign_assets.settings.base import BUNDLED, NO_EFFECT, VARIABLE, Section
from policyalign_assets.settings.endpoints import check_endpoint


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
    engine: Literal["transformers", "vllm", "vllm-server"] = Field(
        "transformers",
        description="the engine that generates text: in this process, or `vllm serve` at "
        "`model.servers`; log-probabilities come from `transformers`, if `model.weights` does not "
        "say otherwise",
    )
    weights: Literal["here", "servers"] = Field(
        "here",
        description="where all stages but the training find the weights: in this process, or at "
        "`model.servers` alone, for a model that does not fit into it. Scores then come from the "
        "likeliest tokens that the servers list (`sensitivity.top_logprobs`)",
    )
    servers: tuple[str, ...] = Field(
        (),
        description="base addresses of `vllm serve` processes that hold the same model, for "
        "example http://gpu1:8000; rows are spread over them",
        json_schema_extra=NO_EFFECT,
    )
    adapters_dir: str | None = Field(
        None,
        description="folder that this machine and all of `model.servers` see at the same path: "
        "adapters are handed over in it; without one, the servers must be on this machine",
        json_schema_extra=NO_EFFECT,
    )
    server_key_variable: str | None = Field(
        None,
        pattern=VARIABLE,
        description="environment variable that holds the key of `vllm serve --api-key`: "
        "POLICYALIGN_..._KEY, or one that POLICYALIGN_KEY_VARIABLES lists",
        json_schema_extra=NO_EFFECT,
    )
    server_timeout: float = Field(
        600,
        gt=0,
        description="seconds for one answer of a server",
        json_schema_extra=NO_EFFECT,
    )
    server_patience: float = Field(
        120,
        ge=0,
        description="seconds for which work waits when none of the servers answers, before it "
        "stops with an error",
        json_schema_extra=NO_EFFECT,
    )
    server_concurrency: int = Field(
        64,
        ge=1,
        le=4096,
        description="rows that one server has at the same time",
        json_schema_extra=NO_EFFECT,
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
        if self.weights == "here":
            del values["weights"]
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

    @field_validator("servers")
    @classmethod
    def _addresses_of_servers(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for address in servers:
            check_endpoint(address, "model", "servers", "server_key_variable")
            if urlsplit(address).path.rstrip("/").endswith("/v1"):
                raise ValueError(
                    "model.servers has an address that ends in /v1, but health and adapters are "
                    "not below it. Fix: leave out /v1"
                )
        bare = tuple(address.rstrip("/") for address in servers)
        if len(set(bare)) < len(bare):
            raise ValueError("model.servers names a server twice. Fix: name each once")
        return bare

    @model_validator(mode="after")
    def _servers_belong_to_their_engine(self):
        if self.engine != "vllm-server":
            for name in ("servers", "adapters_dir", "server_key_variable"):
                if getattr(self, name):
                    raise ValueError(
                        f"model.{name} is set, but model.engine={self.engine!r} asks no server. "
                        f"Fix: set model.engine='vllm-server', or unset model.{name}"
                    )
            if self.weights == "servers":
                raise ValueError(
                    f"model.weights='servers' needs servers, but model.engine={self.engine!r} asks "
                    "none. Fix: set model.engine='vllm-server', or model.weights='here'"
                )
            return self
        if not self.servers:
            raise ValueError(
                "model.engine='vllm-server' needs the addresses of the servers. "
                "Fix: set model.servers, for example to http://gpu1:8000, or choose another engine"
            )
        if self.adapters_dir is not None and not Path(self.adapters_dir).is_absolute():
            raise ValueError(
                f"model.adapters_dir={self.adapters_dir!r} is no absolute path, but the servers "
                "must find the adapters at the same path. Fix: give an absolute path"
            )
        if self.adapters_dir is None and not all(map(_on_this_machine, self.servers)):
            raise ValueError(
                "model.servers names another machine, which must read the adapters that training "
                "writes. Fix: set model.adapters_dir to a folder that both see at the same path"
            )
        return self

    @model_validator(mode="after")
    def _revision_belongs_to_a_hub(self):
        if self.revision and (self.id == BUNDLED or Path(self.id).exists()):
            raise ValueError(
                f"model.revision={self.revision!r} is set, but only models of the hub have "
                f"revisions, and {self.id!r} is none. Fix: unset model.revision"
            )
        return self


def _on_this_machine(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
