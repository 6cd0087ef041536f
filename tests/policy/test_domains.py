"""Further domains are a setting of the deployment."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from policyalign_assets.cli.main import main
from policyalign_assets.policy import (
    SHIPPED_DOMAINS,
    DomainsError,
    PolicyError,
    known_domains,
    list_partitions,
    parse_policy,
)
from policyalign_assets.settings import load_settings


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    folder = tmp_path / "policies" / "staff"
    folder.mkdir(parents=True)
    (folder / "policy.md").write_text(
        "---\ntitle: T\nowner: O\ndomains: [general, hr]\n---\n\n## Rules\n\n- A1: Never lie.\n\n"
        "## Declining\n\nDecline.\n"
    )
    (folder / "hr.md").write_text("## Rules\n\n- H1: Never read a payslip.\n")
    return tmp_path / "policies"


def test_without_a_setting_there_are_the_shipped_domains(policies: Path) -> None:
    assert known_domains({}) == SHIPPED_DOMAINS
    with pytest.raises(PolicyError, match="'hr' is not a domain.*POLICYALIGN_DOMAINS"):
        parse_policy(policies, "staff", "general")


def test_a_further_domain_has_partitions_and_addenda(policies: Path, monkeypatch) -> None:
    monkeypatch.setenv("POLICYALIGN_DOMAINS", "hr, education")
    assert known_domains() == (*SHIPPED_DOMAINS, "hr", "education")
    assert list_partitions(policies) == [("general", "staff"), ("hr", "staff")]
    assert [r.rule_id for r in parse_policy(policies, "staff", "hr").rules] == ["A1", "H1"]
    assert load_settings().profile  # it is a known variable
    lint = CliRunner().invoke(
        main, ["lint", "staff", "--domain", "hr", "--policies", str(policies)]
    )
    assert lint.exit_code == 0 and "hr|staff" in lint.output


def test_a_further_domain_is_a_key_of_the_pipelines_partitions(monkeypatch) -> None:
    import click

    from policyalign_assets.evaluation.benchmarks import manifest, shipped_benchmarks
    from policyalign_assets.orchestration.partitions import partitions

    monkeypatch.setenv("POLICYALIGN_DOMAINS", "hr")
    with pytest.raises(click.ClickException, match="the domains are .*, hr"):
        partitions.validate_partition_key("history|staff", None)
    shipped_benchmarks.cache_clear()  # it is read once for each process
    assert any("hr" in benchmark.domains for benchmark in manifest(None))
    shipped_benchmarks.cache_clear()


@pytest.mark.parametrize("name", ["HR", "a b", "policy", "../x", "x" * 33, "a|b"])
def test_a_name_that_cannot_be_a_domain_is_refused(name: str) -> None:
    with pytest.raises(DomainsError, match="Fix: "):
        known_domains({"POLICYALIGN_DOMAINS": name})
