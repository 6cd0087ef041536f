"""Finished checkpoints: immutable folders, named by the hash of an adapter or a whole model.

The record of `distilled_checkpoint` points to a partition's current checkpoint. Older ones stay on
disk for those who serve them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from policyalign_assets.distillation.adapters import STUDENT, save_student
from policyalign_assets.distillation.tuning import Model
from policyalign_assets.engine.checks import check_adapter
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.files import (
    Location,
    downloaded,
    new_directory,
    sha256_files,
    temporary_folder,
    upload,
)
from policyalign_assets.records import Checkpoint

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
TRAINING_FILE = "training.parquet"
# Written last to an object store: a folder without it is unfinished.
CARD = "checkpoint.json"
# Entries of a tokenizer's configuration that describe the machine, not the tokenizer.
MACHINE_ENTRIES = ("is_local", "local_files_only", "name_or_path")


Tuning = Literal["lora", "full"]


class CheckpointChanged(ValueError):
    """A checkpoint's files are missing, or differ from those that were published."""


class NotAnAdapter(ValueError):
    """The caller needs an adapter, but the checkpoint is a whole model."""


def publish(
    model: Model,
    loaded: LoadedModel,
    training: pa.Table,
    data_dir: Location,
    provenance: Mapping[str, Any],
) -> Checkpoint:
    """Writes `checkpoints/<hash>/` and never overwrites an existing one.

    The folder holds a plain PEFT adapter, or a plain transformers model with its tokenizer, plus
    `training.parquet` and `checkpoint.json`.
    """
    folder = data_dir / "checkpoints"
    tuning: Tuning = "lora" if isinstance(model, PeftModel) else "full"
    with _temporary_folder(folder) as aside:
        if isinstance(model, PeftModel):
            _write_adapter(model, loaded, aside)
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
        target = folder / checkpoint_id
        if isinstance(target, Path):
            with new_directory(target) as final:
                for file in aside.iterdir():
                    shutil.move(file, final / file.name)
        elif not (target / CARD).exists():
            upload(aside, target, last=CARD)
    return checkpoint


def _write_adapter(model: PeftModel, base: LoadedModel, folder: Path) -> None:
    # The adapter names its base by id: a path of this machine would mean nothing elsewhere, and
    # would change the hash.
    config: Any = model.peft_config[STUDENT]
    config.base_model_name_or_path, config.revision = base.model_id, base.revision
    # Sorted, because PEFT would write this set in a different order in each process.
    config.target_modules = sorted(config.target_modules)
    save_student(model, folder)
    for file in set(folder.iterdir()) - {folder / name for name in ADAPTER_FILES}:
        file.unlink()  # PEFT's empty model card


def _write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.save_pretrained(folder)
    # Without separate Jinja files: several templates would make a folder, which no hash covers.
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    config = folder / "tokenizer_config.json"
    entries = {
        k: v
        for k, v in json.loads(config.read_text(encoding="utf-8")).items()
        if k not in MACHINE_ENTRIES
    }
    config.write_text(json.dumps(entries, indent=2, sort_keys=True), encoding="utf-8")


def _id(folder: Path, tuning: str) -> str:
    """The checkpoint's id. Every file of a whole model counts.

    transformers reads some files merely because they exist.
    """
    return (
        sha256_files(folder, ADAPTER_FILES)
        if tuning == "lora"
        else sha256_files(folder, but=(TRAINING_FILE, CARD))
    )[:16]


def _temporary_folder(folder: Location) -> AbstractContextManager[Path]:
    """On the same disk as `folder`, so that files can be renamed; anywhere for an object store."""
    if not isinstance(folder, Path):
        return temporary_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return temporary_folder(folder)


def load_aligned(checkpoint: Checkpoint, base: LoadedModel, data_dir: Location) -> LoadedModel:
    """Returns `base` with the checkpoint's adapter, or the checkpoint's own whole model.

    A whole model leaves `base` unchanged. Raises CheckpointChanged before anything is loaded that
    differs from what was published.
    """
    model: Any
    with _unchanged(checkpoint, data_dir) as local:
        if checkpoint.tuning == "lora":
            model = PeftModel.from_pretrained(base.model, str(local))
            saved = load_file(local / ADAPTER_FILES[0])
            check_adapter(saved.keys(), get_peft_model_state_dict(model).keys())
        else:
            whole: Any = AutoModelForCausalLM.from_pretrained(
                local,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                dtype=base.model.dtype,
            )
            model = whole.to(base.device)
    return LoadedModel(
        model.eval(), base.tokenizer, base.model_id, f"{base.revision}+{checkpoint.checkpoint_id}"
    )


@contextmanager
def adapter_folder(checkpoint: Checkpoint, data_dir: Location) -> Iterator[Path]:
    """Yields a local folder with the checkpoint's adapter.

    Raises CheckpointChanged if the files differ from those published, and NotAnAdapter.
    """
    if checkpoint.tuning != "lora":
        raise NotAnAdapter(
            f"checkpoint {checkpoint.checkpoint_id} is a whole model (distillation.tuning='full'), "
            "but vLLM (model.engine) accepts adapters only. Fix: set model.engine='transformers', "
            "or materialize distilled_checkpoint with distillation.tuning='lora'."
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
        f"checkpoint {checkpoint.checkpoint_id} at {checkpoint.path} is missing or was changed "
        "after it was published. Fix: materialize distilled_checkpoint again."
    )
