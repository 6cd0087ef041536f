"""Checks that every draft must pass.

They are validation, the firewalls and, if configured, a judge or the attribution to the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policyalign_assets.judges.verdict import Judge
from policyalign_assets.synthesis.attribution import RuleAttribution
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
