"""Saved training steps: weights and optimizer state as safetensors, history as Parquet."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from policyalign_assets.distillation.processes import SINGLE_PROCESS, Processes, parted_like
from policyalign_assets.distillation.tuning import Tuning
from policyalign_assets.files import new_directory
from policyalign_assets.tables import TRAINING


def latest_step(work_dir: Path) -> Path | None:
    """The folder of the last complete step, if any. Unfinished ones have a temporary name."""
    return max(work_dir.glob("step_*"), default=None)


def save_step(
    work_dir: Path,
    step: int,
    tuning: Tuning,
    optimizer: torch.optim.Optimizer,
    history: list[dict],
    processes: Processes = SINGLE_PROCESS,
) -> None:
    """Writes `work_dir/step_NNNNNN` under another name, renames it, then removes older steps.

    All processes call it, and the main one writes. What is written does not depend on how the
    weights are sharded.
    """
    weights = processes.complete({n: p.detach() for n, p in tuning.saved().items()})
    state = processes.complete(
        {
            f"{place}.{k}": v
            for p, place in _places(tuning).items()
            for k, v in optimizer.state.get(p, {}).items()
        }
    )
    if not processes.main:
        return
    final = work_dir / f"step_{step:06d}"
    with new_directory(final) as folder:
        for name, tensors in (("weights", weights), ("optimizer", state)):
            save_file(
                {n: t.contiguous() for n, t in tensors.items()}, folder / f"{name}.safetensors"
            )
        pq.write_table(pa.Table.from_pylist(history, schema=TRAINING), folder / "history.parquet")
    for old in work_dir.glob("step_*"):
        if old != final:
            shutil.rmtree(old)


def load_step(folder: Path, tuning: Tuning, optimizer: torch.optim.Optimizer) -> list[dict]:
    """Restores a saved step into `tuning` and `optimizer`; returns one history row per step."""
    saved = load_file(folder / "weights.safetensors")
    with torch.no_grad():
        for name, p in tuning.saved().items():
            p.copy_(parted_like(saved[name], p))
    parameters = list(_places(tuning))
    state = optimizer.state_dict()
    index = {p: i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        place, _, name = key.partition(".")
        p = parameters[int(place)]
        entry = state["state"].setdefault(index[p], {})
        entry[name] = parted_like(value, p) if value.shape == p.shape else value
    optimizer.load_state_dict(state)
    return pq.read_table(folder / "history.parquet").to_pylist()


def _places(tuning: Tuning) -> dict[torch.nn.Parameter, int]:
    """The trained parameters' places in their order, which sharding does not change."""
    return {p: place for place, p in enumerate(tuning.trained().values())}
