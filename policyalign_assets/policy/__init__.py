"""Written safety policies: from plain Markdown to typed rules."""

from policyalign_assets.policy.catalog import (
    applicable_domains,
    list_owners,
    list_partitions,
    list_policies,
)
from policyalign_assets.policy.errors import PolicyError
from policyalign_assets.policy.model import DOMAINS, PolicyDocument, Rule
from policyalign_assets.policy.parser import parse_policy

__all__ = [
    "DOMAINS",
    "PolicyDocument",
    "PolicyError",
    "Rule",
    "applicable_domains",
    "list_owners",
    "list_partitions",
    "list_policies",
    "parse_policy",
]
