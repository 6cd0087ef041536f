"""Which policies there are, and which domains each applies to."""

import contextlib
import os
from pathlib import Path

from policyalign_assets.policy.domains import known_domains
from policyalign_assets.policy.errors import PolicyError
from policyalign_assets.policy.header import read_header
from policyalign_assets.policy.parser import SHARED_NAME, open_policy, parse_policy
from policyalign_assets.policy.source import read_source, shown_path


def list_policies(policies_dir: Path) -> list[str]:
    """The names of all folders that hold a policy.md, sorted; hidden folders do not count.

    Raises PolicyError: the policies folder does not exist.
    """
    if not policies_dir.is_dir():
        raise PolicyError(
            shown_path(policies_dir),
            None,
            "there is no policies folder",
            f"Create {policies_dir}, or set the right path.",
        )
    # lexists: a policy.md that is a dead link is listed, so that parsing it can say so.
    return sorted(
        entry.name
        for entry in policies_dir.iterdir()
        if not entry.name.startswith(".") and os.path.lexists(entry / SHARED_NAME)
    )


def applicable_domains(policies_dir: Path, policy_id: str) -> tuple[str, ...]:
    """The domains that the policy applies to, in the order of `known_domains`.

    Raises PolicyError: a bad policy name, broken front matter, a stray addendum.
    """
    listed = open_policy(policies_dir, policy_id).header.domains
    return tuple(domain for domain in known_domains() if domain in listed)


def list_owners(policies_dir: Path) -> list[str]:
    """All owners that policies and addenda name, sorted. A file with a mistake names nobody."""
    found = {""}
    policies = list_policies(policies_dir) if policies_dir.is_dir() else []
    for policy_id, name in (
        (p, n)
        for p in policies
        for n in (SHARED_NAME, *(f"{domain}.md" for domain in known_domains()))
    ):
        if (policies_dir / policy_id / name).exists():
            with contextlib.suppress(PolicyError):
                found.add(read_header(read_source(policies_dir, policy_id, name), [])[0].owner)
    return sorted(found - {""})


def list_partitions(policies_dir: Path) -> list[tuple[str, str]]:
    """Every (domain, policy) pair that applies, by policy and then in the order of `known_domains`.

    Raises PolicyError: the first broken policy, whether in policy.md or in an addendum.
    """
    pairs = [
        (domain, policy_id)
        for policy_id in list_policies(policies_dir)
        for domain in applicable_domains(policies_dir, policy_id)
    ]
    for domain, policy_id in pairs:
        parse_policy(policies_dir, policy_id, domain)
    return pairs


_DOCUMENTS = (".docx", ".doc", ".odt", ".pdf", ".html", ".htm", ".txt", ".rtf")


def list_unread(policies_dir: Path) -> list[str]:
    """Documents in the policies folder that no policy is read from, such as Word files, sorted.

    They take no part until `policyalign import` has made a policy of them.
    """
    if not policies_dir.is_dir():
        return []
    found = [
        entry
        for folder in (policies_dir, *(f for f in policies_dir.iterdir() if f.is_dir()))
        for entry in folder.iterdir()
        if entry.suffix.lower() in _DOCUMENTS and not entry.name.startswith((".", "~"))
    ]
    return sorted(str(entry.relative_to(policies_dir)) for entry in found)
