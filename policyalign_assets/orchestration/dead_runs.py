"""Runs whose process is gone but that still count as running: a machine restarted, a command killed hard.

Dagster's default launcher cannot tell, and such a run would keep its partition, its place in the queue and its pool slots
for ever. So each run notes its process, and whoever looks for work on the same machine first buries the dead.
"""

import os
import socket

import dagster as dg

from policyalign_assets.files import process_start

TAG = "policyalign/process"  # host:pid:start


def note_process(instance: dg.DagsterInstance, run_id: str) -> None:
    if start := process_start(
        os.getpid()
    ):  # nothing is noted, and nothing buried, where there is no /proc
        instance.add_run_tags(run_id, {TAG: f"{socket.gethostname()}:{os.getpid()}:{start}"})


def bury_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Marks runs of this machine as failed whose process is gone; frees their pool slots. Returns their ids."""
    buried = []
    for run in instance.get_runs(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
    ):
        host, _, rest = run.tags.get(TAG, "").partition(":")
        pid, _, start = rest.partition(":")
        if host == socket.gethostname() and start and process_start(int(pid)) != start:
            instance.report_run_failed(
                run, "Its process is gone: it was killed, or the machine restarted."
            )
            if instance.event_log_storage.supports_global_concurrency_limits:
                instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            buried.append(run.run_id)
    return buried
