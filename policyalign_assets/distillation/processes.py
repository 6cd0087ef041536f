"""Training with several processes, one per GPU.

Every process computes its share of each batch, and all take the same optimizer steps. They are
started by `accelerate launch` (`runtime/accelerated.py`), whose configuration decides where the
weights are:

  DDP     Each process holds the whole model.
  FSDP2   Each process holds a part of every layer's base weights, and gathers a layer while it
          computes with it. Rollouts by this process would gather all layers for every single token,
          so the whole model is gathered once before them and released afterwards. With rollouts by
          servers (`model.engine=vllm-server`) no process ever holds the whole model on its device.

Before weights are sharded they are mapped from their files, if the files have the model's dtype:
then they are in no process's own memory, and all processes of a machine share the mapped pages.

With LoRA only the adapter is trained, and it is small, so every process holds all of it. Gradients
are summed before each optimizer step. With full fine-tuning and FSDP2, the layers' gradients and
optimizer state are in parts as well. They are put together on the main process, in its main memory,
where a step is saved or the result is returned. A saved step or a checkpoint is therefore the same
as from one process, and any number of processes gives the same losses up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor, distribute_tensor

SUMMED_AT_ONCE = 1 << 26  # elements of gradients in one exchange
Value = TypeVar("Value")


class CannotShard(ValueError):
    """The modules that are the model's layers cannot be identified."""


class Processes:
    """A single process, which computes the whole of every batch."""

    index, count, sharded = 0, 1, False

    @property
    def main(self) -> bool:
        """The one that reports, saves and publishes."""
        return self.index == 0

    def share(self, rows: Sequence[int]) -> Sequence[int]:
        """This process's rows of a batch.

        The k-th of n equal parts of a batch consists of the k-th parts of all shares.
        """
        return rows[self.index :: self.count]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over all processes; each gets the result."""
        return values

    def from_main(self, value: Value) -> Value:
        """The main process's value, on all processes."""
        return value

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sums gradients in place over all processes; a missing gradient counts as zero."""

    def clip_gradients(self, parameters: Iterable[torch.nn.Parameter], most: float) -> float:
        """Scales the summed gradients in place to a norm of at most `most`; returns their norm."""
        return torch.nn.utils.clip_grad_norm_(parameters, most).item()

    def shard(self, model: Any) -> Any:
        """Returns `model`, sharded over the processes if the configuration says so.

        Raises CannotShard.
        """
        return model

    def complete(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the tensors without sharding. Those in parts are on the main process alone."""
        return dict(tensors)

    def complete_model(self, model: Any) -> Any:
        """Returns a model whose trained weights are not in parts; on the main process alone."""
        return model

    @contextmanager
    def gathered(self, model: Any) -> Iterator[None]:
        """Gathers the shards, so ranks may call `model` different numbers of times."""
        yield

    def evenly(self, micros: Sequence[list[int]]) -> Iterator[tuple[list[int], float]]:
        """Micro-batches with their weights.

        If all processes must make the same number of calls, the last micro-batch is repeated with
        weight 0.
        """
        return ((m, 1.0) for m in micros)


SINGLE_PROCESS = Processes()


class Accelerated(Processes):
    """One of the processes of `accelerate launch`.

    The methods communicate, so all processes must call the same ones in the same order.
    """

    def __init__(self, cpu: bool):
        from accelerate import PartialState
        from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env

        # This also joins the process group and selects this process's GPU.
        state = PartialState(cpu=cpu)
        self.index, self.count, self.device = state.process_index, state.num_processes, state.device
        self.sharded = parse_flag_from_env("ACCELERATE_USE_FSDP")
        self.plugin: Any = FullyShardedDataParallelPlugin() if self.sharded else None

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        values = values.to(self.device, copy=True)
        torch.distributed.all_reduce(values)
        return values.cpu()

    def from_main(self, value: Value) -> Value:
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        bucket: list[torch.nn.Parameter] = []
        for p in parameters:
            if isinstance(p, DTensor):
                if p.grad is not None:
                    p.grad.mul_(self.count)  # FSDP2 has left the mean
                continue
            if bucket and sum(q.numel() for q in bucket) + p.numel() > SUMMED_AT_ONCE:
                self._sum_bucket(bucket)
                bucket = []
            bucket.append(p)
        self._sum_bucket(bucket)

    def _sum_bucket(self, parameters: list[torch.nn.Parameter]) -> None:
        if not parameters:
            return
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        )
        torch.distributed.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = part.view_as(p)

    def clip_gradients(self, parameters: Iterable[torch.nn.Parameter], most: float) -> float:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not any(isinstance(g, DTensor) for g in gradients):
            return super().clip_gradients(parameters, most)
        parts = [g.to_local() for g in gradients if isinstance(g, DTensor)]
        whole = [g for g in gradients if not isinstance(g, DTensor)]
        squares = torch.stack([g.double().square().sum() for g in parts]).sum()
        torch.distributed.all_reduce(squares)
        squares += sum(g.double().square().sum() for g in whole)
        norm = math.sqrt(squares.item())
        if norm > most:
            for gradient in (*parts, *whole):
                gradient.mul_(most / (norm + 1e-6))
        return norm

    def shard(self, model: Any) -> Any:
        """Shards the base weights of all layers in place.

        Embeddings, head and adapters stay complete on each process.
        """
        if not self.sharded:
            return model
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        backbone: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        names = self.plugin.transformer_cls_names_to_wrap or backbone._no_split_modules or ()
        layers = [m for m in backbone.model.modules() if type(m).__name__ in names]
        if not layers:
            raise CannotShard(
                f"no layer of {type(backbone).__name__} is one of {sorted(names)}. Fix: name "
                "the class of its layers as fsdp_transformer_layer_cls_to_wrap in "
                "distillation.accelerate_config."
            )
        # By identity, since a reference would keep a whole weight on the device after its sharding.
        base = {
            id(p)
            for layer in layers
            for name, p in layer.named_parameters()
            if ".lora_" not in f".{name}"
        }
        kept = {p for p in model.parameters() if id(p) not in base}
        for p in kept:  # trained ones get memory of their own, also where they map a file
            p.data = p.data.to(self.device, copy=p.requires_grad)
        mesh = init_device_mesh(self.device.type, (self.count,))
        for layer in layers:  # each goes to the device, where its other parts are freed
            fully_shard(
                layer,
                mesh=mesh,
                reshard_after_forward=self.plugin.reshard_after_forward,
                ignored_params=kept,
            )
        # The root shards no weights itself, but it connects the layers.
        fully_shard(backbone.model, mesh=mesh, ignored_params=kept)
        return model

    def complete(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for name, tensor in tensors.items():
            if isinstance(tensor, DTensor):
                whole = tensor.full_tensor()
                if self.main:
                    found[name] = whole.cpu()
            else:
                found[name] = tensor
        return found

    def complete_model(self, model: Any) -> Any:
        if not any(isinstance(p, DTensor) and p.requires_grad for p in model.parameters()):
            return model
        weights = self.complete(model.state_dict())
        if not self.main:
            return model
        with torch.device("meta"):
            whole = type(model)(model.config)
        whole.load_state_dict(weights, assign=True)
        whole.tie_weights()
        whole.generation_config = model.generation_config
        return whole

    @contextmanager
    def gathered(self, model: Any) -> Iterator[None]:
        from torch.distributed.fsdp import FSDPModule

        layers = [m for m in model.modules() if isinstance(m, FSDPModule)]
        try:
            for layer in layers:
                layer.set_reshard_after_forward(False, recurse=False)
                layer.unshard()
            yield
        finally:
            for layer in layers:
                layer.set_reshard_after_forward(self.plugin.reshard_after_forward, recurse=False)
                layer.reshard()

    def evenly(self, micros: Sequence[list[int]]) -> Iterator[tuple[list[int], float]]:
        most = len(micros)
        if self.sharded:
            counts = torch.zeros(self.count)
            counts[self.index] = len(micros)
            most = int(self.sum(counts).max())
        for i in range(most):
            yield (micros[i], 1.0) if i < len(micros) else (micros[-1], 0.0)


def parted_like(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This process's part of a complete tensor, where `parameter` is in parts."""
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(
        whole.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def parted_and_not(parameters: Iterable[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Groups of parameters that an optimizer can update together."""
    groups: list[list[torch.nn.Parameter]] = [[], []]
    for p in parameters:
        groups[isinstance(p, DTensor)].append(p)
    return [group for group in groups if group]
