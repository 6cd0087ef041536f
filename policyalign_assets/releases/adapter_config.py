"""Names the base model and its revision in an adapter's configuration.

vLLM's resolvers, PEFT's AutoPeftModel and people read them there. Older checkpoints name no
revision, and the file is part of a checkpoint's hash. So a bundle keeps the file as it was trained
beside the completed one, and only these two entries may differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from policyalign_assets.files import sha256_named
from policyalign_assets.releases.errors import ReleaseError

CONFIG, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
AS_TRAINED = f"training/{CONFIG}"  # in a bundle; only where the file was completed


def complete(bundle: Path, model_id: str, revision: str) -> None:
    """Completes the adapter's configuration in a bundle that is being written.

    Raises ReleaseError if it names another base model.
    """
    file = bundle / "adapter" / CONFIG
    text = file.read_bytes()
    config = json.loads(text)
    named = config.get("base_model_name_or_path"), config.get("revision")
    if named[0] not in (None, model_id) or named[1] not in (None, revision):
        raise ReleaseError(
            f"The adapter was made for {named[0]} at revision {named[1]}, and the checkpoint for "
            f"{model_id} at {revision}. Fix: materialize distilled_checkpoint again."
        )
    if named == (model_id, revision):
        return
    kept = bundle / AS_TRAINED
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(text)
    file.write_bytes(_completed(config, model_id, revision))


def fault(bundle: Path, model_id: str, revision: str) -> str | None:
    """Why the configuration is not the trained one with its base named, or None if it is."""
    config = json.loads((bundle / "adapter" / CONFIG).read_bytes())
    named = (config.get("base_model_name_or_path"), config.get("revision"))
    if named != (model_id, revision):
        return f"{CONFIG} names {named[0]} at {named[1]}, not {model_id} at {revision}"
    kept = bundle / AS_TRAINED
    if kept.exists():
        trained = json.loads(kept.read_bytes())
        if _completed(trained, model_id, revision) != (bundle / "adapter" / CONFIG).read_bytes():
            return f"{CONFIG} differs from the trained one in more than the base model"
    return None


def adapter_digest(bundle: Path) -> str:
    """The digest of the adapter as it was trained, by which its checkpoint is named."""
    kept = bundle / AS_TRAINED
    config = kept if kept.exists() else bundle / "adapter" / CONFIG
    return sha256_named({CONFIG: config, WEIGHTS_FILE: bundle / "adapter" / WEIGHTS_FILE})


def _completed(config: dict[str, Any], model_id: str, revision: str) -> bytes:
    named = {**config, "base_model_name_or_path": model_id, "revision": revision}
    return (json.dumps(named, indent=2, sort_keys=True) + "\n").encode()
