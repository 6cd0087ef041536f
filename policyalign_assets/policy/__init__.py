"""Written safety policies: from plain Markdown to typed rules."""

from policyalign_assets.policy.catalog import (
    applicable_domains,
    list_owners,
    list_partitions,
    list_policies,
    list_unread,
)
from policyalign_assets.policy.errors import Fault, PolicyError
from policyalign_assets.policy.model import DOMAINS, KINDS, SEVERITIES, PolicyDocument, Rule
from policyalign_assets.policy.parser import Examined, examine_file, examine_policy, parse_policy
from policyalign_assets.policy.readings import reading_line

__all__ = [
    "DOMAINS",
    "KINDS",
    "SEVERITIES",
    "Examined",
    "Fault",
    "PolicyDocument",
    "PolicyError",
    "Rule",
    "applicable_domains",
    "examine_file",
    "examine_policy",
    "list_owners",
    "list_partitions",
    "list_policies",
    "list_unread",
    "parse_policy",
    "reading_line",
]
