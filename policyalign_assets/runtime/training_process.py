"""One of the processes that `accelerate launch` starts: `python -m policyalign_assets.runtime.training_process <exchange folder>`.

A process that fails says why and ends at once; `accelerate launch` then ends the others, so nobody waits for a lost one.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import torch

from policyalign_assets.distillation.processes import Accelerated
from policyalign_assets.runtime.accelerated import MARK, on_cpu
from policyalign_assets.runtime.exchange import Exchange, problem_of
from policyalign_assets.stages.distilled_checkpoint import train


def main() -> None:
    exchange = Exchange(Path(sys.argv[1]))
    try:
        stage, context, inputs = exchange.take(lambda line: print(MARK + line, flush=True))
        processes = Accelerated(cpu=on_cpu(context.settings))
        if not processes.main:
            context = replace(context, report=lambda _: None)
        made = train(context, **inputs, processes=processes)
        if processes.main:
            exchange.hand_over(stage, made)
        torch.distributed.barrier()  # whoever leaves before the main one is done would take it along
        torch.distributed.destroy_process_group()
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
            time.sleep(
                3
            )  # if another process is lost, this one is ended meanwhile, and the reason is the other's to say
        if exchange.problem() is None:  # the first reason is the reason
            exchange.fail(problem_of(error))
        os._exit(1)  # at once: a process group waits for its members at the interpreter's end


if __name__ == "__main__":
    main()
