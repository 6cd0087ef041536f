"""One of the processes that `accelerate launch` starts.

    python -m policyalign_assets.runtime.training_process <exchange folder>

A process that fails writes down the reason and ends at once. `accelerate launch` then ends the
others, so that none waits for a process that is gone.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from policyalign_assets.runtime.accelerated import MARK, on_cpu
from policyalign_assets.runtime.exchange import Exchange, problem_of
from policyalign_assets.runtime.fast_start import without_unused_libraries
from policyalign_assets.stages.registry import EVERY_STAGE


def main() -> None:
    without_unused_libraries()
    from policyalign_assets.distillation.processes import Accelerated

    exchange = Exchange(Path(sys.argv[1]))
    try:
        stage, context, inputs = exchange.take(lambda line: print(MARK + line, flush=True))
        processes = Accelerated(cpu=on_cpu(context.settings))
        if not processes.main:
            context = replace(context, report=lambda _: None)
        train = import_module(EVERY_STAGE[stage].module).train
        made = train(context, **cast(dict[str, Any], inputs), processes=processes)
        if made is not None:  # only the main process returns a result
            exchange.hand_over(stage, made)
        # A process that ended before the main process is done would make it fail.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
            # If another process failed, this one is ended while it waits. The other process then
            # gives the reason.
            time.sleep(3)
        if exchange.problem() is None:  # the first reason given is kept
            exchange.fail(problem_of(error))
        os._exit(1)  # at once, because a normal exit waits for the members of the process group


if __name__ == "__main__":
    main()
