"""The commands of a release, and of a folder of one's own, as a user types them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import ROOT

from policyalign_assets.cli.main import main
from policyalign_assets.policy import parse_policy

pytest.importorskip("model_signing", reason="needs the extra `release`")
from test_release_bundle import TARGET, Desk

from policyalign_assets.releases.bundle import write_bundle


def command(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_init_writes_what_a_folder_needs_and_keeps_what_is_there(tmp_path: Path):
    (tmp_path / ".gitignore").write_text("mine\n")
    said = command("init", tmp_path)
    assert "kept" in said and (tmp_path / ".gitignore").read_text() == "mine\n"
    for name in ("dagster.yaml", "workspace.yaml"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()
    policy = parse_policy(tmp_path / "policies", "example", "medical")
    assert [rule.kind for rule in policy.rules] == ["prohibit"] * 3
    assert "written" not in command("init", tmp_path)


def test_keys_are_made_once(tmp_path: Path):
    said = command("keys", "new", "--folder", tmp_path, "--name", "team")
    assert "team.key" in said and "team.pub" in said
    assert "exists" in command("keys", "new", "--folder", tmp_path, "--name", "team", code=1)


@pytest.mark.slow
def test_from_a_draft_to_a_revocation(tmp_path: Path):
    desk = Desk(tmp_path)
    bundle = write_bundle(desk.evidence(), desk.releases, desk.key, "Ann")
    keys = ("--key", desk.public, "--key", desk.other_public)
    assert "not approved" in command("verify", bundle, *keys, code=1)
    as_bob = ("--by", "Bob", "--key", desk.other)
    assert "cannot approve it" in command(
        "approve", bundle, "--by", "Ann", "--key", desk.key, code=1
    )
    command("approve", bundle, *as_bob)
    said = command("publish", bundle, *as_bob)
    assert TARGET in said and f"current release: {bundle.name}" in said
    assert command("verify", bundle, *keys).startswith("VERIFIED")
    checks = json.loads(command("verify", bundle, *keys, "--json"))
    assert checks["trusted"] and {"name", "passed", "detail"} == set(checks["checks"][0])
    said = command("revoke", bundle, *as_bob, "--reason", "wrong policy")
    assert "current release: none" in said
    assert command("verify", bundle, *keys, code=1).startswith("NOT VERIFIED")


def test_usage_errors_have_their_own_exit_code(tmp_path: Path):
    command("verify", tmp_path / "nowhere", code=2)
    assert "Fix:" in command("verify", tmp_path, "--key", tmp_path / "k.pub", code=1)


def test_a_partition_without_results_says_what_to_do(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("POLICYALIGN_DATA_DIR", str(tmp_path))
    said = command("ask", "medical|general-conduct", "Hello?", code=1)
    assert "policyalign align 'medical|general-conduct'" in said
    assert "is not a partition" in command("ask", "medical", "Hello?", code=1)
    assert "is not a partition" in command("ask", "medical|../../etc", "Hello?", code=1)
