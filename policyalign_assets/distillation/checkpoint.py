"""Finished checkpoints: immutable folders named by the hash of the adapter's bytes.

What points to the one of a partition is the record of `distilled_checkpoint`, so that old ones stay for whoever serves them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from peft import PeftModel

from policyalign_assets.distillation.adapters import STUDENT, save_student
from policyalign_assets.distillation.record import Checkpoint
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.files import Location, downloaded, is_local, new_directory, sha256_files, upload

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
CARD = "checkpoint.json"  # in an object store it comes last: a folder without it is unfinished


class CheckpointChanged(ValueError):
    """A checkpoint's files are missing or no longer the ones that were published."""


def publish(model: PeftModel, loaded: LoadedModel, training: pa.Table, data_dir: Location, provenance: Mapping[str, Any]) -> Checkpoint:
    """Writes `checkpoints/<hash>/`: a plain PEFT adapter, `training.parquet`, `checkpoint.json`. Never overwrites one."""
    # the adapter names its base by id: a path of this machine would mean nothing elsewhere, and would enter the hash
    config = model.peft_config[STUDENT]
    config.base_model_name_or_path = loaded.model_id
    config.target_modules = sorted(config.target_modules)  # a set, which each process writes in another order
    folder = data_dir / "checkpoints"
    with _beside(folder) as name:
        aside = Path(name)
        save_student(model, aside)
        checkpoint_id = sha256_files(aside, ADAPTER_FILES)[:16]
        checkpoint = Checkpoint(checkpoint_id, f"checkpoints/{checkpoint_id}", loaded.model_id, loaded.revision, dict(provenance))
        for file in set(aside.iterdir()) - {aside / name for name in ADAPTER_FILES}:
            file.unlink()  # PEFT's card has nothing to say
        pq.write_table(training, aside / "training.parquet")
        (aside / CARD).write_text(json.dumps(asdict(checkpoint), indent=2, sort_keys=True))
        if is_local(folder):
            with new_directory(folder / checkpoint_id) as final:
                for file in aside.iterdir():
                    shutil.move(file, final / file.name)
        elif not (folder / checkpoint_id / CARD).exists():
            upload(aside, folder / checkpoint_id, last=CARD)
    return checkpoint


def _beside(folder: Location) -> tempfile.TemporaryDirectory:
    """On the same disk as `folder`, so that a rename suffices; anywhere where that is an object store."""
    if is_local(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=folder if is_local(folder) else None, prefix=".unpublished.")


def load_aligned(checkpoint: Checkpoint, base: LoadedModel, data_dir: Location) -> LoadedModel:
    """`base` with the checkpoint's adapter on it. Raises CheckpointChanged before loading anything that is not what was published."""
    with adapter_folder(checkpoint, data_dir) as local:
        model = PeftModel.from_pretrained(base.model, local)
    return LoadedModel(model.eval(), base.tokenizer, base.model_id, f"{base.revision}+{checkpoint.checkpoint_id}")


@contextmanager
def adapter_folder(checkpoint: Checkpoint, data_dir: Location) -> Iterator[Path]:
    """A local folder with the checkpoint's adapter. Raises CheckpointChanged where that is not what was published."""
    folder = data_dir / checkpoint.path
    if not folder.is_dir():
        raise _changed(checkpoint)
    with downloaded(folder) as local:
        if sha256_files(local, ADAPTER_FILES)[:16] != checkpoint.checkpoint_id:
            raise _changed(checkpoint)
        yield local


def _changed(checkpoint: Checkpoint) -> CheckpointChanged:
    return CheckpointChanged(f"checkpoint {checkpoint.checkpoint_id} at {checkpoint.path} is missing or was changed after it was published. "
                             "Mend: materialize distilled_checkpoint again.")
