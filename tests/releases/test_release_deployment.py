"""The release of a deployment: one model, all of its policies, each with gates of its own."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers import ROOT, ScriptedEngine, answer
from served_engine import serving
from test_bundle_alterations import append
from test_export import distinct
from test_gates import evaluation
from test_release import ADAPTER_FILES, answers_and_verdicts
from test_release_bundle import edit_json
from test_report import sample_training

pytest.importorskip("model_signing", reason="needs the extra `release`")

from policyalign_assets.cli.main import main
from policyalign_assets.evaluation.suites import ALIGNED
from policyalign_assets.files import sha256_files, sha256_table, write_whole
from policyalign_assets.policy import PolicyDocument, parse_policy
from policyalign_assets.records import Checkpoint
from policyalign_assets.releases.answer_again import answer_again
from policyalign_assets.releases.bundle import write_bundle
from policyalign_assets.releases.current import current_bundle
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.evidence import gather
from policyalign_assets.releases.keys import create_keys
from policyalign_assets.releases.papers.facts import read_facts
from policyalign_assets.releases.papers.ml_bom import ml_bom
from policyalign_assets.releases.papers.oscal import assessment_results
from policyalign_assets.releases.record import read_record
from policyalign_assets.releases.verification import trusted, verify
from policyalign_assets.report.last_released import last_released
from policyalign_assets.runtime.exchange import encode
from policyalign_assets.settings import BUNDLED, load_settings
from policyalign_assets.stages import deployment_report
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.tables import YIELDS

pytestmark = pytest.mark.slow

NAME = "ward"
POLICIES = ("general-conduct", "data-privacy")
CONFLICT = "C1 of general-conduct forbids what P2 of data-privacy demands."
WORSE = {"capability": (299, 298, 200)}  # the capability gate does not pass


class Ward:
    """A data folder with one deployment of two policies, and the people who release it."""

    def __init__(self, folder: Path):
        self.folder, self.data = folder, folder / "data"
        self.releases = self.data / "releases"
        self.ann, self.ann_public = create_keys(folder / "keys", "ann")
        self.bob, self.bob_public = create_keys(folder / "keys", "bob")
        self.keys = [self.ann_public, self.bob_public]
        self.policies = {
            f"medical|{name}": parse_policy(ROOT / "policies", name, "medical") for name in POLICIES
        }
        self.rows: dict[str, list[dict]] = {}

    def align(self, monkeypatch, weights: bytes, worse: str = "", word: str = "that") -> None:
        """What both stages of the deployment make, with answers that are given.

        worse: a policy under which the capability gate does not pass. word: of the refusals.
        """
        tables = {}
        for key, policy in self.policies.items():
            instruction = {"text": [key], "policy_hash": [policy.content_hash]}
            instructions = pa.table(instruction).replace_schema_metadata({YIELDS: b'{"rules": {}}'})
            filtered = pa.table(instruction | {"selected": [True], "reason": ["kept"]})
            tables[key] = (instructions, filtered)
            self.store("policy_document", key, policy)
            self.store("violating_instructions", key, instructions)
            self.store("filtered_instructions", key, filtered)
        trained = self.checkpoint(tables, weights)
        write_whole(self.data / f"assets/deployed_checkpoint/{NAME}.json", encode(trained))
        made = {}
        for key, policy in self.policies.items():
            rows = [
                r
                | {
                    "prompt": f"{policy.policy_id}: {r['prompt']}",
                    "response": r["response"].replace("help with that", f"help with {word}")
                    if r["arm"] == ALIGNED
                    else r["response"],
                }
                for r in map(distinct, evaluation(**(WORSE if policy.policy_id == worse else {})))
            ]
            self.rows[key] = rows
            made[policy.policy_id] = answers_and_verdicts(rows, trained.checkpoint_id, policy)
        monkeypatch.setattr(
            deployment_report.generations,
            "make",
            lambda context, policy, *_: StageResult(made[policy.policy_id][0], "", {}),
        )
        monkeypatch.setattr(
            deployment_report.judgements,
            "make",
            lambda context, policy, *_: StageResult(made[policy.policy_id][1], "", {}),
        )
        deployment_report.make(
            StageContext(load_settings(environ={}), self.data, deployment=NAME),
            self.policies,
            {key: t[0] for key, t in tables.items()},
            {key: t[1] for key, t in tables.items()},
            trained,
        )

    def checkpoint(self, tables, weights: bytes) -> Checkpoint:
        folder = self.data / "checkpoints" / weights.decode()
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(weights)
        config = {"base_model_name_or_path": BUNDLED, "r": 16, "revision": "r1"}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        pq.write_table(sample_training(3), folder / "training.parquet")
        name = sha256_files(folder, ADAPTER_FILES)[:16]
        own = {
            key: {
                "policy_id": policy.policy_id,
                "domain": policy.domain,
                "policy_hash": policy.content_hash,
                "instructions": sha256_table(tables[key][1]),
            }
            for key, policy in self.policies.items()
        }
        provenance = {
            "model_id": BUNDLED,
            "model_revision": "r1",
            "settings": {"seed": 13},
            "deployment": NAME,
            "policies": own,
            "teacher": "routed",
            "conflicts": [CONFLICT],
            "rerouted": [],
            "unread": 0,
        }
        made = Checkpoint(name, f"checkpoints/{name}", BUNDLED, "r1", provenance)
        (folder / "checkpoint.json").write_text(json.dumps(asdict(made)))
        folder.rename(folder.with_name(name))
        return made

    def store(self, stage: str, key: str, value: PolicyDocument | pa.Table) -> None:
        suffix = "parquet" if isinstance(value, pa.Table) else "json"
        file = self.data / "assets" / stage / f"{key.replace('|', '/')}.{suffix}"
        write_whole(file, encode(value))

    def command(self, *arguments: object, code: int = 0) -> str:
        environ = {"POLICYALIGN_DATA_DIR": str(self.data)}
        done = CliRunner().invoke(main, [str(a) for a in arguments], env=environ)
        assert done.exit_code == code, done.output
        return done.output

    def trusting(self) -> list[object]:
        return [part for key in self.keys for part in ("--key", key)]

    def release(self) -> Path:
        said = self.command("release", NAME, "--by", "Ann", "--key", self.ann, "--json")
        made = json.loads(said)
        assert made["policies"] == list(POLICIES) and made["target"] == NAME
        as_bob = ("--by", "Bob", "--key", self.bob)
        self.command("approve", made["bundle"], *as_bob)
        self.command("publish", made["bundle"], *as_bob)
        return Path(made["bundle"])

    def released_reports(self) -> list[str | None]:
        found = [
            last_released(self.data / f"deployments/{NAME}", "medical", policy, self.data)
            for policy in POLICIES
        ]
        return [report[1] if report else None for report in found]

    def engine(self) -> ScriptedEngine:
        stored = {
            r["prompt"]: r["response"] for rows in self.rows.values() for r in rows
            if r["arm"] == ALIGNED
        }  # fmt: skip
        return ScriptedEngine(lambda prompt, *_: answer(stored.get(prompt, "What?")))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Ward, Path]:
    """A released deployment; tests that alter it take a copy."""
    ward = Ward(tmp_path_factory.mktemp("ward"))
    with pytest.MonkeyPatch.context() as patch:
        ward.align(patch, b"first")
    return ward, ward.release()


@pytest.fixture
def copied(made: tuple[Ward, Path], tmp_path: Path) -> Path:
    """A copy of the bundle, with its ledger."""
    _, bundle = made
    shutil.copytree(bundle.parent, tmp_path / "releases")
    return tmp_path / "releases" / bundle.name


def test_a_bundle_holds_every_policy_with_its_text_rules_answers_and_gates(made):
    ward, bundle = made
    record = read_record(bundle)
    assert record.target == NAME and record.domain == "medical"
    assert [p.policy_id for p in record.policies] == list(POLICIES)
    for policy in ward.policies.values():
        place = bundle / "policies" / policy.policy_id
        assert (place / "policy/policy.txt").read_text() == policy.prompt_text
        rules = json.loads((place / "policy/policy.json").read_text())["rules"]
        assert [r["text"] for r in rules] == [r.text for r in policy.rules]
        assert len(list((place / "statements").glob("*.json"))) == 7
        assert pq.read_metadata(place / "answers/generations.parquet").num_rows > 2000
    assert json.loads((bundle / "deployment.json").read_text())["conflicts"] == [CONFLICT]


def test_every_policy_is_verified_from_its_own_answers(made):
    ward, bundle = made
    checks = verify(bundle, ward.keys)
    assert trusted(checks), [c for c in checks if not c.passed]
    names = {check.name for check in checks}
    for policy in POLICIES:
        assert {f"policy under {policy}", f"gates computed again under {policy}"} <= names
    assert f"the deployment {NAME} of general-conduct, data-privacy" in str(checks)


ALTERATIONS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a policy left out": (
        edit_json("release.json", lambda v: v["policies"].pop()),
        "policies",
        "trained for medical|data-privacy, medical|general-conduct, and the release names "
        "medical|general-conduct",
    ),
    "a policy's text changed": (
        append("policies/data-privacy/policy/policy.txt"),
        "policy under data-privacy",
        "not the text",
    ),
    "answers under a policy changed": (
        append("policies/data-privacy/answers/judgements.parquet"),
        "gates computed again under data-privacy",
        "cannot be read",
    ),
    "policies exchanged": (
        lambda b: [
            (b / "policies/data-privacy").rename(b / "aside"),
            (b / "policies/general-conduct").rename(b / "policies/data-privacy"),
            (b / "aside").rename(b / "policies/general-conduct"),
        ],
        "policy under data-privacy",
        "version differs",
    ),
    "a gate under one policy": (
        edit_json(
            "policies/data-privacy/statements/safety.json",
            lambda v: v["predicate"].update(passed=False),
        ),
        "gates under data-privacy",
        "safety did not pass",
    ),
    "a gate of one policy lost": (
        lambda b: (b / "policies/data-privacy/statements/capability.json").unlink(),
        "gates computed again under data-privacy",
        "capability is not stated",
    ),
    "the page of another deployment": (
        edit_json("deployment.json", lambda v: v.update(deployment="other")),
        "policies",
        "another deployment",
    ),
    "another policy's report": (
        edit_json(
            "policies/data-privacy/report/report.json",
            lambda v: v["header"].update(policy_hash="x"),
        ),
        "report under data-privacy",
        "policy_hash is 'x'",
    ),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_alteration_under_one_policy_is_refused(made, copied: Path, name: str):
    ward, _ = made
    alter, check, sentence = ALTERATIONS[name]
    alter(copied)
    checks = verify(copied, ward.keys)
    assert not trusted(checks)
    assert sentence in {c.name: c.detail for c in checks if c.passed is not True}[check]
    assert {"files"} < {c.name for c in checks if not c.passed}


def test_a_policys_name_is_no_path(copied: Path):
    edit_json("release.json", lambda v: v["policies"][0].update(policy_id="../../x"))(copied)
    with pytest.raises(ReleaseError, match=r"'../../x' is no policy"):
        read_record(copied)


def test_a_gate_that_fails_under_one_policy_keeps_the_deployment_back(tmp_path: Path, monkeypatch):
    ward = Ward(tmp_path)
    ward.align(monkeypatch, b"worse", worse="data-privacy")
    said = ward.command("release", NAME, "--by", "Ann", "--key", ward.ann, code=1)
    assert "Under data-privacy: NOT RELEASABLE" in said
    assert "tasks with one exact answer" in said
    assert not ward.releases.exists()


def test_a_release_without_one_of_the_policies_is_refused(made, tmp_path: Path):
    ward, _ = made
    evidence = gather(NAME, ward.data, load_settings(environ={}), None)
    with pytest.raises(ReleaseError, match=r"trained for medical\|data-privacy, medical\|general"):
        fewer = replace(evidence, policies=evidence.policies[:1])
        write_bundle(fewer, tmp_path / "releases", ward.ann, "Ann")


def test_what_is_missing_is_said_with_its_remedy(made, tmp_path: Path):
    ward, _ = made
    assert "policyalign align legal" in ward.command("release", "legal", "--by", "A", code=1)
    assert "neither a partition nor" in ward.command("release", "../x", "--by", "A", code=1)
    data = shutil.copytree(ward.data, tmp_path / "data")
    (data / f"deployments/{NAME}/assets/generations/medical/data-privacy.parquet").unlink()
    with pytest.raises(LookupError, match="materialize deployment_report of the deployment 'ward'"):
        gather(NAME, data, load_settings(environ={}), None)


def test_an_export_answers_under_each_policy(made):
    ward, bundle = made
    again = answer_again(bundle, ward.engine())
    assert list(again) == list(POLICIES)
    assert all(one.flipped == 0.0 and one.same_text == 1.0 for one in again.values())


def test_papers_name_rules_and_gates_by_their_policy(made):
    ward, bundle = made
    pytest.importorskip("cyclonedx", reason="needs the extra `papers`")
    pytest.importorskip("trestle", reason="needs the extra `papers`")
    facts = read_facts(bundle)
    bom = json.loads(ml_bom(facts))
    found = {c["bom-ref"]: c for c in bom["components"]}
    for policy in facts.record.policies:
        digest = found[f"data/cases:{policy.policy_id}"]["hashes"][0]["content"]
        assert digest == policy.cases_sha256
    assert CONFLICT in bom["metadata"]["component"]["modelCard"]["considerations"][
        "technicalLimitations"
    ]  # fmt: skip
    results = json.loads(assessment_results(facts))["assessment-results"]["results"][0]
    assert len(results["findings"]) == 14
    controls = results["reviewed-controls"]["control-selections"][0]["include-controls"]
    names = [c["control-id"] for c in controls]
    rules = sum(len(p.rules) for p in ward.policies.values())
    assert len(set(names)) == rules and names[0].startswith("general-conduct-")
    folder = bundle.with_name("papers")
    ward.command("papers", NAME, *ward.trusting(), "--out", folder)
    card = (folder / "README.md").read_text()
    for policy in ward.policies.values():
        assert policy.title in card and policy.content_hash in card


def test_released_served_attested_compared_and_revoked(tmp_path: Path, monkeypatch):
    ward = Ward(tmp_path)
    ward.align(monkeypatch, b"first")
    first = ward.release()
    assert ward.released_reports() == [
        f"releases/{first.name}/policies/{policy}/report" for policy in POLICIES
    ]
    served = ward.command("serve", NAME, *ward.trusting())
    assert f"ward@{first.name}" in served and "vllm serve" in served
    old = ward.engine()
    ward.align(monkeypatch, b"second", word="this")
    said = ward.command("diff", f"{NAME}@released", NAME)
    assert "POLICY general-conduct" in said and "POLICY data-privacy" in said
    second = ward.release()
    assert read_record(second).parent is not None
    assert current_bundle(ward.releases, NAME) == second
    with serving() as server:
        server.models[NAME] = ward.engine()
        attest = ("attest", server.url, "--bundle", NAME, *ward.trusting())
        assert "ATTESTED: ward answers as this release" in ward.command(*attest)
        server.models[NAME] = old
        assert "answers as the previous release" in ward.command(*attest, code=1)
        as_bob = ("--by", "Bob", "--key", ward.bob)
        ward.command("revoke", second, *as_bob, "--reason", "answers about doses")
        assert "ATTESTED" in ward.command(*attest)  # the ledger's current release is the first
    assert current_bundle(ward.releases, NAME) == first
    assert ward.released_reports() == [
        f"releases/{first.name}/policies/{policy}/report" for policy in POLICIES
    ]
    assert "revoked by Bob" in ward.command("verify", second, *ward.trusting(), code=1)


def test_a_deployment_is_compared_with_a_partition_and_says_who_left(made, copied: Path):
    ward, bundle = made
    report = bundle / "policies/data-privacy/report"
    said = json.loads(ward.command("diff", bundle, report, "--json", code=1))
    assert said["regression"] and said["left"] == ["general-conduct"]
    assert not said["policies"]["data-privacy"]["regressions"]
    said = json.loads(ward.command("diff", report, bundle, "--json"))
    assert said["joined"] == ["general-conduct"]
    assert "neither a bundle nor" in ward.command("diff", copied.parent, bundle, code=1)
    assert "policyalign align legal" in ward.command("diff", "legal", bundle, code=1)
