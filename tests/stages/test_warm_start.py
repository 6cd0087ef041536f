"""Training after an edit: from the last released adapter where that is possible and enough."""

import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import ROOT, medical_policy
from safetensors.torch import load_file

from policyalign_assets.policy import parse_policy
from policyalign_assets.records import parent_of
from policyalign_assets.settings import load_settings
from policyalign_assets.stages import deployed_checkpoint, fingerprints
from policyalign_assets.stages.distilled_checkpoint import make
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.stages.parents import REQUESTS_FOLDER, started_from
from policyalign_assets.tables import FILTERED

pytestmark = pytest.mark.slow

BEFORE = medical_policy()
RULES = {rule.rule_id: rule for rule in BEFORE.rules}
QUICK = {"steps": 2, "batch_size": 4, "mini_batch_size": 4, "max_new_tokens": 24, "anchors": 4}
WARM = {"enabled": True, "round_steps": 1, "rounds": 1, "probe_rows": 1}


def edited(action: str):
    """The policy with one rule more."""
    new = replace(RULES["M2"], rule_id="M9", text=f"Never help anyone {action}.", action=action)
    return replace(BEFORE, rules=(*BEFORE.rules, new))


def rows(policy, kind, rules=("C1", "M9")):
    """Five requests of each rule, so that one of them is held back."""
    verb = {"violating": "", "twin": "learn about how others do not "}[kind]
    return pa.Table.from_pylist(
        [
            {
                "rule_id": rule.rule_id,
                "kind": kind,
                "text": f"{opening} {verb}{rule.action}?",
                "selected": True,
            }
            for rule in policy.rules
            if rule.rule_id in rules
            for opening in ("How do I", "How can I", "Show me how to", "Help me", "Tell me how to")
        ],
        FILTERED,
    )


def trained(data, policy, table, warm=None, distillation=QUICK, log=None):
    overrides = {"distillation": distillation, "warm_start": warm or {}}
    context = StageContext(
        load_settings(overrides=overrides, environ={}), data, ([] if log is None else log).append
    )
    return make(context, policy, table)


def release(data, policy, checkpoint, releasable=True):
    """The report on a checkpoint, released or not."""
    partition = data / "reports" / policy.policy_id / policy.domain
    (partition / "r1").mkdir(parents=True, exist_ok=True)
    report = {
        "header": {
            "checkpoint_id": checkpoint.checkpoint_id,
            "policy_hash": policy.content_hash,
            "lineage": checkpoint.provenance["lineage"],
        },
        "verdict": {"releasable": releasable, "line": ""},
    }
    (partition / "r1" / "report.json").write_text(json.dumps(report))
    (partition / "current.json").write_text(json.dumps({"report": "r1"}))
    if releasable:
        (partition / "release.json").write_text(json.dumps({"report": "r1"}))


@pytest.fixture()
def released(tmp_path):
    """The data folder of a released checkpoint, and the checkpoint."""
    checkpoint = trained(tmp_path, BEFORE, rows(BEFORE, "twin")).value
    release(tmp_path, BEFORE, checkpoint)
    return tmp_path, checkpoint


def test_a_training_whose_report_is_missing_is_found_and_not_done_again(tmp_path):
    """`policyalign align` makes all stages anew where it was stopped before the report."""
    table, log = rows(BEFORE, "twin"), []
    made = trained(tmp_path, BEFORE, table).value
    assert trained(tmp_path, BEFORE, table, log=log).value == made
    assert "resumed after step 2 from its saved state" in log
    assert not [line for line in log if line.startswith("step ")]
    assert list((tmp_path / "unfinished" / "distilled_checkpoint").iterdir())


def test_an_edit_goes_on_from_the_last_release_and_names_it(released):
    data, parent = released
    now, log = edited("fake a test result"), []
    # Benign requests: base, teacher and student answer them, so the first look is enough.
    table = rows(now, "twin")
    made = trained(data, now, table, WARM, log=log).value
    assert parent_of(made) == parent.checkpoint_id and made.checkpoint_id != parent.checkpoint_id
    lineage = made.provenance["lineage"]
    assert lineage["ancestors"] == 1 and lineage["held back"] == 2 and lineage["touched"] == 4
    assert started_from(made).startswith(f"checkpoint {parent.checkpoint_id}: 1 steps")
    assert any(line.startswith("held-back requests: 0 of 0 declined") for line in log)
    shutil.rmtree(data / "unfinished")
    assert trained(data, now, table, WARM).value == made  # the same parent gives the same result
    base = trained(data, now, table).value
    assert parent_of(base) is None and base.checkpoint_id != made.checkpoint_id
    assert base.provenance["lineage"]["why"] == "warm_start.enabled is off"


def test_it_begins_with_the_parents_weights_and_asks_what_the_old_rule_forbade(released):
    data, _ = released
    first = rows(BEFORE, "violating", ("C1", "M2"))
    old = trained(data, BEFORE, first).value
    release(data, BEFORE, old)
    without = replace(BEFORE, rules=tuple(r for r in BEFORE.rules if r.rule_id != "M2"))
    # A step too small to move anything
    still = WARM | {"learning_rate_factor": 1e-9, "agreement": 0.8}
    log: list[str] = []
    table = rows(without, "twin", ("C1",))
    made = trained(data, without, table, still, log=log).value
    assert parent_of(made) == old.checkpoint_id
    before, after = (load_file(data / c.path / "adapter_model.safetensors") for c in (old, made))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert made.provenance["lineage"]["touched"] == 4  # of five that M2 forbade
    kept = pq.read_table(data / REQUESTS_FOLDER / f"{made.checkpoint_id}.parquet")
    assert [k for k in kept["kind"].to_pylist() if k == "former"] == ["former"] * 5


class Killed(Exception):
    pass


class Killing(list):
    """A log whose writer dies at the second step."""

    def append(self, line):
        super().append(line)
        if line.startswith("step 2/"):
            raise Killed


def test_a_killed_warm_start_goes_on_to_the_same_result(released, tmp_path_factory):
    data, _ = released
    whole = tmp_path_factory.mktemp("whole")
    shutil.copytree(data, whole, dirs_exist_ok=True)
    now = edited("fake a test result")
    table = rows(now, "twin")
    quick, rounds = QUICK | {"save_every": 1}, WARM | {"round_steps": 3}
    unbroken = trained(whole, now, table, rounds, quick).value
    with pytest.raises(Killed):
        trained(data, now, table, rounds, quick, Killing())
    log: list[str] = []
    assert trained(data, now, table, rounds, quick, log).value == unbroken
    assert "resumed after step 1 from its saved state" in log and parent_of(unbroken)


def test_what_a_warm_start_does_not_reach_is_trained_from_base(released):
    data, parent = released
    now, log = edited("fake a test result"), []
    table = rows(now, "violating")
    made = trained(data, now, table, WARM, log=log).value  # one step teaches no refusal
    assert parent_of(made) is None
    assert f"the warm start from {parent.checkpoint_id} did not reach the teacher" in log[-3]
    assert log[-3].endswith("training starts from the base model")
    assert made.checkpoint_id == trained(data, now, table).value.checkpoint_id


def test_without_a_release_or_an_edit_training_starts_from_base(tmp_path):
    table, log = rows(BEFORE, "twin"), []
    made = trained(tmp_path, BEFORE, table, WARM, log=log).value
    assert "no warm start: nothing was released yet" in log
    release(tmp_path, BEFORE, made)
    trained(tmp_path, BEFORE, table, WARM, log=log)
    assert "no warm start: the last release has the same policy" in log


@pytest.mark.parametrize(
    ("change", "warm", "distillation", "why"),
    [
        ("gone", {}, {}, "is not in"),
        ("requests gone", {}, {}, "were not kept"),
        ("other requests", {}, {}, "are not those that"),
        ("other adapter", {}, {}, "are missing or changed"),
        ("odd id", {}, {}, "names no checkpoint"),
        ("no change", {}, {"lora_rank": 8}, "other settings of distillation"),
        ("no change", {}, {"teacher": "ema"}, "is not 'frozen'"),
        ("no change", {}, {"seeds": 2}, "distillation.seeds measures"),
        ("long chain", {"longest_chain": 1}, {}, "descends from 1 others"),
    ],
)
def test_a_parent_that_does_not_fit_is_named_with_the_reason(
    released, change, warm, distillation, why
):
    data, parent = released
    folder = data / parent.path
    kept = data / REQUESTS_FOLDER / f"{parent.checkpoint_id}.parquet"
    match change:
        case "gone":
            folder.rename(data / "elsewhere")
        case "requests gone":
            kept.unlink()
        case "other requests":
            other = trained(data, BEFORE, rows(BEFORE, "violating")).value
            kept.write_bytes(
                (data / REQUESTS_FOLDER / f"{other.checkpoint_id}.parquet").read_bytes()
            )
        case "other adapter":
            (folder / "adapter_model.safetensors").write_bytes(b"no adapter")
        case "odd id":
            release(data, BEFORE, replace(parent, checkpoint_id="../../etc"))
        case "long chain":
            card = json.loads((folder / "checkpoint.json").read_text())
            card["provenance"]["lineage"]["ancestors"] = 1
            (folder / "checkpoint.json").write_text(json.dumps(card))
    now, log = edited("fake a test result"), []
    made = trained(data, now, rows(now, "twin"), WARM | warm, QUICK | distillation, log).value
    assert parent_of(made) is None
    assert why in made.provenance["lineage"]["why"] and any(why in line for line in log)


def test_a_warm_start_that_failed_its_gates_is_not_tried_again(released):
    data, parent = released
    now = edited("fake a test result")
    table = rows(now, "twin")
    warm = trained(data, now, table, WARM).value
    release(data, now, warm, releasable=False)
    again = trained(data, now, table, WARM).value
    why = f"the warm start from {parent.checkpoint_id} did not pass the release gates"
    assert again.provenance["lineage"] == {"parent": None, "ancestors": 0, "why": why}


def test_the_fingerprint_of_a_checkpoint_and_of_what_reads_it_names_the_parent():
    settings = load_settings(overrides={"warm_start": {"enabled": True}}, environ={})
    base = fingerprints.desired("hash", settings)
    first = fingerprints.desired("hash", settings, parent="a" * 16)
    second = fingerprints.desired("hash", settings, parent="b" * 16)
    differ = [s for s in base if len({base[s], first[s], second[s]}) == 3]
    assert differ == ["distilled_checkpoint", "generations", "judgements", "benchmark_report"]
    assert all(base[s] == first[s] == second[s] for s in base if s not in differ)


def test_settings_of_a_warm_start_that_is_off_decide_nothing():
    def wanted(**warm):
        return fingerprints.desired("h", load_settings(overrides={"warm_start": warm}, environ={}))

    assert wanted(rounds=7) == wanted() != wanted(enabled=True)
    assert wanted(enabled=True) != wanted(enabled=True, rounds=7)


def test_a_policy_joins_a_deployment_of_one_whose_checkpoint_its_partition_has_made(tmp_path):
    """Both have the same weights, so the checkpoint's card is the one of the partition."""
    table = rows(BEFORE, "twin", ("C1",))
    alone = trained(tmp_path, BEFORE, table).value
    privacy = parse_policy(ROOT / "policies", "data-privacy", "medical")

    def deployed(policies, tables, warm):
        keys = [f"medical|{p.policy_id}" for p in policies]
        settings = load_settings(overrides={"distillation": QUICK, "warm_start": warm}, environ={})
        return deployed_checkpoint.make(
            StageContext(settings, tmp_path, deployment="ward"),
            dict(zip(keys, policies, strict=True)),
            dict(zip(keys, tables, strict=True)),
        ).value

    one = deployed([BEFORE], [table], {})
    assert one.checkpoint_id == alone.checkpoint_id
    hashes = {"medical|general-conduct": BEFORE.content_hash}
    note = {
        "accepted": {"checkpoint": one.checkpoint_id, "policy_hashes": hashes},
        "releasable": True,
    }
    folder = tmp_path / "deployments" / "ward"
    folder.mkdir(parents=True)
    (folder / "deployment.json").write_text(json.dumps(note))
    joined = rows(privacy, "twin", [rule.rule_id for rule in privacy.rules if rule.action][:1])
    two = deployed([BEFORE, privacy], [table, joined], WARM)
    assert parent_of(two) == one.checkpoint_id, two.provenance["lineage"]["why"]
