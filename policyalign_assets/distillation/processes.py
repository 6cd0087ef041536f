"""Training shared among processes, a GPU each: every process takes its share of each batch, and all take the same optimizer steps.

Started by `accelerate launch` (stages/accelerated.py), whose configuration says how the weights are kept:

  DDP     each process holds the whole model.
  FSDP2   each process holds a part of every layer's base weights, and gathers a layer while it computes with it. Rollouts would
          gather all layers for every single token, so the whole is gathered once before them and dropped after.

Only the adapter is trained, and it is small: every process holds all of it, gradients are summed in one exchange before each
optimizer step, and so a saved step or a checkpoint is what one process would write. The way a batch is cut changes
no sum but by rounding: the same losses come out with any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch


class CannotShard(ValueError):
    """Which modules are the model's layers is not known."""


class Processes:
    """This process alone: the whole of every batch is its own."""

    index, count, sharded = 0, 1, False

    @property
    def main(self) -> bool:
        """The one that reports, saves and publishes."""
        return self.index == 0

    def share(self, rows: Sequence) -> Sequence:
        """This process's rows of a batch. Cut into equal parts, a batch and its shares have the same rows in the same part."""
        return rows[self.index :: self.count]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all processes; each gets the result."""
        return values

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """In place, over all processes; a parameter without gradient counts as zero."""

    def shard(self, model):
        """`model` (PEFT), of which each process then holds a part, where the configuration says so. Raises CannotShard."""
        return model

    @contextmanager
    def whole(self, model) -> Iterator[None]:
        """Inside, `model` can be called any number of times, not as often as on every other process."""
        yield

    def evenly(self, micros: Sequence) -> Iterator[tuple[Sequence, float]]:
        """Micro-batches with their weights: where all must make the same number of calls, the last one again with weight 0."""
        return ((m, 1.0) for m in micros)


SINGLE_PROCESS = Processes()


class Accelerated(Processes):
    """One of the processes of `accelerate launch`. Every method is a meeting: all processes call the same ones in the same order."""

    def __init__(self, cpu: bool):
        from accelerate import PartialState
        from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env

        state = PartialState(
            cpu=cpu
        )  # also joins the others, and makes this process's GPU the current one
        self.index, self.count, self.device = state.process_index, state.num_processes, state.device
        self.plugin = (
            FullyShardedDataParallelPlugin() if parse_flag_from_env("ACCELERATE_USE_FSDP") else None
        )
        self.sharded = self.plugin is not None

    def sum(self, values):
        values = values.to(self.device, copy=True)
        torch.distributed.all_reduce(values)
        return values.cpu()

    def sum_gradients(self, parameters):
        parameters = list(parameters)
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        )
        torch.distributed.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = part.view_as(p)

    def shard(self, model):
        """In place: the base weights of all layers. Embeddings, head and adapters stay whole on each process."""
        if not self.sharded:
            return model
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        backbone = model.get_base_model()
        names = self.plugin.transformer_cls_names_to_wrap or backbone._no_split_modules or ()
        layers = [m for m in backbone.model.modules() if type(m).__name__ in names]
        if not layers:
            raise CannotShard(
                f"no layer of {type(backbone).__name__} is one of {sorted(names)}. Mend: fsdp_transformer_layer_cls_to_wrap in "
                "distillation.accelerate_config names the class of its layers."
            )
        base = {
            p
            for layer in layers
            for name, p in layer.named_parameters()
            if ".lora_" not in f".{name}"
        }
        kept = {p for p in model.parameters() if p not in base}
        for p in kept:
            p.data = p.data.to(self.device)
        mesh = init_device_mesh(self.device.type, (self.count,))
        for layer in layers:
            fully_shard(
                layer,
                mesh=mesh,
                reshard_after_forward=self.plugin.reshard_after_forward,
                ignored_params=kept,
            )
        fully_shard(
            backbone.model, mesh=mesh, ignored_params=kept
        )  # holds nothing itself; by it the layers know of each other
        return model

    @contextmanager
    def whole(self, model):
        from torch.distributed.fsdp import FSDPModule

        layers = [m for m in model.modules() if isinstance(m, FSDPModule)]
        for layer in layers:
            layer.set_reshard_after_forward(False, recurse=False)
            layer.unshard()
        try:
            yield
        finally:
            for layer in layers:
                layer.set_reshard_after_forward(self.plugin.reshard_after_forward, recurse=False)
                layer.reshard()

    def evenly(self, micros):
        most = len(micros)
        if self.sharded:
            counts = torch.zeros(self.count)
            counts[self.index] = len(micros)
            most = int(self.sum(counts).max())
        for i in range(most):
            yield (micros[i], 1.0) if i < len(micros) else (micros[-1], 0.0)
