"""Deployments: one model under several policies of one domain at once.

Without a file, each domain is one deployment of all policies that apply to it. A file
`deployments/<name>.yaml` declares another set, in the order in which its policies count:

    domain: medical
    policies: [general-conduct, data-privacy]

A domain that a file speaks of has the deployments of its files alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
LARGEST_FILE = 65_536  # bytes


class DeploymentError(ValueError):
    """A deployment's file that cannot be used. The message names the file and the fix."""


@dataclass(frozen=True)
class Deployment:
    """`policies`: ids, in order."""

    name: str
    domain: str
    policies: tuple[str, ...]

    @property
    def partitions(self) -> tuple[str, ...]:
        return tuple(f"{self.domain}|{policy}" for policy in self.policies)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    domain: str
    policies: list[str]


def find_deployments(
    partitions: Iterable[str], folder: Path
) -> tuple[dict[str, Deployment], dict[str, str]]:
    """The deployments by name, and the mistake of each file that cannot be used, by its name.

    `partitions` are the partitions that exist (`<domain>|<policy>`). `folder` need not exist.
    """
    by_domain: dict[str, list[str]] = {}
    for partition in sorted(partitions):
        domain, _, policy = partition.partition("|")
        by_domain.setdefault(domain, []).append(policy)
    declared: dict[str, Deployment] = {}
    broken: dict[str, str] = {}
    spoken_of: set[str] = set()
    for file in sorted(folder.glob("*.yaml")) if folder.is_dir() else ():
        try:
            deployment = _read(file, by_domain)
        except DeploymentError as error:
            broken[file.stem] = str(error)
            spoken_of |= _domain_of(file)
        else:
            declared[deployment.name] = deployment
            spoken_of.add(deployment.domain)
    for domain, policies in by_domain.items():
        if domain not in spoken_of and domain not in declared and domain not in broken:
            declared[domain] = Deployment(domain, domain, tuple(policies))
    return dict(sorted(declared.items())), broken


def _read(file: Path, by_domain: dict[str, list[str]]) -> Deployment:
    if not NAME.fullmatch(file.stem):
        raise DeploymentError(
            f"{file}: {file.stem!r} is no name of a deployment. Fix: use lower-case letters, "
            "digits and hyphens."
        )
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise DeploymentError(
                f"{file} is larger than {LARGEST_FILE} bytes. Fix: list policies in it, not rules."
            )
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        found = _File.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DeploymentError(
            f"{file} cannot be read: {error}. Fix: write it as UTF-8 YAML with the keys domain "
            "and policies."
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DeploymentError(
            f"{file}: {where}: {first['msg']}. Fix: write the keys domain (a name) and policies "
            "(a list of policy ids)."
        ) from None
    known = by_domain.get(found.domain, [])
    if not known:
        raise DeploymentError(
            f"{file}: no policy applies to the domain {found.domain!r}. Fix: one of "
            f"{', '.join(sorted(by_domain))}."
        )
    if not found.policies or len(set(found.policies)) < len(found.policies):
        raise DeploymentError(f"{file}: policies is empty or names one twice. Fix: name each once.")
    if unknown := [p for p in found.policies if p not in known]:
        raise DeploymentError(
            f"{file}: {', '.join(map(repr, unknown))} does not apply to {found.domain}. Fix: one "
            f"of {', '.join(known)}."
        )
    return Deployment(file.stem, found.domain, tuple(found.policies))


def _domain_of(file: Path) -> set[str]:
    """The domain that a broken file speaks of, if that much can be read.

    While somebody mends the file, the domain's policies must not be put together by default.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return set()
    domain = content.get("domain") if isinstance(content, dict) else None
    return {domain} if isinstance(domain, str) else set()
