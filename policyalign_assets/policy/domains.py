"""The domains that policies may apply to: the four that are shipped, and those of a deployment.

`POLICYALIGN_DOMAINS=hr,education` adds two. A domain is one half of a partition's key and the name
of an addendum's file, so its name is as narrow as that of a policy.
"""

import os
import re
from collections.abc import Mapping

SHIPPED_DOMAINS = ("medical", "legal", "financial", "general")
VARIABLE = "POLICYALIGN_DOMAINS"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MAX_NAME = 32
_TAKEN = ("policy",)  # policy.md is the policy itself


class DomainsError(ValueError):
    """A name in POLICYALIGN_DOMAINS that cannot be a domain. The message has the fix."""


def known_domains(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """All domains, the shipped ones first. Raises DomainsError: a name that cannot be one."""
    environ = os.environ if environ is None else environ
    further = [part.strip() for part in environ.get(VARIABLE, "").split(",") if part.strip()]
    for name in further:
        if len(name) > _MAX_NAME or not _NAME.fullmatch(name) or name in _TAKEN:
            raise DomainsError(
                f"{name[:80]!r} in {VARIABLE} cannot be a domain. Fix: use small letters, digits "
                f"and single hyphens, {_MAX_NAME} characters at most, and not 'policy', such as "
                f"{VARIABLE}=hr,education."
            )
    return tuple(dict.fromkeys((*SHIPPED_DOMAINS, *further)))


def domains_fix() -> str:
    """What to do about an unknown domain."""
    return f"Use one of these: {', '.join(known_domains())}. {VARIABLE} adds further ones."
