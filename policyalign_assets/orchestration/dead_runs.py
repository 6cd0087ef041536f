"""Runs whose process is gone but that still count as running, after a restart or a hard kill.

Dagster's default launcher cannot tell. Such a run would keep its partition, its place in the queue
and its pool slots for ever. So each run notes its process, and whoever looks for work on the same
machine first marks the dead runs as failed.
"""

import os
import socket

import dagster as dg

from policyalign_assets.files import process_start

# host:pid:start:run, under the prefix of the tags that the UI does not show
TAG = ".dagster/policyalign/process"


def note_process(instance: dg.DagsterInstance, run_id: str) -> None:
    """Notes the process that runs `run_id`. Without /proc nothing is noted, and nothing buried."""
    if start := process_start(os.getpid()):
        value = f"{socket.gethostname()}:{os.getpid()}:{start}:{run_id[:8]}"
        instance.add_run_tags(run_id, {TAG: value})


def bury_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Marks runs of this machine whose process is gone as failed, and frees their pool slots.

    Returns their ids. Dagster copies the tags of a run to its retry, so a note that names another
    run says nothing: the retry has not noted its own process yet.
    """
    buried = []
    for run in instance.get_runs(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
    ):
        host, pid, start, noted_by = _note(run)
        if host != socket.gethostname() or noted_by != run.run_id[:8]:
            continue
        if process_start(int(pid)) != start:
            # It may have ended since the runs were listed. A dead process changes nothing more.
            now = instance.get_run_by_id(run.run_id)
            if now is None or now.is_finished:
                continue
            if run.remote_job_origin is None:  # Dagster cannot start such a run again
                instance.add_run_tags(run.run_id, {"dagster/max_retries": "0"})
            instance.report_run_failed(
                run, "Its process is gone: it was killed, or the machine restarted."
            )
            if instance.event_log_storage.supports_global_concurrency_limits:
                instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            buried.append(run.run_id)
    return buried


def _note(run: dg.DagsterRun) -> tuple[str, str, str, str]:
    """Host, process id, start time and run of the note; empty texts where there is none."""
    parts = run.tags.get(TAG, "").split(":")
    return (parts[0], parts[1], parts[2], parts[3]) if len(parts) == 4 else ("", "", "", "")
