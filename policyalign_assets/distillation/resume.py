"""Saved training steps: weights and optimizer state as safetensors, history as Parquet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from policyalign_assets.distillation.tuning import Tuning
from policyalign_assets.files import new_directory
from policyalign_assets.tables import TRAINING


def latest_step(work_dir: Path) -> Path | None:
    """The folder of the last complete step, if any. Unfinished ones have a temporary name."""
    return max(work_dir.glob("step_*"), default=None)


def save_step(
    work_dir: Path, step: int, tuning: Tuning, optimizer: torch.optim.Optimizer, history: list[dict]
) -> None:
    """Writes `work_dir/step_NNNNNN` under another name, renames it, then removes older steps."""
    final = work_dir / f"step_{step:06d}"
    with new_directory(final) as folder:
        save_file(
            {n: p.detach().contiguous() for n, p in tuning.saved().items()},
            folder / "weights.safetensors",
        )
        state = optimizer.state_dict()
        save_file(
            {
                f"{i}.{k}": v.contiguous()
                for i, entry in state["state"].items()
                for k, v in entry.items()
            },
            folder / "optimizer.safetensors",
        )
        (folder / "optimizer.json").write_text(json.dumps(state["param_groups"]))
        pq.write_table(pa.Table.from_pylist(history, schema=TRAINING), folder / "history.parquet")
    for old in work_dir.glob("step_*"):
        if old != final:
            shutil.rmtree(old)


def load_step(folder: Path, tuning: Tuning, optimizer: torch.optim.Optimizer) -> list[dict]:
    """Restores a saved step into `tuning` and `optimizer`; returns one history row per step."""
    saved = load_file(folder / "weights.safetensors")
    with torch.no_grad():
        for name, p in tuning.saved().items():
            p.copy_(saved[name])
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        i, _, name = key.partition(".")
        entries.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict(
        {"state": entries, "param_groups": json.loads((folder / "optimizer.json").read_text())}
    )
    return pq.read_table(folder / "history.parquet").to_pylist()
