"""Runs whose process is gone, and policies whose folder is gone."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from policyalign_assets.files import MARK, location
from policyalign_assets.orchestration import launchers
from policyalign_assets.orchestration.dead_runs import TAG, bury_dead_runs, note_process
from policyalign_assets.orchestration.launchers import Subprocess
from policyalign_assets.orchestration.partitions import NAME
from policyalign_assets.orchestration.prune import (
    Leftovers,
    find_caches,
    find_leftovers,
    find_old_runs,
    prune,
)
from policyalign_assets.orchestration.prune import main as prune_command
from policyalign_assets.orchestration.realign import live_runs

pytestmark = pytest.mark.daemon

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are noted in terms of /proc")


@dg.op
def nothing():
    pass


@dg.job
def any_job():
    nothing()


def started(instance) -> str:
    return instance.create_run_for_job(any_job, status=dg.DagsterRunStatus.STARTED).run_id


def noted(instance, run_id: str, process: str, by: str | None = None) -> str:
    """Tags a run with a note of `process` ("host:pid:start"), as the run `by` (itself) notes it."""
    instance.add_run_tags(run_id, {TAG: f"{process}:{(by or run_id)[:8]}"})
    return run_id


@linux
def test_a_run_whose_process_is_gone_is_marked_failed_and_its_pool_freed(instance):
    instance.event_log_storage.set_concurrency_slots("gpu", 1)
    alive, dead, elsewhere = (
        started(instance),
        started(instance),
        noted(instance, started(instance), "another-host:1:1@x"),
    )
    note_process(instance, alive)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    noted(instance, dead, f"{socket.gethostname()}:{gone.pid}:1@x")
    instance.event_log_storage.claim_concurrency_slot("gpu", dead, "a_step")
    assert not instance.event_log_storage.claim_concurrency_slot("gpu", alive, "a_step").is_claimed

    assert bury_dead_runs(instance) == [dead]
    status = {run_id: instance.get_run_by_id(run_id).status for run_id in (alive, dead, elsewhere)}
    assert status == {
        alive: dg.DagsterRunStatus.STARTED,
        dead: dg.DagsterRunStatus.FAILURE,
        elsewhere: dg.DagsterRunStatus.STARTED,
    }
    assert instance.event_log_storage.claim_concurrency_slot("gpu", alive, "a_step").is_claimed


@linux
def test_another_process_with_the_same_number_is_not_taken_for_the_run(instance):
    mine = f"{socket.gethostname()}:{os.getpid()}:1@before-the-restart"
    run = noted(instance, started(instance), mine)
    assert bury_dead_runs(instance) == [run]


@linux
def test_a_run_that_ends_while_its_process_is_looked_for_is_not_marked_failed(
    instance, monkeypatch
):
    """It had been started again, with all of its stages."""
    run = noted(instance, started(instance), f"{socket.gethostname()}:1:1@x")

    def looked_for(pid: int) -> str:
        instance.report_run_canceled(instance.get_run_by_id(run))
        return ""

    monkeypatch.setattr("policyalign_assets.orchestration.dead_runs.process_start", looked_for)
    assert bury_dead_runs(instance) == []
    assert instance.get_run_by_id(run).status == dg.DagsterRunStatus.CANCELED


@linux
def test_a_retry_is_not_taken_for_the_dead_run_whose_tags_it_inherits(instance):
    dead = started(instance)
    retry = noted(instance, started(instance), f"{socket.gethostname()}:1:1@x", by=dead)
    assert bury_dead_runs(instance) == []
    noted(instance, retry, f"{socket.gethostname()}:1:1@x")
    assert bury_dead_runs(instance) == [retry]


@pytest.fixture()
def folders(tmp_path):
    """Results of `kept`, which has a folder, and of `gone`, which has none."""
    for name in ("kept", "gone"):
        for file, text in (
            (f"assets/policy_document/medical/{name}.json", "{}"),
            (f"reports/{name}/medical/report.html", ""),
            (
                f"checkpoints/of-{name}/checkpoint.json",
                json.dumps({"provenance": {"policy_id": name}}),
            ),
        ):
            (tmp_path / "data" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / file).write_text(text)
    for board in ("leaderboard.html", "leaderboard.parquet"):  # of all policies, also of those gone
        (tmp_path / "data/reports" / board).write_text("")
    (tmp_path / "policies/kept").mkdir(parents=True)
    shutil.copy(ROOT / "policies/general-conduct/policy.md", tmp_path / "policies/kept/policy.md")
    return tmp_path


def test_pruning_removes_what_retired_policies_left_and_nothing_else(instance, folders):
    instance.add_dynamic_partitions(NAME, ["medical|kept", "medical|gone"])
    runs = {
        name: any_job.execute_in_process(
            instance=instance, tags={"dagster/partition": f"medical|{name}"}
        ).run_id
        for name in ("kept", "gone")
    }
    leftovers = find_leftovers(instance, folders / "policies", folders / "data")
    assert (
        leftovers.policies == ["gone"]
        and leftovers.runs == [runs["gone"]]
        and len(leftovers.files) == 3
    )
    assert instance.get_run_by_id(runs["gone"])  # finding removes nothing
    prune(instance, leftovers)
    left = {
        p.relative_to(folders / "data").as_posix()
        for p in (folders / "data").rglob("*")
        if p.is_file()
    }
    assert left == {
        "assets/policy_document/medical/kept.json",
        "reports/kept/medical/report.html",
        "reports/leaderboard.html",
        "reports/leaderboard.parquet",
        "checkpoints/of-kept/checkpoint.json",
    }
    assert instance.get_run_by_id(runs["gone"]) is None and instance.get_run_by_id(runs["kept"])
    assert instance.get_dynamic_partitions(NAME) == ["medical|kept"]
    assert find_leftovers(instance, folders / "policies", folders / "data").policies == []


def test_a_retired_policy_with_a_live_run_is_left_alone(instance, folders):
    instance.add_run_tags(started(instance), {"dagster/partition": "medical|gone"})
    assert find_leftovers(instance, folders / "policies", folders / "data").policies == []


def test_results_at_a_url_are_pruned_too(instance, folders):
    data = location("memory://prune")
    (data / "assets/policy_document/medical/gone.json").write_bytes(b"{}")
    (data / "reports/gone/medical/report.html").write_bytes(b"")
    prune(instance, find_leftovers(instance, folders / "policies", data))
    assert find_leftovers(instance, folders / "policies", data).policies == []


def test_what_only_saves_time_goes_when_asked_and_never_under_a_live_run(instance, folders):
    for name in ("synthesis", "generations", "unfinished"):
        (folders / "data" / name).mkdir()
    assert not {
        f.name for f in find_leftovers(instance, folders / "policies", folders / "data").files
    } & {"synthesis", "generations", "unfinished"}
    assert [f.name for f in find_caches(instance, folders / "data")] == [
        "synthesis",
        "generations",
        "unfinished",
    ]
    started(instance)
    assert find_caches(instance, folders / "data") == []


def test_old_runs_go_with_their_files_but_for_those_that_made_what_is_current(tmp_path):
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
    def parted() -> None: ...

    @dg.asset
    def whole() -> None: ...

    with dg.instance_for_test(temp_dir=str(tmp_path)) as kept:

        def made(asset: dg.AssetsDefinition, partition: str | None = None) -> str:
            return dg.materialize([asset], instance=kept, partition_key=partition).run_id

        old = [made(parted, "a"), made(whole), any_job.execute_in_process(instance=kept).run_id]
        current = [made(parted, "b"), made(parted, "a"), made(whole)]
        started(kept)  # lives
        files = {run: list(tmp_path.rglob(f"{run}.db*")) for run in (*old, *current)}
        assert all(files.values())
        assert find_old_runs(kept, days=1) == []  # all of them are of today
        assert sorted(find_old_runs(kept, days=0)) == sorted(old)
        prune(kept, Leftovers([], [], old))
        assert [kept.get_run_by_id(run) for run in old] == [None] * 3
        assert not any(file.exists() for run in old for file in files[run])
        assert all(kept.get_run_by_id(run) for run in current)
        latest = kept.fetch_materializations(dg.AssetKey("parted"), limit=9).records
        assert {r.run_id for r in latest} == set(current[:2])
        assert find_old_runs(kept, days=0) == []


def test_the_command_removes_nothing_unless_told(folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    monkeypatch.setenv("DAGSTER_HOME", str(folders))

    def command(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["prune", *args])
        prune_command()
        return capsys.readouterr().out

    said = command()
    assert (
        "retired: gone" in said
        and "Nothing was removed" in said
        and (folders / "data/checkpoints/of-gone").exists()
    )
    assert "Removed." in command("--yes") and not (folders / "data/checkpoints/of-gone").exists()
    assert "Nothing is left" in command("--runs-older-than", "1")
    (folders / "data/synthesis").mkdir()
    assert "Nothing is left" in command("--yes") and (folders / "data/synthesis").exists()
    assert (
        "Removed." in command("--caches", "--yes")
        and not (folders / "data/synthesis").exists()
        and (folders / "data/assets").exists()
    )


@pytest.mark.parametrize("days", ["-5", "soon", "nan", "inf"])
def test_what_is_no_number_of_days_is_refused(days, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prune", f"--runs-older-than={days}"])
    with pytest.raises(SystemExit) as ended:
        prune_command()
    assert ended.value.code == 2 and f"'{days}' is no number of days" in capsys.readouterr().err


@pytest.fixture()
def retrying():
    """An instance that starts a failed run once more, as the project's own does."""
    with dg.instance_for_test(
        overrides={"run_retries": {"enabled": True, "max_retries": 1}}
    ) as made:
        yield made


def failed(instance, by_hand: bool, ago: float = 0.0) -> str:
    """A run that failed `ago` seconds ago, started by hand or from a code location."""
    origin = None if by_hand else code_location_origin()
    run = create_run_for_test(
        instance,
        job_name="any_job",
        remote_job_origin=origin,
        status=dg.DagsterRunStatus.STARTED,
        tags={"dagster/partition": "medical|kept"},
    )
    with patch("time.time", return_value=time.time() - ago):
        instance.report_run_failed(run, "killed")
    assert instance.get_run_by_id(run.run_id).tags["dagster/will_retry"] == "true"
    return run.run_id


def code_location_origin() -> RemoteJobOrigin:
    location = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="any"), "any")
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, "any"), "any_job")


def test_a_failed_run_that_dagster_starts_again_holds_its_partition(retrying):
    run = failed(retrying, by_hand=False)
    assert [r.run_id for r in live_runs(retrying)] == [run]


def test_a_failed_run_that_was_started_by_hand_holds_nothing(retrying):
    """Dagster marks it as one to start again, but cannot: it has no code location."""
    failed(retrying, by_hand=True)
    assert live_runs(retrying) == []


def test_a_failed_run_that_dagster_never_started_again_holds_nothing(retrying):
    failed(retrying, by_hand=False, ago=3600)
    assert live_runs(retrying) == []


@linux
def test_a_dead_run_that_was_started_by_hand_is_not_shown_as_one_to_be_started_again(retrying):
    run = noted(retrying, started(retrying), f"{socket.gethostname()}:1:1@x")
    assert bury_dead_runs(retrying) == [run]
    assert retrying.get_run_by_id(run).tags["dagster/will_retry"] == "false"


def test_what_a_run_keeps_among_temporary_files_is_marked_so_that_it_can_be_swept(
    tmp_path, monkeypatch
):
    """Dagster's own temporary files for its worker would stay after a killed run."""
    kept: list[str] = []

    def worker(*_) -> int:
        kept.extend(entry.name for entry in tmp_path.iterdir())
        return 0

    @dg.asset
    def stage(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        Subprocess().run_worker(context, "")
        monkeypatch.undo()
        return dg.MaterializeResult()

    monkeypatch.setattr(launchers, "run_guarded", worker)
    with dg.DagsterInstance.ephemeral() as ephemeral:
        assert dg.materialize([stage], instance=ephemeral).success
    assert kept and all(MARK in name for name in kept)


@pytest.mark.parametrize(
    ("stages", "begun"),
    [(["sensitivity_scores", "policy_document"], 1), (["policy_document", "leaderboard"], 0)],
)
def test_a_run_loads_pytorch_early_if_and_only_if_one_of_its_stages_needs_it(
    stages, begun, monkeypatch
):
    beginnings: list[dict[str, str]] = []
    monkeypatch.setattr(launchers, "can_fork", lambda: True)
    monkeypatch.setattr(launchers.ForkedWorkers, "begin", lambda _, env: beginnings.append(env))

    def asset(name: str) -> dg.AssetsDefinition:
        @dg.asset(name=name)
        def made(launcher: Subprocess) -> None:
            assert len(beginnings) == begun

        return made

    with dg.DagsterInstance.ephemeral() as ephemeral:
        all_assets = [asset(n) for n in ("policy_document", "sensitivity_scores", "leaderboard")]
        assert dg.materialize(
            all_assets,
            instance=ephemeral,
            selection=stages,
            resources={"launcher": Subprocess()},
        ).success
