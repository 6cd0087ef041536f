"""One of the processes that `accelerate launch` starts: `python -m policyalign_assets.stages.training_process <exchange folder>`.

A process that fails says why and ends at once; `accelerate launch` then ends the others, so nobody waits for a lost one.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch

from policyalign_assets.distillation.processes import Accelerated
from policyalign_assets.stages.accelerated import MARK, on_cpu
from policyalign_assets.stages.distilled_checkpoint import train
from policyalign_assets.stages.exchange import Exchange, problem_of


def main() -> None:
    exchange = Exchange(Path(sys.argv[1]))
    try:
        stage, work, inputs = exchange.take(lambda line: print(MARK + line, flush=True))
        processes = Accelerated(cpu=on_cpu(work.settings))
        made = train(work, **inputs, processes=processes)
        if processes.main:
            exchange.hand_over(stage, made)
        torch.distributed.barrier()  # whoever leaves before the main one is done would take it along
        torch.distributed.destroy_process_group()
    except Exception as error:
        traceback.print_exc()
        if not _lost_another(error) and exchange.problem() is None:  # the first reason is the reason
            exchange.fail(problem_of(error))
        os._exit(1)  # at once: a process group waits for its members at the interpreter's end


def _lost_another(error: Exception) -> bool:
    """Its reason is for the other process to say."""
    return isinstance(error, torch.distributed.DistError) or "Connection closed by peer" in str(error)


if __name__ == "__main__":
    main()
