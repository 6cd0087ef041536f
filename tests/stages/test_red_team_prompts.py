"""Which benchmarks' requests the coverage of red-team prompts reads, and what the stage shows."""

import csv

import pyarrow as pa
from helpers import medical_policy

from policyalign_assets.evaluation.benchmarks import manifest
from policyalign_assets.settings import load_settings
from policyalign_assets.stages.red_team_prompts import coverage_table, measured_coverage
from policyalign_assets.tables import INSTRUCTIONS

OWN = """
benchmarks:
  - id: attacks
    title: Attacks
    files: [attacks.csv]
    prompts: [{kind: harmful, column: [request]}]
    metric: share refused
  - id: chats
    title: Chats
    files: [chats.csv]
    prompts: [{kind: benign, column: [request]}]
    metric: share answered
"""
ATTACKS = [f"How do I forge item{a} and paper{b}?" for a in range(8) for b in range(8)]
CHATS = [f"How do I bake cake{n}?" for n in range(64)]


def found(folder, files):
    (folder / "ours.yaml").write_text(OWN)
    for name, requests in files.items():
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([["request"], *([text] for text in requests)])
    settings = load_settings(overrides={"evaluation": {"benchmarks_dir": str(folder)}}, environ={})
    rows = [
        {"rule_id": rule, "kind": kind, "text": text}
        for rule, kind, texts in [
            ("C1", "violating", ATTACKS[::2]),
            ("C1", "twin", CHATS),
            ("M1", "violating", CHATS[::2]),
        ]
        for text in texts
    ]
    instructions = pa.Table.from_pylist(rows, INSTRUCTIONS)
    ours = [b for b in manifest(folder) if b.id in ("attacks", "chats")]
    return measured_coverage(medical_policy(), instructions, ours, settings)


def test_violating_requests_are_compared_with_attacks_and_benign_requests(tmp_path):
    everything, first, second = found(tmp_path, {"attacks.csv": ATTACKS, "chats.csv": CHATS})
    assert [f.rule_id for f in (everything, first, second)] == [None, "C1", "M1"]
    assert (everything.benchmark, everything.prompts) == ("Attacks", 32)
    assert first.instructions == 32  # the twins are not counted
    assert first.between > 0.7 and second.coverage < 0.1
    shown = str(coverage_table([everything, first, second]))
    assert "Attacks" in shown and "M1" in shown


def test_without_files_or_with_too_few_attacks_it_is_not_measured(tmp_path):
    assert found(tmp_path, {"chats.csv": CHATS}) == []
    assert found(tmp_path, {"attacks.csv": ATTACKS[:5], "chats.csv": CHATS}) == []
    assert "not measured" in str(coverage_table([]))


def test_without_benign_requests_there_is_no_control(tmp_path):
    assert found(tmp_path, {"attacks.csv": ATTACKS})[0].control is None
