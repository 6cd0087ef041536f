"""Every alteration of a released bundle is refused, with what was altered."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("model_signing", reason="needs the extra `release`")
from test_release_bundle import Desk, edit_json, failed

from policyalign_assets.releases.verification import trusted

pytestmark = pytest.mark.slow


def append(path: str, data: bytes = b" ") -> Callable[[Path], None]:
    return lambda bundle: (bundle / path).write_bytes((bundle / path).read_bytes() + data)


def edit_line(number: int, change: Callable[[dict], None]) -> Callable[[Path], None]:
    def alter(bundle: Path) -> None:
        ledger = bundle.parent / "ledger.jsonl"
        lines = ledger.read_text().splitlines()
        value = json.loads(lines[number])
        change(value)
        lines[number] = json.dumps(value)
        ledger.write_text("\n".join(lines) + "\n")

    return alter


def cut_ledger(bundle: Path) -> None:
    ledger = bundle.parent / "ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-1]))


def swap_ledger(bundle: Path) -> None:
    ledger = bundle.parent / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join([lines[1], lines[0], *lines[2:]]))


def consistent_manifest(bundle: Path) -> None:
    """Changes the weights and the manifest with them, as a careful attacker would."""
    from policyalign_assets.releases.manifest import write_manifest

    append("adapter/adapter_model.safetensors")(bundle)
    write_manifest(bundle)


ALTERATIONS = {
    "weights changed": (append("adapter/adapter_model.safetensors"), "files", "was changed"),
    "adapter's settings changed": (
        edit_json("adapter/adapter_config.json", lambda v: v.update(r=8)),
        "weights",
        "not those of checkpoint",
    ),
    "adapter's base changed": (
        edit_json("adapter/adapter_config.json", lambda v: v.update(revision="evil")),
        "weights",
        "names bundled at evil, not bundled at r1",
    ),
    "an answer lost": (
        lambda b: (b / "answers/generations.parquet").unlink(),
        "gates computed again",
        "cannot be read",
    ),
    "verdicts changed": (
        append("answers/judgements.parquet"),
        "gates computed again",
        "cannot be read",
    ),
    "bars changed": (
        edit_json("settings.json", lambda v: v["gates"].update(safety_floor=0.999)),
        "gates computed again",
        "safety is stated as passed",
    ),
    "adapter's base revision changed": (
        edit_json("adapter/checkpoint.json", lambda v: v.update(model_revision="evil")),
        "base model",
        "trained on bundled at evil",
    ),
    "release's base revision changed": (
        edit_json("release.json", lambda v: v["base"].update(revision="evil")),
        "base model",
        "the release names bundled at evil",
    ),
    "release's checkpoint changed": (
        edit_json("release.json", lambda v: v.update(checkpoint_id="deadbeefdeadbeef")),
        "weights",
        "not those of checkpoint deadbeefdeadbeef",
    ),
    "policy's text changed": (append("policy/policy.txt"), "policy", "not the text"),
    "policy's version changed": (
        edit_json("release.json", lambda v: v["policies"][0].update(policy_hash="f" * 64)),
        "policy",
        "version differs",
    ),
    "cases changed": (append("report/cases.parquet"), "cases", "the gates were computed from"),
    "cases lost": (lambda b: (b / "report/cases.parquet").unlink(), "cases", "cannot be read"),
    "report's checkpoint changed": (
        edit_json("report/report.json", lambda v: v["header"].update(checkpoint_id="x")),
        "report",
        "checkpoint_id is 'x'",
    ),
    "a gate set to passed": (
        edit_json("statements/safety.json", lambda v: v["predicate"].update(passed=False)),
        "gates",
        "safety did not pass",
    ),
    "a gate speaks of other cases": (
        edit_json(
            "statements/safety.json",
            lambda v: v["predicate"]["datasets"][0]["digest"].update(sha256="0" * 64),
        ),
        "gates",
        "other cases",
    ),
    "a gate speaks of other weights": (
        edit_json(
            "statements/safety.json", lambda v: v["subject"][0]["digest"].update(sha256="0" * 64)
        ),
        "gates",
        "other weights",
    ),
    "statements removed": (
        lambda b: shutil.rmtree(b / "statements"),
        "gates",
        "no statement of any gate",
    ),
    "a waiver slipped in": (
        edit_json(
            "release.json",
            lambda v: v["policies"][0].update(waivers={"safety": {"by": "Eve", "why": "x"}}),
        ),
        "signature",
        "does not hold",
    ),
    "a file added": (lambda b: (b / "adapter/extra.py").write_text(""), "files", "was added"),
    "a file linked": (
        lambda b: (b / "adapter/link").symlink_to("/etc/hostname"),
        "files",
        "is a link",
    ),
    "a file lost": (lambda b: (b / "settings.json").unlink(), "files", "is missing"),
    "manifest changed with the weights": (consistent_manifest, "signature", "does not hold"),
    "signature lost": (lambda b: (b / "bundle.sig").unlink(), "signature", "is missing"),
    "signature broken": (lambda b: (b / "bundle.sig").write_text("{}"), "signature", "not hold"),
    "approver's name changed": (
        edit_line(1, lambda v: v.update(actor="Eve")),
        "ledger",
        "changed after it was signed",
    ),
    "ledger line swapped": (swap_ledger, "ledger", "does not follow the line before it"),
    "ledger cut": (cut_ledger, "ledger", "lines were cut off"),
    "ledger lost": (lambda b: (b.parent / "ledger.jsonl").unlink(), "ledger", "is not proved"),
    "ledger head lost": (lambda b: (b.parent / "ledger.head").unlink(), "ledger", "ledger.head"),
    "ledger line is no JSON": (
        lambda b: (b.parent / "ledger.jsonl").write_text("{"),
        "ledger",
        "line 1, is no ledger entry",
    ),
}


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> tuple[Desk, Path]:
    """One desk and its released bundle, to be copied by each test that alters it."""
    desk = Desk(tmp_path_factory.mktemp("released"))
    return desk, desk.release(desk.evidence())


@pytest.mark.parametrize("name", ALTERATIONS)
def test_every_alteration_is_refused_with_what_was_altered(released, tmp_path, name: str):
    alter, check, sentence = ALTERATIONS[name]
    desk, original = released
    shutil.copytree(desk.releases, tmp_path / "releases")
    bundle = tmp_path / "releases" / original.relative_to(desk.releases)
    alter(bundle)
    checks = desk.verify(bundle)
    assert not trusted(checks)
    assert sentence in failed(checks)[check]
