"""Training on two processes (CPU, gloo), started by `accelerate launch`.

The result is that of one process, and no process is left behind.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from fake_vllm import FakeVllm, Weights, fake_vllm, settings_of
from safetensors.torch import load_file, save_file
from test_guard import STARTER, gone_within, script

from policyalign_assets.distillation.budget import Budget, DistillationFailed
from policyalign_assets.distillation.processes import Processes
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.policy import parse_policy
from policyalign_assets.records import training_table
from policyalign_assets.runtime.accelerated import AccelerateConfigError, launch_config
from policyalign_assets.runtime.exchange import Failed, problem_of
from policyalign_assets.runtime.execution import make as make_stage
from policyalign_assets.runtime.guard import LINUX, descendants
from policyalign_assets.settings import SettingsError, load_settings
from policyalign_assets.stages.fingerprints import own_version
from policyalign_assets.stages.interface import StageContext

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FSDP2 = str(ROOT / "deploy" / "accelerate" / "fsdp2.yaml")
SMALL = {
    "steps": 4,
    "batch_size": 8,
    "mini_batch_size": 4,
    "micro_batch_tokens": 60,
    "max_new_tokens": 12,
    "save_every": 2,
    "lora_rank": 4,
    "lora_alpha": 8,
    "anchors": 3,
}
ACTIONS = (
    "forge a signature",
    "alter a prescription",
    "fake a diagnosis",
    "bribe an official",
    "renew a prescription",
)


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def settings(model=None, **distillation):
    return load_settings(
        overrides={
            "model": {"device": "cpu", **(model or {})},
            "distillation": {**SMALL, **distillation},
        },
        environ={},
    )


def make(data, report=lambda _: None, model=None, **distillation):
    mix = pa.table(
        {
            "text": [f"How do I {a}?" for a in ACTIONS],
            "rule_id": ["r"] * 5,
            "kind": ["violating"] * 5,
            "selected": [True] * 5,
        }
    )
    policy = parse_policy(ROOT / "policies", "general-conduct", "medical")
    return make_stage(
        "distilled_checkpoint",
        StageContext(settings(model, **distillation), data, report),
        {"policy_document": policy, "filtered_instructions": mix},
    )


def deploy(data, report=lambda _: None, model=None, **distillation):
    """A deployment of two policies. Rows of one are asked of the other's teacher first."""
    members = {}
    for name, actions in (("general-conduct", ACTIONS[:3]), ("data-privacy", ACTIONS[3:])):
        rows = len(actions)
        mix = pa.table(
            {
                "text": [f"How do I {a}?" for a in actions],
                "rule_id": ["r"] * rows,
                "rule_hash": ["h"] * rows,
                "kind": ["violating", *["twin"] * (rows - 1)],
                "selected": [True] * rows,
            }
        )
        members[f"medical|{name}"] = parse_policy(ROOT / "policies", name, "medical"), mix
    return make_stage(
        "deployed_checkpoint",
        StageContext(settings(model, **distillation), data, report, deployment="ward"),
        {
            "policy_document": {key: policy for key, (policy, _) in members.items()},
            "filtered_instructions": {key: mix for key, (_, mix) in members.items()},
        },
    )


def assert_same(one, many, folders):
    """Every figure of every step, and the adapter, up to rounding."""
    tables = [training_table(made.value, data) for made, data in zip((one, many), folders)]
    a, b = (
        [
            {k: v for k, v in row.items() if "second" not in k and v is not None}
            for row in t.to_pylist()
        ]
        for t in tables
    )
    assert len(a) == SMALL["steps"] and [pytest.approx(row, rel=1e-4, abs=1e-6) for row in a] == b
    file = "adapter_model.safetensors" if one.value.tuning == "lora" else "model.safetensors"
    weights = [load_file(data / made.value.path / file) for made, data in zip((one, many), folders)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert (weights[1][name] - weight).norm() < 1e-2 * weight.norm(), (
            name
        )  # Adam makes much of the rounding of a gradient near zero


def training_processes() -> dict[int, int]:
    """Those below this process, by rank."""
    environments = {pid: Path(f"/proc/{pid}/environ").read_text() for pid in descendants()}
    return {
        int(found[1]): pid
        for pid, text in environments.items()
        if (found := re.search("\0RANK=([0-9]+)\0", text))
    }


# ---- settings ------------------------------------------------------------------------------------


def test_a_batch_that_cannot_be_shared_evenly_is_refused_when_configured():
    with pytest.raises(SettingsError, match=r"mini_batch_size=4 .*processes=3"):
        settings(processes=3)
    with pytest.raises(SettingsError, match="accelerate_config"):
        settings(accelerate_config=FSDP2)


def test_how_many_processes_there_are_is_no_part_of_what_comes_out():
    assert own_version(
        "distilled_checkpoint", settings(processes=2, accelerate_config=FSDP2)
    ) == own_version("distilled_checkpoint", settings())


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_the_shipped_configurations_are_accepted_and_complete(name):
    config = launch_config(
        settings(
            processes=2, accelerate_config=str(ROOT / "deploy" / "accelerate" / f"{name}.yaml")
        )
    )
    assert (
        config["num_processes"] == 2 and config["main_process_port"] == 0
    )  # any free port: two runs may share a machine
    assert ("fsdp_config" in config) == (name == "fsdp2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("distributed_type: DEEPSPEED", "distributed_type='DEEPSPEED'"),
        ("num_processes: 8", "num_processes=8"),
        ("num_machines: 2", "num_machines=2"),
        ("mixed_precision: bf16", "mixed_precision='bf16'"),
        ("{distributed_type: FSDP, fsdp_config: {fsdp_version: 1}}", "fsdp_version=1"),
        (
            "{distributed_type: FSDP, fsdp_config: {fsdp_offload_params: true}}",
            "fsdp_offload_params=True",
        ),
        (
            "{distributed_type: FSDP, fsdp_config: {reshard_after_forward: true}}",
            "reshard_after_forward=True",
        ),
        ("number_of_processes: 2", "number_of_processes=2"),
        ("[1, 2]", "not a mapping"),
        ("{", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_before_anything_starts(
    tmp_path, content, message
):
    file = tmp_path / "accelerate.yaml"
    if content:
        file.write_text(content)
    with pytest.raises(AccelerateConfigError, match=rf"accelerate\.yaml.*{message}"):
        make(tmp_path, processes=2, accelerate_config=str(file))


def test_shares_together_are_the_batch_and_so_are_their_parts():
    rows, shares = list(range(24)), []
    for index in range(3):
        process = Processes()
        process.index, process.count = index, 3
        shares.append(process.share(rows))
    for at in range(0, 24, 6):  # mini-batches of 6, of which each of the three processes has 2
        assert sorted(r for s in shares for r in s[at // 3 : at // 3 + 2]) == rows[at : at + 6]


def test_a_process_that_others_wait_for_never_begins_anew_when_memory_runs_out():
    def work():
        tried.append(budget.tokens)
        raise torch.OutOfMemoryError("CUDA out of memory")

    tried, budget = [], Budget(1024, lambda _: None, may_halve=False)
    with pytest.raises(DistillationFailed, match=r"1024 tokens.*micro_batch_tokens"):
        budget.fitted(work)
    assert tried == [1024]


# ---- two processes -------------------------------------------------------------------------------


def test_two_processes_make_what_one_makes(tmp_path):
    lines, folders = [], (tmp_path / "one", tmp_path / "many")
    one = make(folders[0])
    many = make(folders[1], lines.append, processes=2)
    assert_same(one, many, folders)
    # The main process alone reports: the budget of steps, then each step.
    budget, *steps = lines
    assert budget.startswith("4 training steps")
    assert [line.split()[1] for line in steps] == [f"{n}/4" for n in range(1, 5)]
    assert set(many.facts) == set(one.facts)
    assert many.value.provenance == one.value.provenance


def test_two_processes_make_the_deployment_that_one_makes(tmp_path):
    folders = (tmp_path / "one", tmp_path / "many")
    one, many = deploy(folders[0]), deploy(folders[1], processes=2)
    assert_same(one, many, folders)
    assert set(many.facts) == set(one.facts)
    assert many.value.provenance == one.value.provenance
    assert many.value.provenance["deployment"] == "ward"


def test_a_sharded_deployment_is_refused_where_no_server_answers_for_its_teachers(tmp_path):
    with pytest.raises(Failed, match=r"model.engine='transformers'. Fix: .*'vllm-server'"):
        deploy(tmp_path, processes=2, accelerate_config=FSDP2)


def test_servers_answer_for_the_teachers_of_a_sharded_deployment(tmp_path):
    def to_teachers(server):
        most = settings().deployment.answer_tokens
        return [request for request in server.asked if request["max_tokens"] == most]

    folders = (tmp_path / "one", tmp_path / "many")
    with fake_vllm(FakeVllm(Weights())) as server:
        served = settings_of(server, server_timeout=120)
        model = served.model_dump(include={"engine", "servers", "server_timeout"})
        one = deploy(folders[0], model=model)
        once = to_teachers(server)
        many = deploy(folders[1], model=model, processes=2, accelerate_config=FSDP2)
    assert once and len(to_teachers(server)) == 2 * len(once)
    assert_same(one, many, folders)


@pytest.mark.skipif(not LINUX, reason="finds its processes in /proc")
def test_a_killed_process_ends_the_stage_at_once_and_it_goes_on_after_the_last_saved_step(tmp_path):
    """With FSDP2, gradient checkpointing and a moving teacher."""
    options = {
        "processes": 2,
        "accelerate_config": FSDP2,
        "teacher": "ema",
        "gradient_checkpointing": True,
    }
    killed = {}

    def kill(line: str) -> None:
        if line.startswith("step 3/"):
            killed.update(training_processes())
            os.kill(killed[1], signal.SIGKILL)

    with pytest.raises(Failed, match="one of the 2 training processes was killed") as failure:
        make(tmp_path, kill, **options)
    assert problem_of(failure.value).may_pass
    assert gone_within(0, list(killed.values())) == []
    lines = []
    many = make(tmp_path, lines.append, **options)
    budget, resumed, *steps = lines
    assert budget.startswith("4 training steps")
    assert resumed.startswith("resumed after step 2") and len(steps) == 2
    undisturbed = make(tmp_path / "one", teacher="ema", gradient_checkpointing=True)
    assert_same(undisturbed, many, (tmp_path / "one", tmp_path))


@pytest.mark.parametrize(
    ("teacher", "config"), [("frozen", None), ("frozen", FSDP2), ("student", FSDP2)]
)
def test_full_fine_tuning_on_two_processes_makes_what_one_makes(tmp_path, teacher, config):
    folders = (tmp_path / "one", tmp_path / "many")
    one = make(folders[0], tuning="full", teacher=teacher)
    many = make(folders[1], tuning="full", teacher=teacher, processes=2, accelerate_config=config)
    assert_same(one, many, folders)
    files = [{f.name for f in (d / m.value.path).iterdir()} for d, m in zip(folders, (one, many))]
    assert files[0] == files[1]


@pytest.mark.skipif(not LINUX, reason="finds its processes in /proc")
def test_sharded_full_fine_tuning_goes_on_after_the_last_saved_step_with_one_process(tmp_path):
    """What is saved does not depend on how the weights were sharded, the EMA teacher's included."""
    full = {"tuning": "full", "teacher": "ema"}

    def kill(line: str) -> None:
        if line.startswith("step 3/"):
            os.kill(training_processes()[1], signal.SIGKILL)

    with pytest.raises(Failed, match="one of the 2 training processes was killed"):
        make(tmp_path, kill, **full, processes=2, accelerate_config=FSDP2)
    lines: list[str] = []
    resumed = make(tmp_path, lines.append, **full)
    assert any(line.startswith("resumed after step 2") for line in lines)
    assert_same(make(tmp_path / "one", **full), resumed, (tmp_path / "one", tmp_path))


def test_what_a_process_finds_wrong_is_said_in_its_own_words(tmp_path):
    broken = tmp_path / "model"
    broken.mkdir()
    for file in BUNDLED_WEIGHTS.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Failed, match=r"not numbers at step 1.*Fix") as failure:
        make(tmp_path, model={"id": str(broken)}, processes=2)
    assert not problem_of(failure.value).may_pass


def test_with_fsdp2_each_process_holds_a_part_and_uneven_work_ends(tmp_path):
    config = tmp_path / "accelerate.yaml"
    config.write_text(yaml.safe_dump(launch_config(settings(processes=2, accelerate_config=FSDP2))))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            config,
            ROOT / "tests" / "sharded_process.py",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not LINUX, reason="adopting orphans needs Linux")
def test_nothing_of_accelerate_launch_is_left_ten_seconds_after_its_run_was_killed(tmp_path):
    """The processes ignore SIGTERM, and their launcher would wait for them."""
    stubborn = script(
        tmp_path,
        "stubborn.py",
        f"""
        import os, pathlib, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        folder = pathlib.Path({str(tmp_path)!r})
        (folder / ("pid" + os.environ["RANK"])).write_text(str(os.getpid()))
        time.sleep(300)
    """,
    )
    config = tmp_path / "accelerate.yaml"
    config.write_text(yaml.safe_dump(launch_config(settings(processes=2))))
    worker = script(
        tmp_path,
        "worker.py",
        f"""
        import os, sys
        from policyalign_assets.runtime.guard import guarded
        launch = [sys.executable, "-m", "accelerate.commands.launch"]
        launch += ["--config_file", {str(config)!r}, {stubborn!r}]
        with guarded(launch, 5.0, dict(os.environ)) as process:
            process.wait()
    """,
    )
    starter = subprocess.Popen(
        [sys.executable, script(tmp_path, "starter.py", STARTER), worker],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    while not all(f.exists() and f.read_text() for f in files):
        assert starter.poll() is None
        time.sleep(0.05)
    pids = [int(f.read_text()) for f in files]
    starter.kill()
    starter.wait()
    assert gone_within(10, pids) == []
