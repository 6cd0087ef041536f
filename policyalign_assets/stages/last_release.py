"""Finds the released report that a new one is compared with, for whatever is being made."""

from __future__ import annotations

from policyalign_assets.files import Location
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.report.last_released import last_released
from policyalign_assets.stages.interface import StageContext


def last_release(context: StageContext, policy: PolicyDocument) -> tuple[Location, str] | None:
    """The folder of the report on this policy that was released last, and its name; None if none.

    A deployment has releases of its own, so the one of the policy's partition is none of them. An
    experiment without a release is compared with what is really deployed.
    """
    where = policy.domain, policy.policy_id
    found = last_released(context.results, *where, context.data)
    if found is None and context.deployment is None:
        return last_released(context.data, *where)
    return found
