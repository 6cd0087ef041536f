"""One of two processes with FSDP2: what each holds, and that uneven work ends with the gradients
of one process. Started by test_processes.py."""

import torch
from torch.distributed.tensor import DTensor

from policyalign_assets.distillation.adapters import (
    add_adapters,
    student_parameters,
    teacher_weights,
)
from policyalign_assets.distillation.processes import Accelerated
from policyalign_assets.engine.forward.folded import fold, using
from policyalign_assets.engine.loading import load_model
from policyalign_assets.settings import DistillationSettings, ModelSettings

SETTINGS = DistillationSettings(teacher="ema", lora_rank=4, lora_alpha=8)
ROWS = torch.arange(5, 65).view(6, 10)


def model_of(process=None):
    model = add_adapters(load_model(ModelSettings(device="cpu")).model, SETTINGS).eval()
    with torch.no_grad():
        for p in student_parameters(model).values():
            p.add_(0.01)
    return process.shard(model) if process else model


def held(model) -> int:
    """Bytes of the layers' base weights in this process, gathered ones included."""
    weights = [
        p for name, p in model.named_parameters() if ".layers." in name and "lora_" not in name
    ]
    return sum(
        (p.to_local() if isinstance(p, DTensor) else p).untyped_storage().nbytes() for p in weights
    )


def step(model, rows) -> torch.Tensor:
    with teacher_weights(model, SETTINGS.teacher):
        teacher = model.get_base_model().model(input_ids=rows).last_hidden_state
    return (model.get_base_model().model(input_ids=rows).last_hidden_state - teacher).square().sum()


def main() -> None:
    process = Accelerated(cpu=True)
    assert process.sharded and process.count == 2
    alone, model = model_of(), model_of(process)
    everything = held(alone)
    assert held(model) < 0.6 * everything, "each process holds a part"

    with torch.no_grad():
        expected = alone(input_ids=ROWS[:2]).logits
    with process.gathered(model):
        assert held(model) == everything
        for _ in range(1 + process.index):  # one process calls it more often than the other
            with torch.inference_mode(), using(model, fold(model)):
                torch.testing.assert_close(
                    model(input_ids=ROWS[:2]).logits, expected, atol=1e-4, rtol=1e-4
                )
    assert held(model) < 0.6 * everything

    micros = [ROWS[:1], ROWS[1:2], ROWS[2:3]] if process.main else [ROWS[3:]]  # three against one
    total = torch.zeros(())
    for micro, weight in process.evenly(micros):
        loss = weight * step(model, micro)
        loss.backward()
        total += loss.detach()
    process.sum_gradients(student_parameters(model).values())
    reference = step(alone, ROWS)
    reference.backward()
    torch.testing.assert_close(process.sum(total), reference.detach(), atol=0, rtol=1e-4)
    for (name, ours), right in zip(
        student_parameters(model).items(), student_parameters(alone).values(), strict=True
    ):
        assert (ours.grad - right.grad).norm() < 1e-4 * right.grad.norm(), name
    assert held(model) < 0.6 * everything, "nothing stays gathered after an update"
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
