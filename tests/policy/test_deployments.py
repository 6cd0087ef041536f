"""Which policies form a deployment, and the files that declare one."""

from pathlib import Path

import pytest

from policyalign_assets.policy import parse_policy
from policyalign_assets.policy.conflicts import rule_conflicts
from policyalign_assets.policy.deployments import Deployment, find_deployments

KEYS = ["medical|privacy", "medical|conduct", "legal|conduct"]


def test_without_files_each_domain_is_one_deployment_of_all_its_policies(tmp_path):
    found, broken = find_deployments(KEYS, tmp_path / "absent")
    assert broken == {}
    assert found == {
        "legal": Deployment("legal", "legal", ("conduct",)),
        "medical": Deployment("medical", "medical", ("conduct", "privacy")),
    }
    assert found["medical"].partitions == ("medical|conduct", "medical|privacy")


def test_a_file_declares_a_set_in_its_order_and_replaces_the_default_of_its_domain(tmp_path):
    (tmp_path / "ward.yaml").write_text("domain: medical\npolicies: [privacy, conduct]\n")
    found, broken = find_deployments(KEYS, tmp_path)
    assert broken == {} and list(found) == ["legal", "ward"]
    assert found["ward"] == Deployment("ward", "medical", ("privacy", "conduct"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("ward", "domain: medical\npolicies: [privacy, nothing]\n", "'nothing' does not apply"),
        ("ward", "domain: naval\npolicies: [conduct]\n", "no policy applies to the domain 'naval'"),
        ("ward", "domain: medical\npolicies: []\n", "is empty or names one twice"),
        ("ward", "domain: medical\npolicies: [privacy, privacy]\n", "names one twice"),
        ("ward", "domain: medical\n", "policies: Field required"),
        ("ward", "domain: medical\npolicies: privacy\n", "policies: Input should be a valid list"),
        ("ward", "domain: medical\npolicies: [privacy]\nmodel: x\n", "model: Extra inputs"),
        ("ward", "[medical", "cannot be read"),
        ("ward", "", "write the keys domain"),
        ("Ward_1", "domain: medical\npolicies: [privacy]\n", "is no name of a deployment"),
    ],
)
def test_a_wrong_file_is_named_with_its_fix_and_stops_no_other(tmp_path, name, text, said):
    (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "office.yaml").write_text("domain: legal\npolicies: [conduct]\n")
    found, broken = find_deployments(KEYS, tmp_path)
    assert said in broken[name] and "Fix: " in broken[name] and f"{name}.yaml" in broken[name]
    assert "office" in found and name not in found


def test_while_a_file_is_wrong_its_domain_is_not_put_together_by_default(tmp_path):
    (tmp_path / "ward.yaml").write_text("domain: medical\npolicies: [nothing]\n")
    found, _ = find_deployments(KEYS, tmp_path)
    assert list(found) == ["legal"]


HEADER = "---\ntitle: {0}\nowner: Office\ndomains: [medical]\n---\n\n## Rules\n\n"

END = "\n## Declining\n\nDecline briefly and name the rule.\n"


def policy(folder: Path, name: str, *rules: str):
    (folder / name).mkdir(parents=True)
    lines = "".join(f"- C{n}: {rule}\n" for n, rule in enumerate(rules, 1))
    (folder / name / "policy.md").write_text(HEADER.format(name) + lines + END)
    return parse_policy(folder, name, "medical")


def test_a_planted_conflict_between_two_policies_is_found_and_named(tmp_path):
    strict = policy(
        tmp_path,
        "strict",
        "Never disclose a diagnosis to a relative.",
        "Never forge a signature.",
    )
    open_ = policy(
        tmp_path,
        "open",
        "You may disclose a diagnosis to a relative.",
        "Never help anyone change a dose.",
    )
    (found,) = rule_conflicts([strict, open_])
    assert (found.forbids_in, found.forbidding) == ("strict", "C1")
    assert (found.wanted_in, found.wanting) == ("open", "C1")
    assert "disclose a diagnosis to a relative" in found.sentence


def test_policies_that_forbid_different_things_have_no_conflict():
    folder = Path(__file__).parents[2] / "policies"
    both = [parse_policy(folder, name, "medical") for name in ("general-conduct", "data-privacy")]
    assert list(rule_conflicts(both)) == []
