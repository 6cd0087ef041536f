"""Checks that every draft must pass: validation, the firewalls and, if configured, a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policyalign_assets.judges.verdict import Judge
from policyalign_assets.synthesis.firewall import Firewall
from policyalign_assets.synthesis.validation import reject_reason


@dataclass(frozen=True)
class DraftChecks:
    """`judge`: of whether a draft fits its rule; None where no judge is configured."""

    language: str | None
    firewalls: Sequence[Firewall]
    judge: Judge | None = None

    def reject_reason(self, text: str) -> str | None:
        """Why validation or a firewall rejects `text`, or None."""
        return reject_reason(text, self.language) or self.firewall_reason(text)

    def firewall_reason(self, text: str) -> str | None:
        hits = (firewall.check(text) for firewall in self.firewalls)
        return next((hit.reason for hit in hits if hit), None)
