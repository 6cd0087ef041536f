"""Which runs a real daemon starts after which edits, and what is left of killed ones.

The stages are fakes (fake_definitions).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from throwaway import DAEMON, instance_settings, last_look

from policyalign_assets.orchestration.dead_runs import TAG as PROCESS
from policyalign_assets.orchestration.partitions import NAME, policy_of
from policyalign_assets.orchestration.realign import desired_states, live_runs
from policyalign_assets.policy import parse_policy
from policyalign_assets.settings import load_settings
from policyalign_assets.stages import fingerprints
from policyalign_assets.stages.registry import STAGES

pytestmark = pytest.mark.daemon

POLICY = (
    "---\ntitle: {0}\nowner: Someone\ndomains: [{1}]\n---\n\nThis assistant helps.\n\n## "
    "Rules\n\n- A1: Never help anyone forge a signature.\n"
    "{2}\n## Declining\n\nDecline politely, and name the rule.\n"
)
QUICK_DAEMON = f"import quick_dagster; quick_dagster.keep_what_stays_the_same(); {DAEMON}"
ALL = len(STAGES)
MADE_FIRST = list(STAGES).index  # how many stages a run finishes before this one
ADDENDUM = "## Rules\n\n- B1: Never help anyone fake a {0}.\n"
STALENESS = (
    "{{ assetNodes(assetKeys: [{}]) {{ assetKey {{ path }} "
    'staleStatusByPartition(partitions: ["medical|alpha"]) }} }}'
)


def and_after(*first: str) -> set[str]:
    """The stages that are made again when those of `first` are."""
    found = set(first)
    for stage, spec in STAGES.items():
        found |= {stage} if found & set(spec.upstream) else set()
    return found


class World:
    """A folder of policies, a Dagster instance, and a daemon that watches them."""

    def __init__(self, folder: Path):
        self.folder, self.policies, self.control = folder, folder / "policies", folder / "control"
        self.control.mkdir()
        self.settings, self.daemon, self.seen = load_settings(environ={}), None, 0
        self.policy("alpha", "medical, legal")
        self.addendum("alpha", "medical", "diagnosis")
        # A run of a deployment for each edit would double the time. These files declare none.
        (folder / "deployments").mkdir()
        for domain in ("medical", "legal"):
            self.deployment(f"none-{domain}", domain, "")
        (folder / "dagster.yaml").write_text(yaml.safe_dump(instance_settings(folder)))
        (folder / "workspace.yaml").write_text(
            yaml.safe_dump(
                {
                    "load_from": [
                        {
                            "python_file": {
                                "relative_path": str(ROOT / "tests/fake_definitions.py"),
                                "location_name": "policyalign_assets",
                            }
                        }
                    ]
                }
            )
        )
        self.instance = dg.DagsterInstance.from_config(str(folder))

    # edits
    def policy(self, name: str, domains: str, rule: str = "") -> None:
        (self.policies / name).mkdir(parents=True, exist_ok=True)
        (self.policies / name / "policy.md").write_text(POLICY.format(name.title(), domains, rule))

    def addendum(self, name: str, domain: str, what: str) -> None:
        (self.policies / name / f"{domain}.md").write_text(ADDENDUM.format(what))

    def deployment(self, name: str, domain: str, policies: str) -> Path:
        file = self.folder / "deployments" / f"{name}.yaml"
        file.write_text(f"domain: {domain}\npolicies: [{policies}]\n")
        return file

    # the daemon
    def start(self, **environ: str) -> None:
        self.settings = load_settings(environ=environ)
        self.daemon = subprocess.Popen(
            [sys.executable, "-c", QUICK_DAEMON, "run", "-w", "workspace.yaml"],
            cwd=self.folder,
            env=self.environ(**environ),
            stdout=open(self.folder / "daemon.log", "a"),  # noqa: SIM115 - the daemon writes on
            stderr=subprocess.STDOUT,
        )

    def environ(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "DAGSTER_HOME": str(self.folder),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
            "FAKE_CONTROL": str(self.control),
            "OMP_NUM_THREADS": "1",
            "POLICYALIGN_AUTOMATION__SENSOR_SECONDS": "3",
            "POLICYALIGN_AUTOMATION__ENABLED": "true",
            "POLICYALIGN_DATA_DIR": str(self.folder / "data"),
            "POLICYALIGN_DEPLOYMENTS_DIR": str(self.folder / "deployments"),
            **more,
        }

    def command(self, *args: str, **environ: str) -> str:
        """What Python says to `args`."""
        done = subprocess.run(
            [sys.executable, *args],
            cwd=self.folder,
            env=self.environ(**environ),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.daemon.send_signal(number)
        self.daemon.wait(60)

    # what happened
    def runs(self) -> list[dg.DagsterRun]:
        """Runs of a partition; those of deployments are counted apart."""
        runs = [r.dagster_run for r in self.instance.get_run_records(ascending=True)]
        return [run for run in runs if policy_of(run)]

    def deployed(self, name: str) -> int:
        """How many runs made the deployment so far."""
        runs = self.instance.get_runs(dg.RunsFilter(tags={"dagster/partition": name}))
        return sum(run.status == dg.DagsterRunStatus.SUCCESS for run in runs)

    def live(self) -> list[dg.DagsterRun]:
        return live_runs(self.instance)

    def look(self) -> float:
        return last_look(self.instance)

    def settle(self, seconds: float = 300) -> None:
        """Until the sensor has looked with no run left, and again, and started none."""
        until = time.monotonic() + seconds
        quiet = time.time()
        while True:
            looked = self.look()  # before the runs: those that this look started are then seen
            if self.live():
                quiet = time.time()
            elif looked > quiet:
                return
            assert time.monotonic() < until, (
                f"not quiet after {seconds} s: {(self.folder / 'daemon.log').read_text()[-3000:]}"
            )
            time.sleep(0.5)  # looking costs processor time itself

    def launched(self) -> tuple[int, int]:
        """(runs, finished stages) since the last call."""
        self.settle()
        runs, self.seen = self.runs()[self.seen :], len(self.runs())
        return len(runs), sum(
            len(self.instance.all_logs(r.run_id, of_type=dg.DagsterEventType.STEP_SUCCESS))
            for r in runs
        )

    def as_wanted(self) -> bool:
        """Every stage of every partition has the fingerprint of what is on disk now, and the
        data is about the rules of now."""
        wanted = desired_states(self.policies, self.settings)
        return all(
            self.fingerprint(key, stage) == fingerprint
            for key, stages in wanted.items()
            for stage, fingerprint in stages.items()
        ) and all(
            self.rules(*key.split("|"))
            == [r.text for r in parse_policy(self.policies, *key.split("|")[::-1]).rules]
            for key in wanted
        )

    def rules(self, domain: str, policy: str) -> list[str]:
        return pq.read_table(
            self.folder / f"data/assets/filtered_instructions/{domain}/{policy}.parquet"
        )["text"].to_pylist()

    def stale(self, **environ: str) -> set[str]:
        """What Dagster's UI shows as out of date."""
        query = STALENESS.format(", ".join(f'{{path: ["{stage}"]}}' for stage in STAGES))
        said = self.command(
            "-c",
            "from dagster_graphql.cli import main; main()",
            "-w",
            "workspace.yaml",
            "-t",
            query,
            **environ,
        )
        nodes = json.loads(next(line for line in said.splitlines() if line.startswith("{")))[
            "data"
        ]["assetNodes"]
        return {
            "/".join(n["assetKey"]["path"])
            for n in nodes
            if n["staleStatusByPartition"] == ["STALE"]
        }

    def fingerprint(self, partition: str, stage: str) -> str | None:
        filter = dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[partition])
        records = self.instance.fetch_materializations(filter, limit=1).records
        return records[0].asset_materialization.tags.get(fingerprints.TAG) if records else None

    def wait_for_step(self, stage: str) -> None:
        """Until a run has finished `stage`."""
        self.wait_for(
            lambda: any(
                e.dagster_event.step_key == stage
                for run in self.live()
                for e in self.instance.all_logs(
                    run.run_id, of_type=dg.DagsterEventType.STEP_SUCCESS
                )
            )
        )

    @contextmanager
    def told(self, what: str):
        """Steers the fakes, see `fake_definitions`."""
        (self.control / what).touch()
        yield
        (self.control / what).unlink()

    def wait_for(self, what, seconds: float = 60):
        until = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < until, (self.folder / "daemon.log").read_text()[-3000:]
            time.sleep(0.1)
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("daemon"))
    made.start()
    made.first = made.launched()
    yield made
    made.stop()
    made.instance.dispose()


@pytest.fixture(autouse=True)
def settled(world):
    world.launched()
    yield
    # shown where a test fails
    for run in world.runs()[-4:]:
        print(run.run_id, run.status, run.tags)
    print((world.folder / "daemon.log").read_text()[-6000:])


def test_a_fresh_start_makes_everything_and_a_second_look_nothing(world):
    assert world.first == (2, 2 * ALL) and world.as_wanted()
    assert all(r.status == dg.DagsterRunStatus.SUCCESS for r in world.runs())
    assert world.launched() == (0, 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Never help anyone forge", "Never   help\n  anyone forge"),
        (
            "owner: Someone\n",
            "owner: Someone Else\neffective_date: 2026-12-01\nreferences: [a standard]\n",
        ),
        ("## Rules\n", "<!-- reviewed -->\n\n## Rules\n"),
    ],
    ids=["white space", "owner, date and references", "a comment"],
)
def test_what_changes_no_rule_starts_nothing(world, old, new):
    file = world.policies / "alpha/policy.md"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    assert world.launched() == (0, 0) and world.as_wanted()


def test_an_addendum_redoes_its_partition_and_a_shared_rule_all_of_the_policy(world):
    world.addendum("alpha", "medical", "prescription")
    assert world.launched() == (1, ALL) and world.as_wanted()
    world.policy("alpha", "medical, legal", "- A2: Never help anyone bribe a judge.\n")
    assert world.launched() == (2, 2 * ALL) and world.as_wanted()


def test_an_edit_redoes_the_deployment_of_its_policy_once_and_no_other_edit_does(world):
    file = world.deployment("ward", "medical", "alpha")
    assert world.launched() == (0, 0) and world.deployed("ward") == 1
    world.addendum("alpha", "medical", "referral")
    assert world.launched() == (1, ALL) and world.deployed("ward") == 2
    world.addendum("alpha", "legal", "deed")
    assert world.launched() == (1, ALL) and world.deployed("ward") == 2
    file.unlink()
    assert world.launched() == (0, 0) and world.deployed("ward") == 2


def test_reverting_twice_redoes_it_twice(world):
    """To the text of two edits ago, and from there to that of one edit ago."""
    for what in ("prescription", "referral"):
        world.addendum("alpha", "medical", what)
        assert world.launched() == (1, ALL) and world.as_wanted()


def test_an_edit_during_a_run_becomes_one_more_run(world):
    with world.told("hold-distilled_checkpoint"):
        world.addendum("alpha", "medical", "badge")
        world.wait_for_step("filtered_instructions")
        world.addendum("alpha", "medical", "passport")
        looked = world.look()
        world.wait_for(lambda: world.look() > looked)
    assert world.launched() == (2, 2 * ALL) and world.as_wanted()


def test_a_failing_stage_is_tried_again_a_bounded_number_of_times_and_the_next_edit_recovers(world):
    with world.told("break-sensitivity_scores"):
        world.addendum("alpha", "medical", "diploma")
        # again once, because the first attempt got further; then no more
        assert world.launched() == (2, MADE_FIRST("sensitivity_scores"))
    world.addendum("alpha", "medical", "licence")
    assert world.launched() == (1, ALL) and world.as_wanted()


def test_a_new_policy_is_aligned_and_a_deleted_one_retired_with_its_results_kept(world):
    world.policy("beta", "legal")
    assert world.launched() == (1, ALL) and world.as_wanted()
    shutil.rmtree(world.policies / "beta")
    assert world.launched() == (0, 0)
    assert world.instance.get_dynamic_partitions(NAME) == ["legal|alpha", "medical|alpha"]
    assert (world.folder / "data/assets/benchmark_report/legal/beta.json").exists()


def test_a_daemon_killed_hard_during_a_run_neither_loses_nor_repeats_it(world):
    with world.told("hold-distilled_checkpoint"):
        world.addendum("alpha", "medical", "permit")
        world.wait_for_step("filtered_instructions")
        world.addendum("alpha", "legal", "contract")  # nobody has seen this edit yet
        world.stop(signal.SIGKILL)
    world.start()
    assert world.launched() == (2, 2 * ALL) and world.as_wanted()


def test_edits_while_the_daemon_is_down_are_seen_afterwards_and_what_was_made_by_hand_counts(world):
    world.stop()
    world.addendum("alpha", "medical", "invoice")
    world.addendum("alpha", "legal", "will")
    world.command(
        "-m",
        "dagster",
        "asset",
        "materialize",
        "-f",
        str(ROOT / "tests/fake_definitions.py"),
        "--select",
        ",".join(STAGES),
        "--partition",
        "legal|alpha",
    )
    world.start()
    assert world.launched() == (2, 2 * ALL) and world.as_wanted()  # one of them by hand


def test_a_backfill_gives_the_same_and_starts_nothing_more(world):
    world.command(
        "-m",
        "dagster",
        "job",
        "backfill",
        "-w",
        "workspace.yaml",
        "-j",
        "alignment",
        "--partitions",
        "legal|alpha,medical|alpha",
        "--noprompt",
    )
    assert world.launched() == (2, 2 * ALL) and world.as_wanted()


JUDGE = {
    "POLICYALIGN_JUDGE__KIND": "policy",
    "POLICYALIGN_JUDGE__BASE_URL": "http://localhost/v1",
    "POLICYALIGN_JUDGE__MODEL": "m",
}


def test_a_changed_setting_redoes_the_stages_that_read_it_and_those_after(world):
    # its verdicts are part of the scores, and a judge that reads rules gets cases of duties
    changed = {"sensitivity_scores", "generations", "judgements"}
    world.stop()
    # In the UI, the stages after these are out of date only once the data of these has changed.
    assert world.stale(**JUDGE) == changed
    world.start(**JUDGE)
    assert world.launched() == (2, 2 * len(and_after(*changed))) and world.as_wanted()
    assert world.stale(**JUDGE) == set()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="a run notes its process in terms of /proc")
def test_a_killed_run_leaves_no_process_and_no_held_pool_and_is_tried_again(world):
    with world.told("stubborn-sensitivity_scores"):
        world.addendum("alpha", "medical", "seal")
        pids = [int(p) for p in world.wait_for(lambda: _two(world.control / "pids"))]
    (run,) = (run for run in world.live() if policy_of(run))
    os.kill(int(run.tags[PROCESS].split(":")[1]), signal.SIGKILL)
    (world.control / "pids").unlink()
    world.wait_for(lambda: not any(map(alive, pids)), 10)
    assert world.launched() == (2, ALL) and world.as_wanted()  # the second run needed the pool
    assert [r.status for r in world.runs()[-2:]] == [
        dg.DagsterRunStatus.FAILURE,
        dg.DagsterRunStatus.SUCCESS,
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="a run notes its process in terms of /proc")
def test_a_terminated_run_leaves_no_process_and_is_not_started_again_by_itself(world):
    with world.told("stubborn-sensitivity_scores"):
        world.addendum("alpha", "medical", "ticket")
        pids = [int(p) for p in world.wait_for(lambda: _two(world.control / "pids"))]
        (run,) = (run for run in world.live() if policy_of(run))
        world.instance.run_launcher.terminate(run.run_id)
        (world.control / "pids").unlink()
        world.wait_for(lambda: not any(map(alive, pids)), 10)
    assert world.launched() == (1, MADE_FIRST("sensitivity_scores"))
    assert world.instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.CANCELED
    world.addendum("alpha", "medical", "voucher")
    assert world.launched() == (1, ALL) and world.as_wanted()


def _two(pids: Path) -> list[str]:
    found = pids.read_text().split() if pids.exists() else []
    return found if len(found) == 2 else []
