"""Who answers for a policy, shown where a person looks: the `owner` of its front matter.

An asset has one list of owners for all its partitions, so it gets those of every policy, as Dagster
wants them: an e-mail address or a team. Whose partition a run is about is the run's tag.
"""

import contextlib
import re
from pathlib import Path

import dagster as dg

from policyalign_assets.orchestration.partitions import PARTITION_TAG, domain_and_policy
from policyalign_assets.policy import PolicyError, list_owners, parse_policy

TAG = "policyalign/owner"
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")


def asset_owners(policies_dir: Path) -> list[str]:
    """Of now, by name; an edit shows when the code location is loaded again.

    None where there is no policies folder.
    """
    return sorted({owner for name in list_owners(policies_dir) if (owner := as_owner(name))})


def as_owner(name: str) -> str | None:
    """ "Clinical Safety Office" as `team:clinical-safety-office`; an e-mail address stays one.

    None where no letter or digit is left.
    """
    if _EMAIL.fullmatch(name):
        return name
    slug = re.sub(r"[\W_]+", "-", name.lower()).strip("-")
    return f"team:{slug}" if slug else None


def note_owner(instance: dg.DagsterInstance, run: dg.DagsterRun, policies_dir: Path) -> None:
    """As a tag of the run, by which the UI finds all runs of one owner.

    A policy with a mistake gets none: its run says the mistake.
    """
    domain, policy_id = domain_and_policy(run.tags.get(PARTITION_TAG, ""))
    if policy_id:
        with contextlib.suppress(PolicyError):
            policy = parse_policy(policies_dir, policy_id, domain)
            instance.add_run_tags(run.run_id, {TAG: policy.owner})
