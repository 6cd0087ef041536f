"""Papers are renderings of a bundle: valid, the same each time, and without a made-up word."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard
from test_release_bundle import WORSE, Desk, changed

from policyalign_assets.cli.main import main
from policyalign_assets.releases.papers.annex_iv import SECTIONS, annex_iv
from policyalign_assets.releases.papers.facts import NOT_HELD, read_facts
from policyalign_assets.releases.papers.ml_bom import ml_bom
from policyalign_assets.releases.papers.model_card import model_card
from policyalign_assets.releases.papers.oscal import assessment_results
from policyalign_assets.releases.papers.write import PAPERS, write_papers

pytestmark = pytest.mark.slow

pytest.importorskip("cyclonedx", reason="needs the extra `papers`")
pytest.importorskip("trestle", reason="needs the extra `papers`")


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Desk:
    return Desk(tmp_path_factory.mktemp("papers"))


@pytest.fixture(scope="module")
def bundle(desk: Desk) -> Path:
    return desk.release(desk.evidence())


@pytest.fixture(scope="module")
def waived(desk: Desk) -> Path:
    evidence = desk.evidence(b"waived", WORSE)
    return desk.release(changed(evidence, waivers={"capability": {"by": "Cid", "why": "pilot"}}))


def test_papers_of_a_bundle_are_the_same_each_time(bundle: Path, tmp_path: Path):
    files = write_papers(bundle, tmp_path / "one")
    again = write_papers(bundle, tmp_path / "two")
    assert [f.name for f in files] == list(PAPERS)
    assert [f.read_text() for f in files] == [f.read_text() for f in again]


def test_the_ml_bom_is_valid_and_names_base_data_and_weights(bundle: Path):
    facts = read_facts(bundle)
    bom = json.loads(ml_bom(facts))  # it validates itself against CycloneDX's schema
    assert bom["specVersion"] == "1.6"
    found = {c["bom-ref"]: c for c in bom["components"]}
    assert found["base"]["version"] == facts.record.base.revision
    digest = facts.weights["adapter_model.safetensors"]
    assert found["weights/adapter_model.safetensors"]["hashes"][0]["content"] == digest
    assert found["data/cases"]["hashes"][0]["content"] == facts.record.policies[0].cases_sha256
    card = bom["metadata"]["component"]["modelCard"]
    figures = len(list(facts.measurements))
    assert len(card["quantitativeAnalysis"]["performanceMetrics"]) == figures > 7


def test_oscal_results_are_read_back_by_its_own_library(bundle: Path, waived: Path):
    from trestle.oscal.assessment_results import Model

    for where, failing in ((bundle, 0), (waived, 1)):
        facts = read_facts(where)
        made = Model.model_validate_json(assessment_results(facts))
        (result,) = made.assessment_results.results
        states = [f.target.status.state for f in result.findings]
        assert len(states) == len(facts.gates) == len(result.observations)
        assert sum("not" in str(getattr(s, "value", s)) for s in states) == failing
        controls = result.reviewed_controls.control_selections[0].include_controls
        assert [c.control_id for c in controls] == [name for name, _ in facts.rules]


def test_the_model_card_has_metadata_that_the_hub_reads(bundle: Path, waived: Path):
    facts = read_facts(bundle)
    card = ModelCard(model_card(facts))
    assert card.data.base_model == facts.record.base.model_id
    assert len(card.data.eval_results) == len(list(facts.measurements))
    assert all(name in card.text for name, _ in facts.rules) and facts.rules
    assert "failed, waived by Cid: pilot" in model_card(read_facts(waived))


def test_annex_iv_has_its_nine_points_and_marks_what_is_missing(bundle: Path, waived: Path):
    text = annex_iv(read_facts(bundle))
    assert len(SECTIONS) == 9
    assert all(f"## {n}. {title}" in text for n, (title, _) in enumerate(SECTIONS, 1))
    assert text.count(NOT_HELD) >= 6 and "declaration of conformity\n\n" + NOT_HELD in text
    assert "released by Bob" in text
    assert "capability by Cid: pilot" in annex_iv(read_facts(waived))


def test_text_of_a_policy_stays_text(bundle: Path):
    facts = read_facts(bundle)
    hostile = "<script>alert(1)</script> [x](http://evil.example) \x1b[31m"
    (one,) = facts.policies
    rule = replace(one.policy.rules[0], text=hostile)
    policy = replace(one.policy, rules=(rule,), title=hostile, preamble=hostile, owner=hostile)
    facts = replace(facts, policies=(replace(one, policy=policy),))
    for paper in (model_card, annex_iv):
        text = paper(facts)
        assert "<script" not in text and "\x1b" not in text and "\\[x\\](http" in text
    for paper in (ml_bom, assessment_results):
        assert "\x1b" not in paper(facts)  # escaped, as JSON does


def test_only_a_verified_bundle_gets_papers(desk: Desk, waived: Path):
    keys = ["--key", str(desk.public), "--key", str(desk.other_public)]
    done = CliRunner().invoke(main, ["papers", str(waived), *keys])
    assert done.exit_code == 0, done.output
    folder = waived.with_name(f"{waived.name}.papers")
    assert {f.name for f in folder.iterdir()} == set(PAPERS)
    file = waived / "policy/policy.txt"
    file.write_text(file.read_text() + "More.")
    done = CliRunner().invoke(main, ["papers", str(waived), *keys])
    assert done.exit_code == 1 and "not verified" in done.output
