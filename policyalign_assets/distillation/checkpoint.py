"""Finished checkpoints: immutable folders named by the hash of the adapter's bytes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from peft import PeftModel

from policyalign_assets.distillation.adapters import STUDENT, save_student
from policyalign_assets.distillation.record import Checkpoint
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.files import new_directory, sha256_files

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


class CheckpointChanged(ValueError):
    """A checkpoint's files are missing or no longer the ones that were published."""


def publish(model: PeftModel, loaded: LoadedModel, training: pa.Table, data_dir: Path, provenance: Mapping[str, Any]) -> Checkpoint:
    """Writes `checkpoints/<hash>/`: a plain PEFT adapter, `training.parquet`, `checkpoint.json`. Never overwrites one."""
    # the adapter names its base by id: a path of this machine would mean nothing elsewhere, and would enter the hash
    model.peft_config[STUDENT].base_model_name_or_path = loaded.model_id
    folder = data_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpublished.") as name:
        aside = Path(name)
        save_student(model, aside)
        checkpoint_id = sha256_files(aside, ADAPTER_FILES)[:16]
        checkpoint = Checkpoint(checkpoint_id, f"checkpoints/{checkpoint_id}", loaded.model_id, loaded.revision, dict(provenance))
        with new_directory(folder / checkpoint_id) as final:
            for file in ADAPTER_FILES:
                shutil.move(aside / file, final / file)
            pq.write_table(training, final / "training.parquet")
            (final / "checkpoint.json").write_text(json.dumps(asdict(checkpoint), indent=2, sort_keys=True))
    return checkpoint


def load_aligned(checkpoint: Checkpoint, base: LoadedModel, data_dir: Path) -> LoadedModel:
    """`base` with the checkpoint's adapter on it. Raises CheckpointChanged before loading anything that is not what was published."""
    folder = data_dir / checkpoint.path
    if not folder.is_dir() or sha256_files(folder, ADAPTER_FILES)[:16] != checkpoint.checkpoint_id:
        raise CheckpointChanged(f"checkpoint {checkpoint.checkpoint_id} at {checkpoint.path} is missing or was changed after it was published. "
                                "Mend: materialize distilled_checkpoint again.")
    model = PeftModel.from_pretrained(base.model, folder)
    return LoadedModel(model.eval(), base.tokenizer, base.model_id, f"{base.revision}+{checkpoint.checkpoint_id}")


def training_table(checkpoint: Checkpoint, data_dir: Path) -> pa.Table:
    return pq.read_table(data_dir / checkpoint.path / "training.parquet")
