"""The policies of now and what their partitions should be. One broken policy stops no other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from policyalign_assets.policy import (
    PolicyDocument,
    applicable_domains,
    list_policies,
    parse_policy,
)


@dataclass(frozen=True)
class FoundPolicies:
    """`documents`: by partition key. `broken`: policies with a mistake, and the mistake."""

    documents: dict[str, PolicyDocument]
    broken: dict[str, str]

    @property
    def keys(self) -> list[str]:
        return list(self.documents)

    @property
    def policies(self) -> list[str]:
        return sorted({document.policy_id for document in self.documents.values()})


def find_policies(policies_dir: Path, log: Callable[[str], None] = lambda _: None) -> FoundPolicies:
    """Every pair of policy and domain that applies, parsed.

    A policy that cannot be read, for whatever reason, is logged and left as it is: its last good
    state stays. Raises PolicyError where there is no policies folder.
    """
    documents: dict[str, PolicyDocument] = {}
    broken: dict[str, str] = {}
    for policy_id in list_policies(policies_dir):
        try:
            _refuse_unreadable_name(policy_id)
            documents |= {
                f"{domain}|{policy_id}": parse_policy(policies_dir, policy_id, domain)
                for domain in applicable_domains(policies_dir, policy_id)
            }
        except (
            Exception
        ) as error:  # any mistake of one author, or bug of ours, stays with one policy
            shown = os.fsencode(policy_id).decode("utf-8", "backslashreplace")
            broken[shown] = f"{error}" or type(error).__name__
            log(f"skipped: policy {shown}: {broken[shown]}")
    return FoundPolicies(documents, broken)


def _refuse_unreadable_name(policy_id: str) -> None:
    try:
        policy_id.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the folder's name is not UTF-8. Fix: rename it.") from None
