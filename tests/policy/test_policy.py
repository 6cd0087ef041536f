"""Policies: what the parser reads, and what it refuses."""

import datetime
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from policyalign_assets.policy import (
    PolicyError,
    applicable_domains,
    list_partitions,
    list_policies,
    parse_policy,
)

ROOT = Path(__file__).parents[2]

SHARED = """\
---
title: Test conduct
owner: Test Office
effective_date: 2026-01-31
domains: [medical, legal]
references: [First, Second]
---

Be honest. Keep
these rules.

## Rules

- C1: Never help anyone forge a signature.
- C2: Say what you are
  unsure of.

## Declining

Decline politely.
"""

ADDENDUM = """\
---
owner: Medical Office
---

Care for patients.

## Rules

- M1: Refuse to help anyone fake a diagnosis.

## Declining

Point to a doctor.
"""


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    write(folder, "policy.md", SHARED)
    write(folder, "medical.md", ADDENDUM)
    return folder


def write(policies: Path, name: str, text: str | bytes, policy_id: str = "x") -> None:
    path = policies / policy_id / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def fails(policies: Path, policy_id: str = "x", domain: str = "medical") -> PolicyError:
    """The error that parsing raises; whatever is wrong, it says where and how to fix it in
    plain words."""
    with pytest.raises(PolicyError) as caught:
        parse_policy(policies, policy_id, domain)
    error = caught.value
    where = error.path if error.line is None else f"{error.path}:{error.line}"
    assert str(error).splitlines()[0] == f"{where}: {error.problem}. Fix: {error.fix}"
    assert len(str(error).splitlines()) == len(error.faults)
    assert all(fault.problem and fault.fix.endswith((".", "?")) for fault in error.faults)
    return error


# Reading


def test_shared_rules_and_addendum_become_one_document(policies: Path) -> None:
    document = parse_policy(policies, "x", "medical")
    assert document.prompt_text == (
        "# Test conduct\n\n"
        "Be honest. Keep these rules. Care for patients.\n\n"
        "## Rules\n"
        "- C1: Never help anyone forge a signature.\n"
        "- C2: Say what you are unsure of.\n"
        "- M1: Refuse to help anyone fake a diagnosis.\n\n"
        "## Declining\n"
        "Decline politely. Point to a doctor."
    )
    assert [(rule.rule_id, rule.source, rule.line) for rule in document.rules] == [
        ("C1", "shared", 14),
        ("C2", "shared", 15),
        ("M1", "domain", 9),
    ]
    assert [rule.action for rule in document.prohibitions] == [
        "forge a signature",
        "fake a diagnosis",
    ]
    assert [rule.rule_id for rule in document.duties] == ["C2"]


def test_a_domain_without_addendum_has_the_shared_rules(policies: Path) -> None:
    assert [rule.rule_id for rule in parse_policy(policies, "x", "legal").rules] == ["C1", "C2"]


def test_an_addendum_inherits_what_it_leaves_out(policies: Path) -> None:
    document = parse_policy(policies, "x", "medical")
    assert (document.title, document.owner) == ("Test conduct", "Medical Office")
    assert document.effective_date == datetime.date(2026, 1, 31)
    assert document.references == ("First", "Second")


def test_an_addendum_may_have_rules_alone(policies: Path) -> None:
    write(policies, "medical.md", "## Rules\n- M1: Never lie.\n")
    document = parse_policy(policies, "x", "medical")
    assert [rule.rule_id for rule in document.rules] == ["C1", "C2", "M1"]
    assert document.declining == "Decline politely."


def test_an_empty_preamble_is_left_out(policies: Path) -> None:
    write(policies, "policy.md", SHARED.replace("Be honest. Keep\nthese rules.\n", ""))
    assert parse_policy(policies, "x", "legal").prompt_text.startswith(
        "# Test conduct\n\n## Rules\n- C1: "
    )


@pytest.mark.parametrize(
    ("sentence", "kind", "action"),
    [
        ("Never help anyone forge a signature.", "prohibit", "forge a signature"),
        (
            "DO NOT help anyone read a stranger's messages.",
            "prohibit",
            "read a stranger's messages",
        ),
        ("Never assist anyone who wants to bribe an official.", "prohibit", "bribe an official"),
        ("Refuse to help anyone encourage self-harm.", "prohibit", "encourage self-harm"),
        ("Never explain how to pick a lock.", "prohibit", "pick a lock"),
        ("Never help anyone who lies.", "prohibit", None),
        ("Never help anyone with a forgery.", "prohibit", "commit a forgery"),
        ("Never help anyone forge a seal. Be firm.", "prohibit", "forge a seal"),
        ("Never lie.", "prohibit", "lie"),
        ("Refuse politely.", "require", None),
        ("Say what you are unsure of.", "require", None),
        ("Nevertheless be kind.", "require", None),
    ],
)
def test_kind_and_action_follow_from_the_sentence(
    policies: Path, sentence: str, kind: str, action: str | None
) -> None:
    write(policies, "medical.md", f"## Rules\n- M1: {sentence}\n")
    rule = parse_policy(policies, "x", "medical").rules[-1]
    assert (rule.text, rule.kind, rule.action) == (sentence, kind, action)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|system|>", "</s>", "[INST]: go", "&amp \\n"])
def test_control_tokens_and_marks_are_left_as_written(policies: Path, token: str) -> None:
    write(
        policies,
        "policy.md",
        SHARED.replace("Be honest. ", f"{token}\n").replace("a signature.", f"a {token} mark."),
    )
    document = parse_policy(policies, "x", "legal")
    assert document.preamble == f"{token} Keep these rules."
    assert document.rules[0].action == f"forge a {token} mark"


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(policies: Path) -> None:
    before = parse_policy(policies, "x", "medical")
    write(policies, "policy.md", b"\xef\xbb\xbf" + SHARED.replace("\n", "\r\n").encode())
    assert parse_policy(policies, "x", "medical") == before


# Hashes


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("owner: Test Office", "owner: Another Office"),
        ("effective_date: 2026-01-31", "effective_date: 2027-12-01"),
        ("references: [First, Second]\n", ""),
        ("title: Test conduct", "title:   'Test  conduct'  # a note"),
        ("domains: [medical, legal]", "domains:\n  - legal\n  - medical\n  - general"),
        ("---\ntitle", "<!-- licence\n\nnote -->\n---\ntitle"),
        ("Be honest.", "Be <!-- very -->honest."),
        ("Keep\n", "Keep\n<!-- - C9: Never rest.\n\n## Rules -->\n"),
        ("  unsure of.", "<!-- note -->\n  unsure of."),
        ("Be honest. Keep\nthese rules.", "    Be   honest.\n\n\nKeep these\nrules.  "),
        ("- C2: Say what you are\n  unsure of.", "\n* C2:  Say what\n  you are unsure of.\n"),
    ],
)
def test_an_edit_that_the_model_never_sees_keeps_the_hash(
    policies: Path, old: str, new: str
) -> None:
    before = parse_policy(policies, "x", "medical")
    assert old in SHARED
    write(policies, "policy.md", SHARED.replace(old, new, 1))
    after = parse_policy(policies, "x", "medical")
    assert after.content_hash == before.content_hash
    assert [rule.content_hash for rule in after.rules] == [
        rule.content_hash for rule in before.rules
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("title: Test conduct", "title: Other conduct"),
        ("Be honest.", "Be kind."),
        ("a signature", "a seal"),
        ("- C1", "- C7"),
        ("- C1: Never help anyone forge a signature.\n", ""),
        ("Decline politely.", "Decline firmly."),
    ],
)
def test_an_edit_that_the_model_sees_changes_the_hash(policies: Path, old: str, new: str) -> None:
    before = parse_policy(policies, "x", "medical").content_hash
    assert old in SHARED
    write(policies, "policy.md", SHARED.replace(old, new, 1))
    assert parse_policy(policies, "x", "medical").content_hash != before


def test_a_rule_hash_changes_with_its_own_text_and_id_only(policies: Path) -> None:
    before = [rule.content_hash for rule in parse_policy(policies, "x", "legal").rules]
    assert len(set(before)) == 2
    write(policies, "policy.md", SHARED.replace("a signature", "a seal"))
    after = [rule.content_hash for rule in parse_policy(policies, "x", "legal").rules]
    assert after[0] != before[0] and after[1] == before[1]


def test_lines_are_counted_in_the_file_even_below_comments(policies: Path) -> None:
    write(policies, "policy.md", SHARED.replace("Keep\n", "Keep\n<!-- one\ntwo\n-->\n"))
    assert parse_policy(policies, "x", "legal").rules[0].line == 17


# What is refused

RULE_1 = "- C1: Never help anyone forge a signature."


@pytest.mark.parametrize(
    ("old", "new", "line", "problem", "fix"),
    [
        ("title: Test conduct\n", "", None, "has no title", "title: General conduct"),
        ("title: Test conduct", "title:", None, "has no title", "title: General conduct"),
        ("title: Test conduct", "title: [a, b]", 2, "title is not plain text", "title: some words"),
        ("owner: Test Office\n", "", None, "has no owner", "owner: Clinical"),
        ("domains: [medical, legal]\n", "", None, "has no domains", "domains: [medical"),
        ("domains: [medical, legal]", "domains: []", None, "has no domains", "domains: [medical"),
        (
            "domains: [medical, legal]",
            "domains: medical",
            5,
            "domains is not a list",
            "[first, second]",
        ),
        (
            "domains: [medical, legal]",
            "domains: [medical, space]",
            5,
            "'space' is not a domain",
            "medical, legal, financial, general",
        ),
        (
            "domains: [medical, legal]",
            "'domains': [space]",
            5,
            "'space' is not a domain",
            "medical, legal, financial, general",
        ),
        ("2026-01-31", "2026-13-31", 4, "'2026-13-31' is not a date", "2026-01-31"),
        ("owner: Test Office", "owner: Test: Office", 3, "not valid YAML", "quotes"),
        ("---\ntitle: Test", "---\n\n\ntitle: Test: Test", 4, "not valid YAML", "quotes"),
        ("owner: Test Office", "owner: " + "[" * 5000, 3, "not valid YAML", "key: value"),
        ("owner: Test Office", "owner: &a [*a]", 3, "not valid YAML", "key: value"),
        ("owner: Test Office", "owner: a\x07b", 3, "invisible character U+0007", "Delete it"),
        ("]\n---\n", "]\n", 1, "front matter is never closed", "'---'"),
        (
            "## Declining\n\nDecline politely.\n",
            "",
            None,
            "no section '## Declining'",
            "'## Declining'",
        ),
        ("Decline politely.\n", "", 18, "'## Declining' is empty", "how to decline"),
        ("- C2: Say", "- C2:\n-", 15, "the rule 'C2' has no text", "- C1: "),
        (
            "- C2: Say",
            "- C1: Say",
            15,
            "'C1' is used here (line 15) and in policies/x/policy.md (line 14)",
            "an id of its own",
        ),
        ("Be honest.", "<!-- Be honest.", 9, "never closed", "'-->'"),
    ],
)
def test_a_broken_policy_says_where_and_how_to_fix_it(
    policies: Path, old: str, new: str, line: int | None, problem: str, fix: str
) -> None:
    assert old in SHARED
    write(policies, "policy.md", SHARED.replace(old, new, 1))
    error = fails(policies)
    assert (error.path, error.line) == ("policies/x/policy.md", line), error
    assert problem in error.problem
    assert fix in error.fix


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", None, "is empty"),
        (" \n\n<!-- nothing -->\n", None, "is empty"),
        (b"---\ntitle: caf\xe9\n---\n", 2, "not UTF-8"),
        (SHARED + "a" * 256 * 1024, None, "larger than 256 KiB"),
        ("<!--" * 60_000, 1, "never closed"),
        ("---\n- title\n---\n", 2, "not a list of 'key: value' lines"),
        ("Just words.\n", None, "has no title"),
        (SHARED.split("## Rules")[0], None, "no rules under a heading '## Rules'"),
        (SHARED.split("- C1")[0], 12, "no rules under a heading '## Rules'"),
    ],
)
def test_an_unusable_policy_file_is_refused(
    policies: Path, text: str | bytes, line: int | None, problem: str
) -> None:
    write(policies, "policy.md", text)
    error = fails(policies)
    assert (error.path, error.line) == ("policies/x/policy.md", line)
    assert problem in error.problem


def test_a_file_of_just_256_kib_is_read(policies: Path) -> None:
    write(policies, "policy.md", SHARED + "a" * (256 * 1024 - len(SHARED)))
    assert parse_policy(policies, "x", "legal").declining.startswith("Decline politely. aaa")


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", None, "is empty"),
        ("## Rules\n", 1, "no rules"),
        (
            "## Rules\n- M1: Never lie.\n- C1: Never steal.\n",
            3,
            "(line 3) and in policies/x/policy.md (line 14)",
        ),
        (ADDENDUM.replace("owner: Medical", "owner: : Medical"), 2, "not valid YAML"),
    ],
)
def test_a_broken_addendum_is_named_itself(
    policies: Path, text: str, line: int | None, problem: str
) -> None:
    write(policies, "medical.md", text)
    error = fails(policies)
    assert (error.path, error.line) == ("policies/x/medical.md", line)
    assert problem in error.problem


@pytest.mark.parametrize("name", ["general.md", "medcial.md", "legal.MD", "README.md"])
def test_an_addendum_for_an_unlisted_domain_is_refused(policies: Path, name: str) -> None:
    write(policies, name, ADDENDUM)
    error = fails(policies)
    assert error.path == f"policies/x/{name}"
    assert "does not list (it lists: medical, legal)" in error.problem
    assert "policies/x/policy.md" in error.fix


def test_a_domain_outside_the_policy_is_refused_in_plain_words(policies: Path) -> None:
    error = fails(policies, domain="general")
    assert (
        error.problem
        == "policy 'x' does not apply to domain 'general' (it applies to: medical, legal)"
    )
    assert (error.path, error.line) == ("policies/x/policy.md", 5)


def test_a_missing_policy_is_named(policies: Path) -> None:
    (policies / "bare").mkdir()
    for policy_id in ("absent", "bare"):
        error = fails(policies, policy_id)
        assert (error.path, error.line) == (f"policies/{policy_id}/policy.md", None)
        assert "no such file" in error.problem


@pytest.mark.parametrize(
    "name",
    ["../x", "a|b", "x/../x", "", ".", "X", "x-", "a--b", "x\n", "/etc", "x\x00", "é", "a" * 65],
)
def test_a_hostile_name_is_refused_before_it_touches_the_disk(policies: Path, name: str) -> None:
    write(policies.parent, "policy.md", SHARED)
    error = fails(policies, policy_id=name)
    assert error.path == "policies" and "cannot be the name of a policy" in error.problem
    assert fails(policies, domain=name).problem.endswith("is not a domain")


def test_a_name_of_64_characters_is_allowed(policies: Path) -> None:
    write(policies, "policy.md", SHARED, policy_id="a" * 64)
    assert parse_policy(policies, "a" * 64, "legal").policy_id == "a" * 64


@pytest.mark.parametrize("linked", ["policy.md", "medical.md", "folder"])
def test_a_link_out_of_the_policies_folder_is_not_followed(policies: Path, linked: str) -> None:
    outside = policies.parent / "outside"
    (policies / "x").rename(outside)
    if linked == "folder":
        os.symlink(outside, policies / "x")
    else:
        write(policies, "policy.md", SHARED)
        (policies / "x" / linked).unlink(missing_ok=True)
        os.symlink(outside / linked, policies / "x" / linked)
    assert "leads out of the policies folder" in fails(policies).problem


@pytest.mark.parametrize("target", ["policy.md", "nowhere.md"])
def test_a_link_to_itself_or_nowhere_is_a_missing_file(policies: Path, target: str) -> None:
    (policies / "x" / "policy.md").unlink()
    os.symlink(target, policies / "x" / "policy.md")
    assert "no such file" in fails(policies).problem
    assert list_policies(policies) == ["x"]


def test_an_error_survives_pickling(policies: Path) -> None:
    error = fails(policies, "absent")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.path, copy.fix) == (str(error), error.path, error.fix)


# Catalog


def test_the_catalog_lists_folders_that_hold_a_policy(policies: Path) -> None:
    write(
        policies,
        "policy.md",
        SHARED.replace("[medical, legal]", "[general, medical]"),
        policy_id="a",
    )
    write(policies, "policy.md", SHARED, policy_id=".hidden")
    (policies / "bare").mkdir()
    (policies / "README.md").write_text("Not a policy.")
    assert list_policies(policies) == ["a", "x"]
    assert applicable_domains(policies, "a") == ("medical", "general")
    assert list_partitions(policies) == [
        ("medical", "a"),
        ("general", "a"),
        ("medical", "x"),
        ("legal", "x"),
    ]


def test_the_catalog_refuses_a_broken_policy(policies: Path) -> None:
    write(policies, "medical.md", "## Rules\n- C1: Never lie.\n")
    with pytest.raises(PolicyError, match="policies/x/medical.md:2: "):
        list_partitions(policies)


def test_the_catalog_refuses_a_folder_that_is_not_a_slug(policies: Path) -> None:
    write(policies, "policy.md", SHARED, policy_id="Bad Name")
    with pytest.raises(PolicyError, match="'Bad Name' cannot be the name of a policy"):
        list_partitions(policies)


def test_a_missing_policies_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="policies: there is no policies folder"):
        list_policies(tmp_path / "policies")


@pytest.mark.slow
def test_reading_policies_loads_no_heavy_library() -> None:
    code = (
        "import sys, policyalign_assets.policy; "
        "print(sorted({'dagster', 'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"
