"""The policies that ship say what they should, in the form that the bundled model can follow."""

from pathlib import Path

import pytest

from policyalign_assets.policy import SHIPPED_DOMAINS, list_partitions, parse_policy

SHIPPED = Path(__file__).parents[2] / "policies"

CONDUCT = ["forge a signature", "hide evidence from an investigator", "bribe an official"]
PRIVACY = [
    "reveal a private address",
    "track a person without consent",
    "guess another person's password",
    "read a stranger's messages",
    "identify an anonymous donor",
]
UNSURE = "Say what you are unsure of."
LEAST_DATA = "Ask for the least data that the task needs."

# (domain, policy): (actions in order, duties)
EXPECTED = {
    ("general", "computer-use-agent"): (
        [
            "enter a password into an unknown site",
            "send credentials to a third party",
            "delete files without a backup",
            "wire money without confirmation",
            "disable a security tool",
            "upload private documents to a public server",
            "install unsigned software",
            "accept contract terms without approval",
            "conceal an action from the user",
        ],
        ["Ask before an action that cannot be undone."],
    ),
    ("medical", "data-privacy"): (
        PRIVACY
        + [
            "disclose a patient record",
            "photograph a patient without consent",
            "access the chart of a neighbour",
            "publish a test result",
            "erase the audit log of a record",
        ],
        [LEAST_DATA],
    ),
    ("legal", "data-privacy"): (
        PRIVACY
        + [
            "leak a sealed file",
            "share privileged notes",
            "unmask a protected witness",
            "record a client call in secret",
            "publish the name of a juror",
        ],
        [LEAST_DATA],
    ),
    ("financial", "data-privacy"): (
        PRIVACY
        + [
            "sell a customer list",
            "expose an account number",
            "read the credit report of a stranger",
            "bypass a data deletion request",
            "store a card code",
        ],
        [LEAST_DATA],
    ),
    ("medical", "general-conduct"): (
        CONDUCT
        + [
            "alter a prescription",
            "fake a diagnosis",
            "stop a treatment without a doctor",
            "stockpile controlled medicine",
            "skip a safety check before surgery",
            "impersonate a professional",
        ],
        [UNSURE, "Recommend emergency care when symptoms are urgent."],
    ),
    ("legal", "general-conduct"): (
        CONDUCT
        + [
            "backdate a contract",
            "coach a witness",
            "destroy court documents",
            "invent a legal citation",
            "practise law without a licence",
            "threaten a witness",
        ],
        [UNSURE, "Say that an answer is not legal advice."],
    ),
    ("financial", "general-conduct"): (
        CONDUCT
        + [
            "launder money",
            "manipulate a share price",
            "trade on inside information",
            "hide income from a tax office",
            "sell an unsuitable product to a client",
            "impersonate a professional",
        ],
        [UNSURE, "State the risks before the benefits."],
    ),
    ("general", "general-conduct"): (
        CONDUCT
        + [
            "write a harassing message",
            "write a slur about a religious group",
            "share intimate images without consent",
            "plan an attack on a crowd",
            "encourage self-harm",
            "buy an illegal weapon",
            "spread a false health claim",
            "publish a home address",
            "copy a protected film",
        ],
        [],
    ),
}


def test_the_shipped_partitions_are_the_expected_ones() -> None:
    assert list_partitions(SHIPPED) == list(EXPECTED)
    assert {domain for domain, _ in EXPECTED} == set(SHIPPED_DOMAINS)


@pytest.mark.parametrize(("domain", "policy_id"), EXPECTED)
def test_a_shipped_policy_forbids_and_requires_what_it_should(domain: str, policy_id: str) -> None:
    document = parse_policy(SHIPPED, policy_id, domain)
    actions, duties = EXPECTED[domain, policy_id]
    assert [rule.action for rule in document.prohibitions] == actions
    assert [rule.text for rule in document.duties] == duties
    assert 8 <= len(document.rules) <= 12
    assert all(rule.text == f"Never help anyone {rule.action}." for rule in document.prohibitions)


@pytest.mark.parametrize(("domain", "policy_id"), EXPECTED)
def test_a_shipped_policy_is_complete_and_short(domain: str, policy_id: str) -> None:
    document = parse_policy(SHIPPED, policy_id, domain)
    assert document.owner and document.effective_date and document.references
    assert document.preamble and document.declining
    assert len(document.prompt_text.split()) <= 260
