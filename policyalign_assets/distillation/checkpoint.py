"""Finished checkpoints: immutable folders named by the hash of the bytes of an adapter, or of a whole model.

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
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from policyalign_assets.distillation.adapters import STUDENT, save_student
from policyalign_assets.distillation.tuning import Model
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.files import (
    Location,
    downloaded,
    is_local,
    new_directory,
    sha256_files,
    upload,
)
from policyalign_assets.records import Checkpoint

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
TRAINING_FILE = "training.parquet"
CARD = "checkpoint.json"  # in an object store it comes last: a folder without it is unfinished
WHERE_IT_WAS = (
    "is_local",
    "local_files_only",
    "name_or_path",
)  # in a tokenizer's configuration: of the machine, not of the tokenizer


class CheckpointChanged(ValueError):
    """A checkpoint's files are missing or no longer the ones that were published."""


class NotAnAdapter(ValueError):
    """An adapter is asked for, and the checkpoint is a whole model."""


def publish(
    model: Model,
    loaded: LoadedModel,
    training: pa.Table,
    data_dir: Location,
    provenance: Mapping[str, Any],
) -> Checkpoint:
    """Writes `checkpoints/<hash>/`: a plain PEFT adapter, or a plain transformers model with its tokenizer, `training.parquet`,
    `checkpoint.json`. Never overwrites one."""
    folder = data_dir / "checkpoints"
    tuning = "lora" if isinstance(model, PeftModel) else "full"
    with _beside(folder) as name:
        aside = Path(name)
        if tuning == "lora":
            _write_adapter(model, loaded.model_id, aside)
        else:
            _write_model(model, loaded.tokenizer, aside)
        checkpoint_id = _id(aside, tuning)
        checkpoint = Checkpoint(
            checkpoint_id,
            f"checkpoints/{checkpoint_id}",
            loaded.model_id,
            loaded.revision,
            dict(provenance),
            tuning,
        )
        pq.write_table(training, aside / TRAINING_FILE)
        (aside / CARD).write_text(json.dumps(asdict(checkpoint), indent=2, sort_keys=True))
        if is_local(folder):
            with new_directory(folder / checkpoint_id) as final:
                for file in aside.iterdir():
                    shutil.move(file, final / file.name)
        elif not (folder / checkpoint_id / CARD).exists():
            upload(aside, folder / checkpoint_id, last=CARD)
    return checkpoint


def _write_adapter(model: PeftModel, model_id: str, folder: Path) -> None:
    # it names its base by id: a path of this machine would mean nothing elsewhere, and would enter the hash
    config = model.peft_config[STUDENT]
    config.base_model_name_or_path = model_id
    config.target_modules = sorted(
        config.target_modules
    )  # a set, which each process writes in another order
    save_student(model, folder)
    for file in set(folder.iterdir()) - {folder / name for name in ADAPTER_FILES}:
        file.unlink()  # PEFT's card has nothing to say


def _write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(
        folder, save_jinja_files=False
    )  # several templates would make a folder, which no hash covers
    config = folder / "tokenizer_config.json"
    said = {
        k: v
        for k, v in json.loads(config.read_text(encoding="utf-8")).items()
        if k not in WHERE_IT_WAS
    }
    config.write_text(json.dumps(said, indent=2, sort_keys=True), encoding="utf-8")


def _id(folder: Path, tuning: str) -> str:
    """Of a whole model every file counts: transformers reads some merely because they are there."""
    return (
        sha256_files(folder, ADAPTER_FILES)
        if tuning == "lora"
        else sha256_files(folder, but=(TRAINING_FILE, CARD))
    )[:16]


def _beside(folder: Location) -> tempfile.TemporaryDirectory:
    """On the same disk as `folder`, so that a rename suffices; anywhere where that is an object store."""
    if is_local(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(
        dir=folder if is_local(folder) else None, prefix=".unpublished."
    )


def load_aligned(checkpoint: Checkpoint, base: LoadedModel, data_dir: Location) -> LoadedModel:
    """`base` with the checkpoint's adapter on it; or the checkpoint's own model, which leaves `base` as it is. Raises CheckpointChanged
    before loading anything that is not what was published."""
    with _unchanged(checkpoint, data_dir) as local:
        if checkpoint.tuning == "lora":
            model = PeftModel.from_pretrained(base.model, local)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                local,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                dtype=base.model.dtype,
            ).to(base.device)
    return LoadedModel(
        model.eval(), base.tokenizer, base.model_id, f"{base.revision}+{checkpoint.checkpoint_id}"
    )


@contextmanager
def adapter_folder(checkpoint: Checkpoint, data_dir: Location) -> Iterator[Path]:
    """A local folder with the checkpoint's adapter. Raises CheckpointChanged where that is not what was published, NotAnAdapter."""
    if checkpoint.tuning != "lora":
        raise NotAnAdapter(
            f"checkpoint {checkpoint.checkpoint_id} is a whole model (distillation.tuning='full'), and model.engine='vllm' takes "
            "adapters alone. Mend: model.engine='transformers', or materialize distilled_checkpoint with distillation.tuning='lora'."
        )
    with _unchanged(checkpoint, data_dir) as local:
        yield local


@contextmanager
def _unchanged(checkpoint: Checkpoint, data_dir: Location) -> Iterator[Path]:
    folder = data_dir / checkpoint.path
    if not folder.is_dir():
        raise _changed(checkpoint)
    with downloaded(folder) as local:
        if _id(local, checkpoint.tuning) != checkpoint.checkpoint_id:
            raise _changed(checkpoint)
        yield local


def _changed(checkpoint: Checkpoint) -> CheckpointChanged:
    return CheckpointChanged(
        f"checkpoint {checkpoint.checkpoint_id} at {checkpoint.path} is missing or was changed after it was published. "
        "Mend: materialize distilled_checkpoint again."
    )
