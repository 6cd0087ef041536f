"""`policyalign lint`: what it prints, for a policy or any file, and its exit codes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from policyalign_assets.cli.main import main

ROOT = Path(__file__).parents[2]
KEYS = {"id", "text", "kind", "action", "condition", "exception", "measured", "why"}


def lint(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["lint", *arguments])


@pytest.fixture
def file(tmp_path: Path):
    def written(text: str, name: str = "rules.md") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return written


def test_json_has_one_row_per_rule_and_the_problems(file) -> None:
    result = lint(
        file(
            "- P1: Never change a dose unless a doctor agrees.\n"
            "- P2: If a user is a minor, never discuss alcohol.\n- P3: Be kind.\n"
        ),
        "--json",
    )
    made = json.loads(result.stdout)
    assert result.exit_code == 0 and set(made) == {"rules", "problems"}
    assert all(set(row) == KEYS for row in made["rules"])
    first, second, third = made["rules"]
    assert first | {"why": ""} == {
        "id": "P1",
        "text": "Never change a dose unless a doctor agrees.",
        "kind": "prohibit",
        "action": "change a dose",
        "condition": None,
        "exception": "a doctor agrees",
        "measured": True,
        "why": "",
    }
    assert (second["kind"], second["condition"]) == ("condition", "a user is a minor")
    assert not third["measured"] and "no judge reads the rules" in third["why"]
    assert {p["level"] for p in made["problems"]} == {"warning"}


def test_json_shows_the_readable_rules_though_some_are_refused(file) -> None:
    result = lint(
        file("- P1: Never lie.\n- P1: Never steal.\n- P2:\n- P3: Never cheat.\n"), "--json"
    )
    made = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [row["action"] for row in made["rules"]] == ["lie", "steal", "cheat"]
    errors = [p for p in made["problems"] if p["level"] == "error"]
    assert len(errors) == 2 and all(p["line"] and p["fix"] for p in errors)


def test_json_is_printed_though_the_file_cannot_be_read(tmp_path: Path) -> None:
    result = lint(str(tmp_path / "absent.md"), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["rules"] == []


def test_a_policy_is_read_for_all_of_its_domains() -> None:
    result = lint("data-privacy", "--policies", str(ROOT / "policies"), "--json")
    ids = [row["id"] for row in json.loads(result.stdout)["rules"]]
    assert result.exit_code == 0 and {"P1", "M1", "L1", "F1"} <= set(ids)
    assert len(ids) == len(set(ids))


def test_the_shipped_policies_have_no_problem() -> None:
    result = lint("--policies", str(ROOT / "policies"))
    assert result.exit_code == 0
    assert "0 errors, 0 warnings" in result.output


def test_text_output_shows_each_reading_and_each_fault_with_its_line(file) -> None:
    result = lint(file("- P1: Never lie.\n- P2: Prices are secret.\n  - kind: ban\n"))
    assert result.exit_code == 1
    assert "prohibit: lie" in result.output and "trained with requests" in result.output
    assert ":3: 'ban' is not a kind of rule. Fix: " in result.output
    assert "2 rules, 1 of them measured; 1 errors" in result.output


def test_a_policy_that_does_not_exist_is_named() -> None:
    result = lint("no-such-policy", "--policies", str(ROOT / "policies"))
    assert result.exit_code == 1 and "no such file" in result.output


@pytest.mark.slow
def test_a_prompt_longer_than_the_models_context_is_an_error(file) -> None:
    rules = "".join(f"- A{n}: Never sell item number {n} to a customer.\n" for n in range(300))
    short, long = file("- A1: Never lie.\n", "short.md"), file(rules)
    assert lint(short, "--model", "bundled").exit_code == 0
    result = lint(long, "--model", "bundled")
    assert result.exit_code == 1
    assert "300 rules" in result.output and "exceeds the context" in result.output
