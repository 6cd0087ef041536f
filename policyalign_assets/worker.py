"""Runs one stage in a process of its own: `python -m policyalign_assets.worker <exchange folder or URL>`.

Started by a run through Dagster Pipes, which gives it the way back: its progress and facts show in the run's page while it
works. It needs `dagster-pipes` (no dependencies) but no Dagster, so a Ray or Kubernetes image can be lean.
"""

from __future__ import annotations

import sys
import traceback

from dagster_pipes import open_dagster_pipes

from policyalign_assets.files import location
from policyalign_assets.stages import make
from policyalign_assets.stages.exchange import Exchange, problem_of


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m policyalign_assets.worker <exchange folder or URL>")
    exchange = Exchange(location(sys.argv[1]))
    with open_dagster_pipes() as pipes:
        try:
            stage, work, inputs = exchange.take(pipes.log.info)
            made = make(stage, work, inputs)
            exchange.hand_over(stage, made.value)
            pipes.report_asset_materialization(metadata=made.facts, data_version=made.version)
        except Exception as error:
            traceback.print_exc()  # the run shows the plain words; this is for whoever reads the log of the process
            exchange.fail(problem_of(error))
            failed = True
        else:
            failed = False
    sys.exit(failed)


if __name__ == "__main__":
    main()
