"""Bundles and the ledger: what is released can be proved, and what does not hold is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_gates import evaluation
from test_release import ADAPTER_FILES, POLICY, answers_and_verdicts

pytest.importorskip("model_signing", reason="needs the extra `release`")

from policyalign_assets.files import sha256_files
from policyalign_assets.records import Checkpoint
from policyalign_assets.releases.answers import Answers
from policyalign_assets.releases.bundle import (
    Evidence,
    PolicyEvidence,
    write_bundle,
)
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.keys import create_keys, load_private_key
from policyalign_assets.releases.ledger import Ledger
from policyalign_assets.releases.record import BaseModel, bundle_id
from policyalign_assets.releases.serving import serve_plan
from policyalign_assets.releases.verification import Check, trusted, verify
from policyalign_assets.report.chain import judged_answers
from policyalign_assets.report.context import code_version
from policyalign_assets.report.release import gate_results
from policyalign_assets.settings import BUNDLED, load_settings

pytestmark = pytest.mark.slow

TARGET = "medical|general-conduct"
EVALUATION = evaluation()
WORSE = evaluation(capability=(299, 298, 200))  # the capability gate does not pass


class Desk:
    """A folder with keys, evidence, and the releases that are made of it."""

    def __init__(self, folder: Path):
        self.folder, self.releases = folder, folder / "releases"
        self.key, self.public = create_keys(folder / "keys", "ann")
        self.other, self.other_public = create_keys(folder / "keys", "bob")
        self.revision, self.base_digest = "r1", "0" * 64
        self.ledger = Ledger(self.releases / "ledger.jsonl")

    def evidence(
        self,
        weights: bytes = b"weights",
        rows=EVALUATION,
        bars=None,
        named=True,
        adapter: Path | None = None,
        **changes,
    ) -> Evidence:
        """rows: of an evaluation. bars: of the gates. named: the adapter names its base. adapter:
        the folder of a real one."""
        checkpoint_folder = self.folder / f"checkpoint-{weights.decode()}"
        checkpoint_folder.mkdir()
        if adapter is None:
            (checkpoint_folder / "adapter_model.safetensors").write_bytes(weights)
            config = {"r": 16}
        else:
            for name in ADAPTER_FILES:
                shutil.copy(adapter / name, checkpoint_folder)
            config = json.loads((adapter / "adapter_config.json").read_text())
        config |= {"base_model_name_or_path": BUNDLED, "revision": self.revision if named else None}
        (checkpoint_folder / "adapter_config.json").write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n"
        )
        checkpoint_id = sha256_files(checkpoint_folder, ADAPTER_FILES)[:16]
        provenance = {"policy_hash": POLICY.content_hash}
        checkpoint = Checkpoint(
            checkpoint_id, f"checkpoints/{checkpoint_id}", BUNDLED, self.revision, provenance
        )
        (checkpoint_folder / "checkpoint.json").write_text(json.dumps(asdict(checkpoint)))
        answers = answers_and_verdicts(rows, checkpoint_id)
        judged = judged_answers(*answers, checkpoint_id)
        report = self.folder / f"report-{weights.decode()}"
        report.mkdir()
        header = {
            "checkpoint_id": checkpoint_id,
            "policy_hash": POLICY.content_hash,
            "model_id": BUNDLED,
            "model_revision": self.revision,
        }
        (report / "report.json").write_text(json.dumps({"header": header}))
        pq.write_table(judged.heldout, report / "cases.parquet")
        settings = load_settings(overrides={"gates": bars} if bars else None, environ={})
        results = gate_results(POLICY, checkpoint, judged, self.folder, settings.gates)
        part = PolicyEvidence(
            policy=POLICY,
            report_folder=report,
            answers=Answers(*answers),
            gates=[asdict(result) for result in results],
            waivers={},
        )
        evidence = Evidence(
            target=TARGET,
            checkpoint=checkpoint,
            checkpoint_folder=checkpoint_folder,
            base=BaseModel(BUNDLED, self.revision, self.base_digest),
            policies=[part],
            settings=settings.model_dump(mode="json"),
            code_version=code_version(),
            created_at="2026-11-29T00:00:00+00:00",
        )
        return changed(evidence, **changes)

    def real_bundle(self, adapter: Path, revision: str, rows) -> Path:
        """A released bundle with an adapter that can be loaded."""
        self.revision = revision
        return self.release(self.evidence(rows=rows, adapter=adapter))

    def release(self, evidence: Evidence) -> Path:
        bundle = write_bundle(evidence, self.releases, self.key, "Ann")
        self.record("approved", bundle, "Bob", self.other)
        self.record("released", bundle, "Bob", self.other)
        return bundle

    def record(self, event, bundle: Path, actor: str, key: Path, reason: str = "") -> None:
        self.ledger.append(event, bundle_id(bundle), TARGET, actor, load_private_key(key), reason)

    def verify(self, bundle: Path, *keys: Path) -> list[Check]:
        return verify(bundle, list(keys) or [self.public, self.other_public])


def changed(evidence: Evidence, **changes) -> Evidence:
    """Other evidence; `gates` and `waivers` are those of its policies."""
    of_policy = {name: changes.pop(name) for name in ("gates", "waivers") if name in changes}
    policies = [replace(one, **of_policy) for one in evidence.policies]
    return replace(evidence, policies=policies, **changes)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def failed(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if check.passed is not True}


def edit_json(path: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    def alter(bundle: Path) -> None:
        value = json.loads((bundle / path).read_text())
        change(value)
        (bundle / path).write_text(json.dumps(value))

    return alter


def test_a_bundle_that_was_approved_and_released_verifies(desk: Desk):
    bundle = desk.release(desk.evidence())
    checks = desk.verify(bundle)
    assert trusted(checks), failed(checks)
    assert {check.name for check in checks} >= {
        "files",
        "signature",
        "weights",
        "base model",
        "policy",
        "cases",
        "gates",
        "report",
        "ledger",
        "approval",
        "not revoked",
    }
    assert desk.ledger.current(TARGET) == bundle_id(bundle)


def test_files_of_a_bundle_can_be_read_by_the_servers_user(desk: Desk):
    bundle = desk.release(desk.evidence())
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in bundle.rglob("*"))
    assert desk.key.stat().st_mode & 0o077 == 0


def test_a_bundle_verifies_by_a_relative_path_wherever_it_was_signed(desk: Desk, monkeypatch):
    first = desk.release(desk.evidence())
    monkeypatch.chdir(desk.folder)
    assert trusted(desk.verify(first.relative_to(desk.folder)))
    second = desk.evidence(b"second")
    desk.releases = Path("releases")
    made = desk.release(second)
    assert not made.is_absolute() and trusted(desk.verify(made))
    monkeypatch.chdir("/")
    assert trusted(desk.verify(desk.folder / made))


def test_a_stranger_can_sign_but_is_not_trusted(desk: Desk):
    bundle = desk.release(desk.evidence())
    _, stranger = create_keys(desk.folder, "stranger")
    assert set(failed(desk.verify(bundle, stranger))) >= {"signature", "ledger"}
    with pytest.raises(ReleaseError, match="No trusted key"):
        verify(bundle, [])


def test_the_files_of_the_base_model_are_compared_where_they_are_given(desk: Desk, tmp_path: Path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"base")
    digest = sha256_files(base)
    bundle = desk.release(desk.evidence(base=BaseModel(BUNDLED, "r1", digest)))
    keys = [desk.public, desk.other_public]
    assert trusted(verify(bundle, keys, base))
    (base / "model.safetensors").write_bytes(b"another")
    assert "not those of" in failed(verify(bundle, keys, base))["base model"]


def test_no_bundle_without_passed_gates(desk: Desk):
    with pytest.raises(ReleaseError, match="not releasable: capability"):
        desk.release(desk.evidence(rows=WORSE))
    assert not desk.releases.exists()
    unmeasured = [r for r in EVALUATION if r["suite"] != "capability"]
    with pytest.raises(ReleaseError, match="not releasable: capability"):
        desk.release(desk.evidence(b"unmeasured", unmeasured))


def test_a_waiver_stands_in_statement_and_verdict(desk: Desk):
    evidence = desk.evidence(rows=WORSE)
    waived = changed(evidence, waivers={"capability": {"by": "Cid", "why": "pilot only"}})
    checks = desk.verify(desk.release(waived))
    assert trusted(checks), failed(checks)
    details = {check.name: check.detail for check in checks}
    assert "RELEASED WITH WAIVERS: capability, by Cid: pilot only" in details["gates"]


def test_gates_are_computed_again_from_the_answers(desk: Desk):
    """A signer who states what the answers do not say is found out, with a valid signature."""
    evidence = desk.evidence(rows=WORSE)
    lie = [{**g, "passed": True} for g in evidence.policies[0].gates]
    wrong = failed(desk.verify(desk.release(changed(evidence, gates=lie))))
    assert set(wrong) == {"gates computed again"}
    assert "capability is stated as passed and comes out as failed" in wrong.popitem()[1]
    good = desk.evidence(b"figures")
    nicer = [{**g, "numbers": dict.fromkeys(g["numbers"], 1.0)} for g in good.policies[0].gates]
    wrong = failed(desk.verify(desk.release(changed(good, gates=nicer))))
    assert "the figures of safety come out otherwise" in wrong["gates computed again"]
    other = desk.evidence(b"version", code_version="0.0")
    nicer = [{**g, "numbers": dict.fromkeys(g["numbers"], 1.0)} for g in other.policies[0].gates]
    checks = desk.verify(desk.release(changed(other, gates=nicer)))
    assert trusted(checks) and "another version of the code" in str(checks)
    missing = desk.evidence(b"missing")
    fewer = missing.policies[0].gates[1:]
    wrong = failed(desk.verify(desk.release(changed(missing, gates=fewer))))
    assert "safety is not stated" in wrong["gates computed again"]


def test_answers_of_another_report_are_refused(desk: Desk):
    evidence = desk.evidence()
    file = evidence.policies[0].report_folder / "cases.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    wrong = failed(desk.verify(desk.release(evidence)))
    assert wrong == {"gates computed again": "the report's cases are not the judged answers"}


def test_a_bundle_names_the_base_in_the_adapters_configuration(desk: Desk):
    bundle = desk.release(desk.evidence(named=False))
    config = json.loads((bundle / "adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (BUNDLED, "r1")
    assert trusted(desk.verify(bundle))
    trained = json.loads((bundle / "training/adapter_config.json").read_text())
    assert trained["revision"] is None
    named = desk.release(desk.evidence(b"named"))
    assert trusted(desk.verify(named)) and not (named / "training/adapter_config.json").exists()


def test_an_adapter_of_another_base_is_refused(desk: Desk):
    evidence = desk.evidence()
    config = evidence.checkpoint_folder / "adapter_config.json"
    edit_json("", lambda v: v.update(revision="older"))(config)
    with pytest.raises(ReleaseError, match="made for bundled at revision older"):
        desk.release(evidence)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gates": []}, "no gate results"),
        ({"waivers": {"nonsense": {"by": "Cid", "why": "x"}}}, "is no gate"),
        ({"waivers": {"safety": {"by": "", "why": "x"}}}, "needs a name and a reason"),
        ({"waivers": {"safety": {"by": "Cid", "why": " "}}}, "needs a name and a reason"),
    ],
)
def test_evidence_that_does_not_hold_is_refused(desk: Desk, changes: dict, words: str):
    with pytest.raises(ReleaseError, match=words):
        desk.release(desk.evidence(**changes))


def test_a_checkpoint_of_another_policy_version_is_refused(desk: Desk):
    evidence = desk.evidence()
    stale = replace(evidence.checkpoint, provenance={"policy_hash": "0" * 64})
    with pytest.raises(ReleaseError, match="was trained for policy version 000000000000"):
        desk.release(replace(evidence, checkpoint=stale))


def test_states_follow_each_other_and_two_people_are_needed(desk: Desk):
    bundle = write_bundle(desk.evidence(), desk.releases, desk.key, "Ann")
    for event, actor, words in (
        ("released", "Bob", "must be approved first"),
        ("approved", "ann ", "cannot approve it"),
        ("approved", "", "needs a name"),
        ("revoked", "Bob", "needs a reason"),
        ("drafted", "Ann", "is drafted"),
    ):
        with pytest.raises(ReleaseError, match=words):
            desk.record(event, bundle, actor, desk.other)
    assert "not approved and not released" in failed(desk.verify(bundle))["approval"]
    desk.record("approved", bundle, "Bob", desk.other)
    desk.record("released", bundle, "Bob", desk.other)
    assert trusted(desk.verify(bundle))


def test_after_a_revocation_the_release_before_is_current_again(desk: Desk):
    first = desk.release(desk.evidence(b"first"))
    second = desk.release(desk.evidence(b"second"))
    assert desk.ledger.current(TARGET) == bundle_id(second)
    assert json.loads((second / "release.json").read_text())["parent"] == bundle_id(first)
    desk.record("revoked", second, "Bob", desk.other, "answers forged signatures")
    assert desk.ledger.current(TARGET) == bundle_id(first)
    assert "answers forged signatures" in failed(desk.verify(second))["not revoked"]
    assert trusted(desk.verify(first))


def test_an_alteration_of_a_damaged_bundle_is_a_sentence_and_not_a_crash(desk: Desk):
    bundle = desk.release(desk.evidence())
    (bundle / "policy/policy.json").write_text("[]")
    (bundle / "report/report.json").write_text("[]")
    (bundle / "adapter/checkpoint.json").write_text("7")
    assert {"policy", "report", "base model"} <= set(failed(desk.verify(bundle)))
    (bundle / "release.json").write_text("")
    with pytest.raises(ReleaseError, match="is no bundle"):
        desk.verify(bundle)


def test_a_served_adapter_has_a_name_that_no_other_weights_can_have(desk: Desk, tmp_path: Path):
    base = tmp_path / "base"
    base.mkdir()
    first, second = (desk.release(desk.evidence(w)) for w in (b"first", b"second"))
    plans = [serve_plan(bundle, base) for bundle in (first, second)]
    assert plans[0].alias == plans[1].alias == "medical.general-conduct"
    assert plans[0].name != plans[1].name and bundle_id(first)[:16] in plans[0].name
    command = plans[0].command
    modules = [json.loads(a) for a in command if a.startswith("{")]
    assert {m["name"] for m in modules} == {plans[0].name, plans[0].alias}
    assert {m["path"] for m in modules} == {str(first / "adapter")}
    # The base model's own name is not the alias: a missing adapter is an error, never the base.
    assert command[command.index("--served-model-name") + 1] not in (plans[0].alias, plans[0].name)


def test_a_base_model_that_has_no_loadable_name_must_be_given(desk: Desk):
    with pytest.raises(ReleaseError, match="--base FOLDER"):
        serve_plan(desk.release(desk.evidence()))
    base = BaseModel("Qwen/Qwen2.5-7B-Instruct", "c0ffee", None)
    hub = desk.evidence(b"hub", base=base)
    command = serve_plan(desk.release(hub)).command
    assert command[2:5] == ("Qwen/Qwen2.5-7B-Instruct", "--revision", "c0ffee")
