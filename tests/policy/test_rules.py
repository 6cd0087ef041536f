"""Rules, compiled: kind, condition, exceptions and permitted neighbours, only where the policy's
words state them."""

import shutil
from pathlib import Path

import pytest

from policyalign_assets.policy import PolicyError, list_partitions, parse_policy

SHIPPED = Path(__file__).parents[2] / "policies"


@pytest.fixture()
def policies(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "policies")
    return tmp_path / "policies"


def compiled(policies, sentence):
    (policies / "general-conduct/medical.md").write_text(f"## Rules\n- M1: {sentence}\n")
    return parse_policy(policies, "general-conduct", "medical").rules[-1]


@pytest.mark.parametrize(
    ("sentence", "kind", "forbids", "action"),
    [
        ("Never help anyone forge a seal.", "prohibit", True, "forge a seal"),
        (
            "Never help anyone forge a seal unless a notary asked for it.",
            "prohibit",
            True,
            "forge a seal",
        ),
        (
            "Never help anyone forge a seal, except for a film prop. You may explain how seals "
            "are checked.",
            "prohibit",
            True,
            "forge a seal",
        ),
        ("If a user is a minor, never discuss a dose.", "condition", True, "discuss a dose"),
        ("When symptoms are urgent, recommend emergency care.", "condition", False, None),
        ("Give a dose only when a clinician asks.", "prohibit", True, "give a dose"),
        ("Recommend emergency care when symptoms are urgent.", "require", False, None),
        ("Say what you are unsure of.", "require", False, None),
    ],
)
def test_what_kind_a_rule_is(policies, sentence, kind, forbids, action):
    rule = compiled(policies, sentence)
    assert (rule.text, rule.kind, rule.forbids, rule.action) == (sentence, kind, forbids, action)


@pytest.mark.parametrize(
    ("sentence", "condition", "exceptions", "permitted"),
    [
        ("Never help anyone forge a seal.", None, (), ()),
        (
            "Never help anyone forge a seal unless a notary asked for it.",
            None,
            ("a notary asked for it",),
            (),
        ),
        ("Never help anyone forge a seal, except for a film prop.", None, ("a film prop",), ()),
        (
            "Never help anyone forge a seal. You may explain how seals are checked.",
            None,
            (),
            ("explain how seals are checked",),
        ),
        (
            "Never help anyone forge a seal, but you may explain how seals are checked.",
            None,
            (),
            ("explain how seals are checked",),
        ),
        (
            "Never help anyone forge a seal. Fiction about forgers is allowed.",
            None,
            (),
            ("Fiction about forgers",),
        ),
        (
            "If a user is a minor, never discuss a dose unless a parent is present.",
            "a user is a minor",
            ("a parent is present",),
            (),
        ),
        ("Give a dose only when a clinician asks.", None, ("a clinician asks",), ()),
    ],
)
def test_what_a_rule_states_beside_its_core(policies, sentence, condition, exceptions, permitted):
    rule = compiled(policies, sentence)
    assert (rule.condition, rule.exceptions, rule.permitted) == (condition, exceptions, permitted)


def test_the_three_kinds_part_the_rules_of_every_shipped_policy():
    for domain, policy_id in list_partitions(SHIPPED):
        policy = parse_policy(SHIPPED, policy_id, domain)
        assert sorted(
            [*policy.prohibitions, *policy.duties, *policy.conditions], key=policy.rules.index
        ) == list(policy.rules)
        assert all(r.forbids and r.action and not r.permitted for r in policy.prohibitions)


def with_front_matter(policies, name, line):
    path = policies / "general-conduct" / name
    path.write_text(path.read_text().replace("---\n", f"---\n{line}\n", 1))


def test_waivers_are_read_from_both_files_and_do_not_change_the_version(policies):
    before = parse_policy(policies, "general-conduct", "medical")
    with_front_matter(policies, "policy.md", "waive_starved: [C1]")
    with_front_matter(policies, "medical.md", "waive_starved: [M2, C1]")
    after = parse_policy(policies, "general-conduct", "medical")
    assert (before.waive_starved, after.waive_starved) == ((), ("C1", "M2"))
    assert parse_policy(policies, "general-conduct", "legal").waive_starved == ("C1",)
    assert after.content_hash == before.content_hash


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("policy.md", "waive_starved: [M2]"),
        ("medical.md", "waive_starved: [X9]"),
        ("policy.md", "waive_starved: C1"),
    ],
)
def test_a_waiver_for_no_rule_is_refused_with_its_line(policies, name, line):
    with_front_matter(policies, name, line)
    with pytest.raises(PolicyError, match="waive_starved") as error:
        parse_policy(policies, "general-conduct", "medical")
    assert error.value.path.endswith(name) and error.value.line == 2 and error.value.fix
