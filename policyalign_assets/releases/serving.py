"""How vLLM serves a released bundle, under a name that no other weights can have.

vLLM must never answer with the base model where the aligned one was asked for, and never mix old
and new weights. So the adapter gets a name that holds the hash of its bundle, and clients use a
stable alias for the same folder. A request for a name that is not loaded is an error.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from policyalign_assets.releases.answers import stored_settings
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.record import WEIGHTS, ReleaseRecord, bundle_id, read_record
from policyalign_assets.settings import ModelSettings


@dataclass(frozen=True)
class ServePlan:
    """`command`: arguments of `vllm serve`. `name`: holds the hash; `alias`: stays the same."""

    command: tuple[str, ...]
    name: str
    alias: str

    @property
    def text(self) -> str:
        """The command as one types it into a shell."""
        return shlex.join(self.command)


def alias_of(target: str) -> str:
    """`medical|general-conduct` becomes `medical.general-conduct`: a name that URLs can hold."""
    return target.replace("|", ".")


def serve_plan(
    bundle: Path, base_folder: Path | None = None, host: str = "127.0.0.1", port: int = 8000
) -> ServePlan:
    """How vLLM serves `bundle`. The caller verifies the bundle first.

    base_folder: where the base model is, if its id is not one that vLLM can load.
    Raises ReleaseError if the base model cannot be named.
    """
    record = read_record(bundle)
    alias = alias_of(record.target)
    name = f"{alias}@{bundle_id(bundle)[:16]}"
    weights = (bundle / WEIGHTS[record.tuning]).resolve()
    # the gates were measured in this format; vLLM's own choice may be a coarser one
    dtype = ModelSettings.model_validate(stored_settings(bundle).get("model", {})).dtype
    common = ("--dtype", dtype, "--host", host, "--port", str(port))
    if record.tuning == "full":
        served = ("--served-model-name", name, alias)
        return ServePlan(("vllm", "serve", str(weights), *served, *common), name, alias)
    modules = [
        json.dumps({"name": n, "path": str(weights), "base_model_name": record.base.model_id})
        for n in (name, alias)
    ]
    rank = json.loads((weights / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    command = (
        "vllm",
        "serve",
        *_base(record, base_folder),
        "--served-model-name",
        f"{alias}.base",
        "--enable-lora",
        "--max-loras",
        "2",
        "--max-lora-rank",
        str(_supported_rank(rank)),
        "--lora-modules",
        *modules,
        *common,
    )
    return ServePlan(command, name, alias)


def _base(record: ReleaseRecord, folder: Path | None) -> tuple[str, ...]:
    if folder is not None:
        return (str(folder.resolve()),)
    if "/" not in record.base.model_id:
        raise ReleaseError(
            f"The base model is called {record.base.model_id!r}, which vLLM cannot load by name. "
            "Fix: name its folder with --base FOLDER."
        )
    if Path(record.base.model_id).is_absolute():
        return (record.base.model_id,)
    return (record.base.model_id, "--revision", record.base.revision)


def _supported_rank(rank: int) -> int:
    """The smallest rank that vLLM offers and that holds `rank`."""
    offered = (8, 16, 32, 64, 128, 256, 320, 512)
    return next((r for r in offered if r >= rank), rank)
