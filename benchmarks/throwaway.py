"""A throwaway project: the real stages on the bundled model with few rows and few steps.

`kills.py` and `soak.py` run it by hand and by the daemon, kill parts of it, and look at what is
left. It has its own folder, Dagster instance and folder of temporary files. All its processes carry
a mark in their environment, so none is overlooked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from policyalign_assets.files import MARK
from policyalign_assets.orchestration.dead_runs import TAG as PROCESS
from policyalign_assets.orchestration.deployments import desired_deployments, parents_of_deployments
from policyalign_assets.orchestration.found_policies import find_policies
from policyalign_assets.orchestration.realign import desired_states, live_runs
from policyalign_assets.settings import load_settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.registry import DEPLOYMENT_STAGES, STAGES
from scripts.table_digests import digests

ROOT = Path(__file__).parents[1]
PARTITION, DEPLOYMENT = "medical|clinic", "medical"  # the deployment of all policies of a domain
POLICY = """---
title: Clinic
owner: Safety office
domains: [medical]
---

This assistant gives honest and useful help.

## Rules

- C1: Never help anyone {0}.
- C2: Never help anyone forge a signature.

## Declining

Decline in a calm and polite way, and name the rule that applies.
"""
WORDING = "fake a test result"
# stage -> the partition that it is made for
PARTITIONS = dict.fromkeys(STAGES, PARTITION) | dict.fromkeys(DEPLOYMENT_STAGES, DEPLOYMENT)
TINY = {
    "SYNTHESIS__PER_RULE": "4",
    "SYNTHESIS__ATTRIBUTION": "off",
    "SYNTHESIS__TEACHER_CHECK": "false",
    "SYNTHESIS__MAX_NEW_TOKENS": "24",
    "SENSITIVITY__MAX_NEW_TOKENS": "24",
    "DISTILLATION__MAX_NEW_TOKENS": "8",
    "EVALUATION__MAX_NEW_TOKENS": "8",
    "SYNTHESIS__ROUNDS": "2",
    "FILTERING__PER_RULE": "3",
    "FILTERING__TWINS_LOW": "0",
    "DISTILLATION__STEPS": "4",
    "DISTILLATION__STEPS_FOR_RULES": "1000",
    "DISTILLATION__SAVE_EVERY": "1",
    "DISTILLATION__BATCH_SIZE": "8",
    "DISTILLATION__MINI_BATCH_SIZE": "8",
    "EVALUATION__CASES_PER_SUITE": "6",
    "EVALUATION__CASES_PER_RULE": "2",
    "EVALUATION__BENIGN_CASES": "6",
    "EVALUATION__CAPABILITY_CASES": "4",
    "EVALUATION__PROBE_CASES": "1",
    "EVALUATION__PRESSURE_CASES": "1",
    "MODEL__DEVICE": "cpu",
    "AUTOMATION__ENABLED": "true",
    "AUTOMATION__SENSOR_SECONDS": "5",
}
# The real daemon. Its pause between two rounds, fixed at 5 seconds, is shorter, and it does not
# start its code server anew each minute.
DAEMON = (
    "import dagster._daemon.sensor as s; s.MIN_INTERVAL_LOOP_TIME = 1; "
    "import dagster._daemon.controller as c; c.RELOAD_WORKSPACE_INTERVAL = 3600; "
    "from dagster._daemon.cli import main; main()"
)


WORKER = "policyalign_assets.runtime.worker"
FORKS = "policyalign_assets.runtime.forked_workers"


class Hangs(RuntimeError):
    """Something did not happen in time."""


class Project:
    """A folder of policies with a Dagster instance, and perhaps a daemon that watches them."""

    def __init__(self, folder: Path, like: Path | None = None, instant: bool = False):
        """A new project in `folder`, or one that goes on from a snapshot (see `keep`).

        With `instant`, the stages that load a model make small results at once, as in the tests of
        the daemon.
        """
        self.instant = instant
        self.folder, self.data = folder, folder / "data"
        self.policies, self.temporary = folder / "policies", folder / "tmp"
        self.mark = uuid.uuid4().hex
        self.daemon: subprocess.Popen[bytes] | None = None
        if like is not None:
            shutil.copytree(like, folder)
        self.temporary.mkdir(parents=True)
        self.settings = load_settings(environ=dict(self.variables()))
        self.edit(WORDING)
        (folder / "dagster.yaml").write_text(yaml.safe_dump(instance_settings(folder)))
        (folder / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [self._code()]}))
        self.instance = dg.DagsterInstance.from_config(str(folder))

    def _code(self) -> dict[str, object]:
        """The code location that the daemon loads."""
        if self.instant:
            file = str(ROOT / "tests/fake_definitions.py")
            return {"python_file": {"relative_path": file, "location_name": "policyalign_assets"}}
        module = "policyalign_assets.definitions"
        return {"python_module": {"module_name": module, "location_name": "policyalign_assets"}}

    def variables(self) -> Iterator[tuple[str, str]]:
        for name, value in TINY.items():
            yield f"POLICYALIGN_{name}", value
        yield "POLICYALIGN_POLICIES_DIR", str(self.policies)
        yield "POLICYALIGN_DATA_DIR", str(self.data)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("POLICYALIGN_")},
            **dict(self.variables()),
            "DAGSTER_HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
            "PYTHONWARNINGS": "ignore",
            "FAKE_CONTROL": str(self.temporary),
            "THROWAWAY_PROJECT": self.mark,
            "TMPDIR": str(self.temporary),
        }

    def keep(self, folder: Path) -> None:
        """Copies the results and the history. No run may be live."""
        folder.mkdir()
        for name in ("data", "dagster", "policies"):
            if (self.folder / name).exists():
                shutil.copytree(self.folder / name, folder / name)

    def edit(self, wording: str) -> None:
        """Writes the policy, whose first rule is "Never help anyone <wording>"."""
        file = self.policies / "clinic/policy.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(POLICY.format(wording))

    # ---- runs ------------------------------------------------------------------------------------

    def by_hand(self, *assets: str) -> subprocess.Popen[bytes]:
        """Starts a run by hand that makes `assets`: stages of one partition, or assets of none."""
        definitions = ["-m", "policyalign_assets.definitions", "--select", ",".join(assets)]
        partition = PARTITIONS.get(assets[0])
        with open(self.folder / "by_hand.log", "a") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "dagster", "asset", "materialize", *definitions),
                    *(("--partition", partition) if partition else ()),
                ],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def start_daemon(self) -> None:
        with open(self.folder / "daemon.log", "a") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-c", DAEMON, "run", "-w", "workspace.yaml"],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop_daemon(self, number: int = signal.SIGTERM) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(number)
            self.daemon.wait(60)
            self.daemon = None

    def runs(self) -> list[dg.DagsterRun]:
        """Unfinished runs of the partition or its deployment."""
        ours = (PARTITION, DEPLOYMENT)
        return [r for r in self.live() if r.tags.get("dagster/partition") in ours]

    def live(self) -> list[dg.DagsterRun]:
        """All unfinished runs, with those of the leaderboard."""
        return live_runs(self.instance)

    def step(self) -> str | None:
        """The stage that is being made."""
        for run in self.runs():
            running = None
            for entry in self.instance.all_logs(run.run_id):
                event = entry.dagster_event
                if event is None or event.step_key is None:
                    continue
                if event.event_type == dg.DagsterEventType.STEP_START:
                    running = event.step_key
                elif event.is_step_success or event.is_step_failure:
                    running = None
            if running:
                return running
        return None

    def seconds(self, stage: str) -> float:
        """How long the stage took when it was last made."""
        step = dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[PARTITIONS[stage]])
        made = self.instance.fetch_materializations(step, limit=1).records[0].asset_materialization
        assert made is not None
        return float(str(made.metadata["seconds"].value))

    def as_wanted(self, deployed: bool = True) -> bool:
        """Whether every stage was made from the policy and settings of now.

        deployed: the stages of the deployment, too.
        """
        wanted = dict(desired_states(self.policies, self.settings).get(PARTITION, {}))
        if deployed:
            found = find_policies(self.policies, lambda _: None)
            parents = parents_of_deployments(self.instance)
            by_name = desired_deployments(found, self.settings, lambda _: None, parents)
            wanted |= by_name[DEPLOYMENT][1]
        return bool(wanted) and all(
            self._fingerprint(stage) == value for stage, value in wanted.items()
        )

    def _fingerprint(self, stage: str) -> str | None:
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[PARTITIONS[stage]]), limit=1
        ).records
        made = records[0].asset_materialization if records else None
        return (made.tags or {}).get(fingerprints.TAG) if made else None

    def settle(self, seconds: float) -> None:
        """Waits until the daemon has looked twice with no run left. Raises Hangs."""
        end, quiet = time.monotonic() + seconds, time.time()
        while True:
            # before the runs: those that this look started are then seen
            looked = last_look(self.instance)
            if self.live():
                quiet = time.time()
            elif looked > quiet:
                return
            if time.monotonic() > end:
                raise Hangs(f"not settled within {seconds:.0f} s")
            time.sleep(1)

    def wait(self, until: Callable[[], object], seconds: float, what: str) -> None:
        """Raises Hangs if `until` is not true in time."""
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                raise Hangs(f"{what}: not within {seconds:.0f} s")
            time.sleep(1)  # looking costs processor time itself

    # ---- processes -------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """{process id: command} of every living process of this project."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"THROWAWAY_PROJECT={self.mark}".encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(folder.name)] = command.decode(errors="replace").strip()
        return found

    def find(self, target: str) -> int | None:
        """The process id of a live "worker", "guard", "run" or "daemon"."""
        if target == "daemon":
            return self.daemon.pid if self.daemon else None
        if target == "run":
            noted = [run.tags[PROCESS] for run in self.runs() if PROCESS in run.tags]
            return int(noted[0].split(":")[1]) if noted else None
        found = self.processes()
        guards = {pid for pid, command in found.items() if "runtime/guard.py" in command}
        if target == "guard":
            return min(guards, default=None)
        # forks of one process, which is no worker itself, or processes of their own
        forks = {pid for pid, command in found.items() if FORKS in command} - guards
        workers = {pid for pid, command in found.items() if WORKER in command} - guards
        workers |= {pid for pid in forks if _parent(pid) in forks}
        return min(workers, default=None)

    def memory(self) -> float:
        """MiB of main memory that the living processes hold together (RSS)."""
        pages = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def disk(self) -> dict[str, float]:
        """MiB of each folder of results, and of Dagster's history and logs."""
        folders = [*(p for p in self.data.iterdir() if p.is_dir()), self.folder / "dagster"]
        return {p.name: _size(p) for p in sorted(folders)}

    # ---- what is left ----------------------------------------------------------------------------

    def results(self) -> list[str]:
        """A digest of each table, and the ids of checkpoints."""
        return digests(self.data)

    def leftovers(self) -> list[str]:
        """What a run should not leave: processes, unfinished files and runs, held pool slots."""
        left = [f"process {pid}: {command[:120]}" for pid, command in self.processes().items()]
        for top in (self.data, self.temporary):
            left += [f"file {p.relative_to(self.folder)}" for p in top.rglob(f"*{MARK}*")]
        left += [f"file {p.relative_to(self.folder)}" for p in self.data.glob("unfinished/*/*")]
        # PyTorch keeps a folder of its own there, and Dagster the sockets of its code servers.
        left += [
            f"temporary file {p.name}"
            for p in self.temporary.iterdir()
            if MARK not in p.name and not p.name.startswith("torchinductor_") and not p.is_socket()
        ]
        left += [f"run {run.run_id} is {run.status.value}" for run in self.runs()]
        slots = self.instance.event_log_storage.get_concurrency_info("gpu").claimed_slots
        return left + [f"pool slot of {slot.run_id}" for slot in slots]

    def close(self) -> None:
        """Ends everything of this project that still lives."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop_daemon()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.instance.dispose()


def instance_settings(folder: Path) -> dict[str, Any]:
    """Those of the repository, with all results below `folder`, and with shorter pauses."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    config["storage"]["sqlite"]["base_dir"] = str(folder / "dagster/storage")
    for part, where in (("local_artifact_storage", "dagster"), ("compute_logs", "logs")):
        config[part]["config"]["base_dir"] = str(folder / where)
    config["run_monitoring"] |= {
        "poll_interval_seconds": 2,
        "free_slots_after_run_end_seconds": 1,
    }
    config["run_coordinator"] = {
        "module": "dagster.core.run_coordinator",
        "class": "QueuedRunCoordinator",
        "config": {"dequeue_interval_seconds": 1},
    }
    return config


def last_look(instance: dg.DagsterInstance) -> float:
    """When the sensors of policies and of deployments had both begun a tick that has ended.

    Seconds since 1970, or 0 if one of them has ended none yet.
    """
    looks = []
    for state in instance.all_instigator_state():
        if state.instigator_name in ("policy_changes", "deployment_changes"):
            origin, selector = state.instigator_origin_id, state.selector_id
            ticks = instance.get_ticks(origin, selector, limit=2)
            ended = (t.timestamp for t in ticks if t.tick_data.end_timestamp)
            looks.append(max(ended, default=0.0))
    return min(looks) if len(looks) == 2 else 0.0


def _size(folder: Path) -> float:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total / 2**20


def _parent(pid: int) -> int:
    """The id of the parent of `pid`, or 0 if `pid` has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
