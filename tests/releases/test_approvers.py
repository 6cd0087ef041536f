"""Who may approve a release: people named in the policy or the settings, never the author."""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import ROOT

pytest.importorskip("model_signing", reason="needs the extra `release`")
from test_release_bundle import Desk, failed

from policyalign_assets.cli.main import main
from policyalign_assets.policy import PolicyError, parse_policy
from policyalign_assets.policy.importing import import_document
from policyalign_assets.releases.approvers import said
from policyalign_assets.releases.bundle import write_bundle
from policyalign_assets.releases.evidence import _with_approvers
from policyalign_assets.releases.keys import (
    create_keys,
    key_id,
    load_private_key,
    load_public_key,
    sign_text,
)
from policyalign_assets.releases.record import bundle_id
from policyalign_assets.releases.verification import trusted
from policyalign_assets.settings import SettingsError, load_settings

pytestmark = pytest.mark.slow


class Office(Desk):
    """A desk whose drafts name approvers, in the policy or the settings."""

    def draft(self, in_policy: tuple[str, ...] = (), in_settings: tuple[str, ...] = ()) -> Path:
        evidence = self.evidence()
        policies = [
            replace(one, policy=replace(one.policy, approvers=in_policy))
            for one in evidence.policies
        ]
        settings = load_settings(overrides={"release": {"approvers": in_settings}}, environ={})
        evidence = replace(evidence, policies=policies, settings=settings.model_dump(mode="json"))
        return write_bundle(evidence, self.releases, self.key, "Ann")

    def approve(self, bundle: Path, actor: str, key: Path, code: int = 0) -> str:
        done = CliRunner().invoke(main, ["approve", str(bundle), "--by", actor, "--key", str(key)])
        assert done.exit_code == code, done.output
        return done.output

    def publish(self, bundle: Path) -> None:
        self.record("released", bundle, "Bob", self.other)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


@pytest.mark.parametrize("where", ["in_policy", "in_settings"])
def test_a_named_person_approves_and_nobody_else(office: Office, where: str):
    bundle = office.draft(**{where: ("Bob", "Eve Hall")})
    stranger, _ = create_keys(office.folder / "keys", "mallory")
    refused = office.approve(bundle, "Mallory", stranger, code=1)
    assert "'Mallory' is not named as an approver" in refused and "Bob, Eve Hall" in refused
    assert "Fix: let a named person approve" in refused and "release.approvers" in refused
    assert office.ledger.state(bundle_id(bundle)) == "drafted"
    office.approve(bundle, "bob", office.other)  # names are compared without their case
    office.publish(bundle)
    assert trusted(office.verify(bundle)), failed(office.verify(bundle))


def test_the_author_cannot_approve_although_named(office: Office):
    bundle = office.draft(in_policy=("Ann",), in_settings=("Bob",))
    assert "cannot approve it" in office.approve(bundle, "Ann", office.other, code=1)
    # nor under another name, with the key that signed the draft
    assert "The key that signed the draft" in office.approve(bundle, "Bob", office.key, code=1)
    office.approve(bundle, "Bob", office.other)


def test_a_name_may_be_bound_to_a_key(office: Office):
    bob = key_id(load_public_key(office.other_public))
    bundle = office.draft(in_settings=(f"Bob sha256:{bob[:16]}",))
    stranger, _ = create_keys(office.folder / "keys", "mallory")
    refused = office.approve(bundle, "Bob", stranger, code=1)
    assert "'Bob' signs with another key than the one that is named" in refused
    office.approve(bundle, "Bob", office.other)


def test_where_nobody_is_named_it_is_said_at_every_step(office: Office):
    bundle = office.draft()
    assert "nobody is named as approver" in " ".join(said(bundle, "Ann"))
    assert "nobody is named as approver" in office.approve(bundle, "Bob", office.other)
    office.publish(bundle)
    checks = office.verify(bundle)
    assert trusted(checks)
    (approval,) = [c.detail for c in checks if c.name == "approval"]
    assert "approved by Bob" in approval and "nobody is named as approver" in approval


def test_a_draft_that_nobody_can_approve_says_so_at_once(office: Office):
    lines = said(office.draft(in_policy=("Ann",)), "ann")
    assert "nobody can approve this draft: ann is its author. Fix:" in lines[-1]


def test_verify_refuses_an_approval_that_went_round_the_command(office: Office):
    """Somebody with a trusted key writes the ledger's line by other means."""
    bundle = office.draft(in_policy=("Eve",))
    office.record("approved", bundle, "Bob", office.other)
    office.publish(bundle)
    assert "'Bob' is not named as an approver" in failed(office.verify(bundle))["approval"]


def test_verify_refuses_an_approval_by_the_key_of_the_draft(office: Office):
    """The author writes the line of another person into the ledger, with the author's own key."""
    bundle = office.draft()
    key, last = load_private_key(office.key), office.ledger.entries()[-1]
    line = replace(
        last, sequence=2, event="approved", actor="Bob", previous=last.digest, signature=""
    )
    line = replace(line, signature=sign_text(key, line.text))
    with office.ledger.path.open("a") as file:
        file.write(json.dumps(asdict(line)) + "\n")
    office.publish(bundle)
    wrong = failed(office.verify(bundle))
    assert list(wrong) == ["ledger"]
    assert "approved by Bob) is signed by the key that signed the draft" in wrong["ledger"]


def test_approvers_are_those_of_the_policys_file_when_it_is_released(office: Office, tmp_path):
    """An edit of the names changes nothing that is trained, so no stage is made again for it."""
    (one,) = office.evidence().policies
    policies = Path(shutil.copytree(ROOT / "policies", tmp_path / "policies"))
    assert _with_approvers(one, policies).policy.approvers == ()
    file = policies / "general-conduct/policy.md"
    file.write_text(file.read_text().replace("owner:", "approvers: [Bob, Eve]\nowner:", 1))
    named = _with_approvers(one, policies).policy
    assert named.approvers == ("Bob", "Eve")
    assert named.content_hash == one.policy.content_hash
    assert _with_approvers(one, tmp_path / "absent") is one


def test_the_front_matter_names_approvers_and_an_addendum_has_its_own(tmp_path: Path):
    policies = Path(shutil.copytree(ROOT / "policies", tmp_path / "policies"))
    file = policies / "general-conduct/policy.md"
    text = file.read_text()
    file.write_text(text.replace("owner:", "approvers: [Bob]\nowner:", 1))
    addendum = policies / "general-conduct/medical.md"
    own = "---\napprovers: ['Eve Hall sha256:3f9c2b1a']\n---\n"
    addendum.write_text(own + addendum.read_text())
    medical = parse_policy(policies, "general-conduct", "medical")
    legal = parse_policy(policies, "general-conduct", "legal")
    assert medical.approvers == ("Eve Hall sha256:3f9c2b1a",) and legal.approvers == ("Bob",)
    file.write_text(text.replace("owner:", "approvers: ['Bob sha256:xyz']\nowner:", 1))
    with pytest.raises(PolicyError, match="names no approver"):
        parse_policy(policies, "general-conduct", "legal")
    file.write_text(text.replace("owner:", "approvers: Bob\nowner:", 1))
    with pytest.raises(PolicyError, match="approvers is not a list of words"):
        parse_policy(policies, "general-conduct", "legal")


def test_settings_name_approvers_by_environment():
    environ = {"POLICYALIGN_RELEASE__APPROVERS": "Bob, Eve sha256:3f9c2b1a"}
    assert load_settings(environ=environ).release.approvers == ("Bob", "Eve sha256:3f9c2b1a")
    with pytest.raises(SettingsError, match="names no approver"):
        load_settings(environ={"POLICYALIGN_RELEASE__APPROVERS": "sha256:3f9c2b1a"})


def test_an_import_of_a_newer_version_keeps_the_approvers(tmp_path: Path):
    document = tmp_path / "staff.md"
    document.write_text("# Staff\n\n## Rules\n\n- Never help anyone forge a signature.\n")
    asked = {"domains": ("medical",), "owner": "Safety"}
    made = import_document(document, tmp_path / "policies", "staff", **asked)
    text = made.path.read_text()
    made.path.write_text(text.replace("owner:", "approvers: [Bob]\nowner:", 1))
    document.write_text(document.read_text() + "- Never help anyone fake a test result.\n")
    again = import_document(document, tmp_path / "policies", "staff", **asked)
    assert 'approvers: ["Bob"]' in again.path.read_text()


def test_an_older_bundle_without_the_section_names_nobody(office: Office):
    bundle = office.draft()
    stored = json.loads((bundle / "settings.json").read_text())
    del stored["release"]
    os.chmod(bundle / "settings.json", 0o644)
    (bundle / "settings.json").write_text(json.dumps(stored))
    assert "nobody is named" in " ".join(said(bundle, "Ann"))
