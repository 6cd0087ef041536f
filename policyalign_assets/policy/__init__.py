"""Written safety policies: from plain Markdown to typed rules."""

from policyalign_assets.policy.catalog import (
    applicable_domains,
    list_owners,
    list_partitions,
    list_policies,
    list_unread,
)
from policyalign_assets.policy.domains import SHIPPED_DOMAINS, DomainsError, known_domains
from policyalign_assets.policy.errors import Fault, PolicyError
from policyalign_assets.policy.model import KINDS, SEVERITIES, PolicyDocument, Rule
from policyalign_assets.policy.parser import Examined, examine_file, examine_policy, parse_policy
from policyalign_assets.policy.readings import reading_line

__all__ = [
    "KINDS",
    "SEVERITIES",
    "SHIPPED_DOMAINS",
    "DomainsError",
    "Examined",
    "Fault",
    "PolicyDocument",
    "PolicyError",
    "Rule",
    "applicable_domains",
    "examine_file",
    "examine_policy",
    "known_domains",
    "list_owners",
    "list_partitions",
    "list_policies",
    "list_unread",
    "parse_policy",
    "reading_line",
]
