"""Runs one stage in a process of its own.

    python -m policyalign_assets.runtime.worker <exchange folder or URL>

A run starts this process through Dagster Pipes, which shows its progress on the run's page. The
process needs `dagster-pipes`, which has no dependencies, but not Dagster itself. The image of a Ray
or Kubernetes cluster can therefore be small.
"""

from __future__ import annotations

import sys
import traceback

from dagster_pipes import open_dagster_pipes

from policyalign_assets.files import location
from policyalign_assets.runtime.exchange import Exchange, problem_of
from policyalign_assets.runtime.execution import make
from policyalign_assets.runtime.fast_start import without_unused_libraries


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m policyalign_assets.runtime.worker <exchange folder or URL>")
    without_unused_libraries()
    sys.exit(not work(sys.argv[1]))


def work(folder: str) -> bool:
    """Makes the stage of the exchange folder. Returns whether it was made; if not, the folder
    holds the reason."""
    exchange = Exchange(location(folder))
    with open_dagster_pipes() as pipes:
        try:
            stage, context, inputs = exchange.take(pipes.log.info)
            exchange.hand_over(stage, make(stage, context, inputs))
        except Exception as error:
            traceback.print_exc()  # for the process's log; the run's page shows only the message
            exchange.fail(problem_of(error))
            return False
    return True


if __name__ == "__main__":
    main()
