"""Checks that every draft must pass.

They are validation, the firewalls and, if configured, a judge or the attribution to the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from policyalign_assets.judges.verdict import Judge
from policyalign_assets.policy import Rule
from policyalign_assets.synthesis.attribution import Attribution, RuleAttribution
from policyalign_assets.synthesis.firewall import Firewall
from policyalign_assets.synthesis.validation import reject_reason


@dataclass(frozen=True)
class DraftChecks:
    """What the drafts of one rule are checked with.

    judge: of whether a draft fits its rule. attribution: the same by likelihoods or words. Each is
    None where it is not configured.
    """

    language: str | None
    firewalls: Sequence[Firewall]
    judge: Judge | None = None
    attribution: RuleAttribution | None = None

    def reject_reason(self, text: str) -> str | None:
        """Why validation or a firewall rejects `text`, or None."""
        return reject_reason(text, self.language) or self.firewall_reason(text)

    def firewall_reason(self, text: str) -> str | None:
        hits = (firewall.check(text) for firewall in self.firewalls)
        return next((hit.reason for hit in hits if hit), None)


@dataclass(frozen=True)
class PolicyChecks:
    """What the drafts of a policy are checked with. Each part is None where it is not configured.

    firewall, own_cases: evaluation prompts to avoid, for all rules and for one rule. judge: of
    whether a draft fits its rule (see `entailment`). attribution: the same without a judge (see
    `attribution`).
    """

    firewall: Firewall | None = None
    own_cases: Callable[[Rule], Firewall] | None = None
    judge: Callable[[Rule], Judge] | None = None
    attribution: Attribution | None = None

    def of_rule(self, rule: Rule, language: str | None) -> DraftChecks:
        """language: of the drafts, or None for any."""
        firewalls = (self.firewall, self.own_cases(rule) if self.own_cases else None)
        return DraftChecks(
            language,
            [firewall for firewall in firewalls if firewall is not None],
            self.judge(rule) if self.judge else None,
            self.attribution.of_rule(rule) if self.attribution else None,
        )


VALIDATION_ONLY = PolicyChecks()
