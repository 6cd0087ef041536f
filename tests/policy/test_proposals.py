"""A model that labels rules: it quotes, and none of its own words reaches the policy."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_judge import Reply, fake_judge

from policyalign_assets.cli.main import main
from policyalign_assets.policy import Rule, examine_file, parse_policy
from policyalign_assets.policy.importing.proposals import applied, propose

TEXT = "Staff records stay private, and nobody sells them, save where the owner agrees."


@pytest.fixture
def rule(tmp_path: Path) -> Rule:
    (tmp_path / "x.md").write_text(f"## Rules\n\n- A1: {TEXT}\n")
    document = examine_file(tmp_path / "x.md").document
    assert document is not None
    return document.rules[0]


def answer(**said: object) -> str:
    empty = {"kind": "prohibit", "action": None, "condition": None, "exceptions": [], "parts": []}
    return f"Here it is:\n```json\n{json.dumps(empty | said)}\n```"


def test_quotations_of_the_rule_become_its_fields(rule: Rule) -> None:
    said = answer(action="sells them", exceptions=["the owner agrees"])
    (proposal,) = propose([rule], lambda prompts: [said for _ in prompts])
    (made,) = applied(rule, proposal, "a-model")
    assert (made.kind, made.forbids, made.exceptions) == ("prohibit", True, ("the owner agrees",))
    assert made.text == rule.text and proposal.refused == ()
    assert made.source_place == "(kind, action proposed by a-model)"


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        (answer(action="burn the archive"), "'burn the archive' does not stand in the rule"),
        (answer(condition="the archive is full"), "does not stand in the rule"),
        (answer(exceptions=["the king agrees", 7]), "'the king agrees' does not stand"),
        (answer(kind="allow"), "'allow' is no kind of rule"),
        (answer(parts=["Staff records stay private", "burn it"]), "'burn it' does not stand"),
        ("I cannot help with that.", "no JSON object"),
        ("{" * 5000, "no JSON object"),
        ("[1, 2]", "no JSON object"),
    ],
)
def test_words_that_are_no_quotation_are_refused(rule: Rule, said: str, refused: str) -> None:
    (proposal,) = propose([rule], lambda _: [said])
    assert any(refused in each for each in proposal.refused)
    (made,) = applied(rule, proposal, "m")
    for text in (made.text, made.action or "", made.condition or "", *made.exceptions):
        assert "burn" not in text and "king" not in text and "full" not in text


def test_a_rule_that_holds_several_is_split_into_its_own_words(rule: Rule) -> None:
    parts = ["Staff records stay private", "nobody sells them, save where the owner agrees"]
    (proposal,) = propose([rule], lambda _: [answer(parts=parts)])
    made = applied(rule, proposal, "m")
    assert [r.text for r in made] == parts
    assert [r.rule_id for r in made] == ["A1-1", "A1-2"]
    (backwards,) = propose([rule], lambda _: [answer(parts=parts[::-1])])
    assert backwards.parts == ()


def test_what_the_author_wrote_stands(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text(f"## Rules\n\n- A1: {TEXT}\n  - kind: require\n")
    document = examine_file(tmp_path / "x.md").document
    assert document is not None
    (proposal,) = propose(document.rules, lambda _: [answer()])
    assert applied(document.rules[0], proposal, "m")[0].kind == "require"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def test_import_and_lint_ask_the_configured_endpoint(tmp_path: Path, monkeypatch) -> None:
    document = tmp_path / "staff.md"
    document.write_text(f"# Staff\n\n- {TEXT}\n- Never lend a badge.\n")
    monkeypatch.setenv("POLICYALIGN_GENERATOR__MODEL", "reader-1")
    monkeypatch.setenv("POLICYALIGN_MODEL__ID", "some/model")

    def reply(messages: list[dict], _: int) -> Reply:
        if "badge" in messages[-1]["content"]:
            return Reply(answer(action="lend a badge or steal one"))
        return Reply(answer(action="sells them"))

    with fake_judge(reply) as server:
        monkeypatch.setenv("POLICYALIGN_GENERATOR__BASE_URL", server.url)
        policies = str(tmp_path / "policies")
        made = run("import", str(document), "--policy", "staff", "--reader", "--policies", policies)
        linted = run("lint", str(document), "--reader")
    assert made.exit_code == 0, made.output
    assert "proposed by reader-1" in made.output
    assert "refused: 'lend a badge or steal one' does not stand in the rule" in made.output
    draft = (tmp_path / "policies" / "staff" / "policy.md").read_text()
    assert TEXT in draft and "proposed by reader-1" in draft and "steal" not in draft
    with pytest.raises(Exception, match="nobody has reviewed"):
        parse_policy(tmp_path / "policies", "staff", "general")
    assert 'action: "sells them"' in linted.output and TEXT in linted.output


def test_the_bundled_model_is_no_reader(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("- Never lie.\n")
    result = CliRunner().invoke(main, ["lint", str(tmp_path / "x.md"), "--reader"])
    assert result.exit_code == 1 and "reads only its own prompts" in result.output
