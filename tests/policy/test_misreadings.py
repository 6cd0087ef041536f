"""The kinds of misreading that public policies brought to light, by number, and what they led to.

The numbers are those of the measurement that found them (docs/policies.md); the words are ours.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from policyalign_assets.cli.main import main
from policyalign_assets.engine.responses import PromptTooLong
from policyalign_assets.evaluation.template_cases import rule_cases
from policyalign_assets.policy import PolicyDocument, Rule, examine_file, parse_policy
from policyalign_assets.settings import load_settings
from policyalign_assets.stages import violating_instructions
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.stages.run_plan import plan_run

SAMPLES = Path(__file__).parent / "samples"
SETTINGS = load_settings(environ={})
HEAD = "---\ntitle: T\nowner: O\ndomains: [general]\n---\n\n"
TAIL = "\n\n## Declining\n\nDecline politely.\n"

FORBIDDEN = "sell a ticket twice"
# number, name, text of the rules, and the action of the last rule
MISREADINGS = [
    (1, "label", "- Tickets: Never help anyone sell a ticket twice.", FORBIDDEN),
    (2, "must not", "- You must not help anyone sell a ticket twice.", FORBIDDEN),
    (3, "shall not", "- The assistant shall not help anyone sell a ticket twice.", FORBIDDEN),
    (4, "don't", "- Don't help anyone sell a ticket twice.", FORBIDDEN),
    (5, "avoid", "- Avoid selling a ticket twice.", FORBIDDEN),
    (6, "passive", "- Selling a ticket twice is prohibited.", FORBIDDEN),
    (7, "under no circumstances", "- Under no circumstances sell a ticket twice.", FORBIDDEN),
    (8, "decline to", "- Decline to sell a ticket twice.", FORBIDDEN),
    (9, "no", "- No promised seats", "promise seats"),
    (
        10,
        "a leaf under its lead-in",
        "The desk must not be used for:\n\n- Ticket fraud",
        "commit ticket fraud",
    ),
    (11, "bold", "- **Never** help anyone sell a ticket twice.", FORBIDDEN),
    (12, "verbs", "- Never help anyone copy, alter or sell one.", "copy, alter or sell one"),
    (13, "users", "- Never help users sell a ticket twice.", FORBIDDEN),
    (14, "e.g.", "- Never help anyone sell a ticket twice, e.g. a day ticket.", FORBIDDEN),
    (15, "a sentence", "- Never help anyone sell a ticket twice. Offer a refund.", FORBIDDEN),
    (16, "a semicolon", "- Never help anyone sell a ticket twice; offer a refund.", FORBIDDEN),
]  # fmt: skip


@pytest.fixture
def last_rule(tmp_path: Path):
    def read(body: str) -> Rule:
        return document_of(tmp_path, body).rules[-1]

    return read


def document_of(tmp_path: Path, body: str) -> PolicyDocument:
    folder = tmp_path / "policies" / "desk"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.md").write_text(f"{HEAD}## Rules\n\n{body}\n{TAIL}", encoding="utf-8")
    return parse_policy(tmp_path / "policies", "desk", "general")


@pytest.mark.parametrize(
    ("body", "action"),
    [case[2:] for case in MISREADINGS],
    ids=[f"{number:02} {name}" for number, name, *_ in MISREADINGS],
)
def test_01_to_16_prohibitions_are_read_with_their_action(last_rule, body, action) -> None:
    rule = last_rule(body)
    assert (rule.kind, rule.forbids, rule.action) == ("prohibit", True, action)


def test_17_only_if_forbids_everything_but_the_case_that_it_names(last_rule, tmp_path) -> None:
    rule = last_rule("- Give seat numbers **only if** the caller holds the ticket.")
    assert (rule.kind, rule.action) == ("prohibit", "give seat numbers")
    assert rule.exceptions == ("the caller holds the ticket",)
    policy = document_of(tmp_path, "- Give seat numbers only if the caller holds the ticket.")
    asked = [
        case.prompt
        for case in rule_cases(policy.rules[0], policy, 40, seed=1)
        if case.suite in ("violations", "violations_wrapped", "conditions_forbidden")
    ]
    # the allowed case is never the violation
    assert asked and all("holds the ticket" not in x or "not the case" in x for x in asked)


def test_18_what_is_allowed_is_not_the_prohibition_itself(last_rule) -> None:
    rule = last_rule("- Never quote a price, but the price list is allowed.")
    assert (rule.action, rule.permitted) == ("quote a price", ("the price list",))


def test_19_a_condition_may_hold_a_list(last_rule) -> None:
    rule = last_rule("- When names, dates or seats are unclear, ask.")
    assert (rule.kind, rule.condition) == ("condition", "names, dates or seats are unclear")
    assert (rule.forbids, rule.demand) == (False, "ask")


def test_20_a_list_of_times_is_one_condition(last_rule) -> None:
    rule = last_rule("- Before noon, after ten or at the weekend, never call a guest.")
    assert (rule.kind, rule.action) == ("condition", "call a guest")
    assert rule.condition == "before noon, after ten or at the weekend"


def test_21_unless_before_the_main_clause_is_an_exception(last_rule) -> None:
    rule = last_rule("- Unless the manager agrees, never refund a ticket.")
    assert (rule.kind, rule.action, rule.exceptions) == (
        "prohibit",
        "refund a ticket",
        ("the manager agrees",),
    )


def test_22_without_is_an_exception_and_provided_that_a_condition(last_rule) -> None:
    rule = last_rule("- Never refund a ticket without the manager's consent.")
    assert (rule.action, rule.exceptions) == ("refund a ticket", ("the manager's consent",))
    rule = last_rule("- You may refund a ticket, provided that the manager agrees.")
    assert (rule.kind, rule.condition) == ("permit", "the manager agrees")


def test_23_a_trailing_if_is_a_condition(last_rule) -> None:
    rule = last_rule("- Never sell a seat if the guest is a minor.")
    assert (rule.kind, rule.forbids, rule.condition) == ("condition", True, "the guest is a minor")


def test_24_a_permission_is_tied_to_the_rule_that_it_limits(tmp_path) -> None:
    rules = document_of(
        tmp_path, "- A1: Never sell a ticket.\n- A2: You may explain tickets."
    ).rules
    assert (rules[1].kind, rules[1].limits) == ("permit", "A1")
    assert rules[0].permitted == ("explain tickets",)


def test_25_refuse_politely_is_a_duty(last_rule) -> None:
    rule = last_rule("- Refuse politely.")
    assert (rule.kind, rule.forbids, rule.demand) == ("require", False, "refuse politely")


# What had happened to the public files

AS_IT_IS = """# 3 Use of the assistant

## 3.2 Prohibited uses

3.2.1 The assistant must not be used for:

* Ticket fraud
* Threats, including:
    * threats to staff
    * threats to guests

| ID | Rule | Severity |
|----|------|----------|
| PRIV-1 | Never share a guest's address. | high |

## 4 Definitions

**Guest**: anyone who holds a ticket.
"""


def test_a_file_as_it_is_parses_with_headings_numbers_lists_and_tables(tmp_path) -> None:
    (tmp_path / "as-it-is.md").write_text(AS_IT_IS)
    found = examine_file(tmp_path / "as-it-is.md")
    assert found.document is not None and found.errors == ()
    rules = {rule.words: rule for rule in found.document.rules}
    assert rules["Ticket fraud"].kind == rules["threats to guests"].kind == "prohibit"
    shared = rules["Never share a guest's address."]
    assert (shared.rule_id, shared.severity) == ("PRIV-1", "high")
    assert found.document.definitions


@pytest.mark.parametrize("name", ["clinic-release", "vendor-usage", "agent-rules"])
def test_list_items_become_rules_with_actions(name: str) -> None:
    document = examine_file(SAMPLES / f"{name}.md").document
    assert document is not None
    bans = [rule for rule in document.rules if rule.forbids and rule.language == "en"]
    assert bans and all(rule.action for rule in bans)


def test_the_releases_medical_shape_is_trained_and_measured_with_its_labels(tmp_path) -> None:
    lines = [
        "Refunds: Do not promise a refund, change a booking, or waive a fee; refer to a manager.",
        "Do not name another guest; explain the privacy notice.",
    ]
    policy = document_of(tmp_path, "\n".join(f"- {line}" for line in lines))
    assert [rule.action for rule in policy.rules] == [
        "promise a refund, change a booking, or waive a fee",
        "name another guest",
    ]
    plan = plan_run(policy, SETTINGS)
    assert all(planned.trained and planned.measured for planned in plan.rules)
    plan.require_work()


def test_sixty_rules_with_a_comma_after_the_first_verb_keep_their_actions(tmp_path) -> None:
    body = "\n".join(f"- Never help anyone copy, alter or sell ticket {n}." for n in range(60))
    policy = document_of(tmp_path, body)
    assert [r.action for r in policy.rules] == [
        f"copy, alter or sell ticket {n}" for n in range(60)
    ]


def test_sixty_rules_get_steps_and_cases_in_proportion(tmp_path) -> None:
    body = "\n".join(f"- Never help anyone copy, alter or sell ticket {n}." for n in range(60))
    plan = plan_run(document_of(tmp_path, body), SETTINGS)
    assert plan.cost.steps == 6 * SETTINGS.distillation.steps
    assert plan.cases_per_suite == 60 * SETTINGS.evaluation.cases_per_rule == 1200
    assert all(p.cases.cases >= 20 and not p.cases.thin for p in plan.rules)


def test_a_policy_longer_than_the_context_is_refused_before_any_draft(tmp_path) -> None:
    rule = document_of(tmp_path, "- Never help anyone sell a ticket twice.").rules[0]
    policy = document_of(tmp_path, "- Never lie.")
    long = replace(policy, rules=tuple(replace(rule, rule_id=f"R{n}") for n in range(400)))
    said: list[str] = []
    context = StageContext(settings=SETTINGS, data=tmp_path / "data", report=said.append)
    with pytest.raises(PromptTooLong, match="400 rules and .* tokens"):
        violating_instructions.make(context, long)
    assert said == [] and not (tmp_path / "data").exists()


def test_word_and_pdf_files_in_the_folder_are_named(tmp_path) -> None:
    document_of(tmp_path, "- Never lie.")
    (tmp_path / "policies" / "desk" / "old.docx").write_bytes(b"PK")
    (tmp_path / "policies" / "new.pdf").write_bytes(b"%PDF")
    result = CliRunner().invoke(main, ["lint", "--policies", str(tmp_path / "policies")])
    assert "old.docx" in result.output and "new.pdf" in result.output
    assert "policyalign import" in result.output
