"""A policy folder and a domain in, a PolicyDocument out."""

import re
from dataclasses import dataclass
from pathlib import Path

from policyalign_assets.policy.body import Body, read_body
from policyalign_assets.policy.errors import PolicyError
from policyalign_assets.policy.header import Header, read_header, read_shared_header
from policyalign_assets.policy.model import DOMAINS, PolicyDocument, Rule
from policyalign_assets.policy.source import Source, read_source, shown_path

CODE_VERSION = 2  # raise it when new code changes how policies are read

SHARED_NAME = "policy.md"
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MAX_SLUG = 64


@dataclass(frozen=True)
class PolicyFolder:
    """A policy folder whose front matter is sound: policy.md's header and body text, and the domains that have an addendum."""

    header: Header
    body: Source
    addenda: frozenset[str]


def open_policy(policies_dir: Path, policy_id: str) -> PolicyFolder:
    """Raises PolicyError: a bad policy name, a policy.md that is missing or has broken front matter, a stray addendum."""
    if len(policy_id) > _MAX_SLUG or not _SLUG.fullmatch(policy_id):
        problem = f"{policy_id[:80]!r} cannot be the name of a policy"
        mend = f"Name the folder with small letters, digits and single hyphens, {_MAX_SLUG} characters at most, such as 'general-conduct'."
        raise PolicyError(shown_path(policies_dir), None, problem, mend)
    header, body = read_shared_header(read_source(policies_dir, policy_id, SHARED_NAME))
    return PolicyFolder(header, body, _addenda(policies_dir, policy_id, header.domains))


def parse_policy(policies_dir: Path, policy_id: str, domain: str) -> PolicyDocument:
    """Read the policy as it applies to `domain`.

    Raises PolicyError, with the file, the line where one is to blame, and what mends it: whatever is wrong with the policy's files,
    or a domain that the policy does not apply to.
    """
    if domain not in DOMAINS:
        raise PolicyError(
            shown_path(policies_dir),
            None,
            f"{domain[:80]!r} is not a domain",
            f"Use one of these: {', '.join(DOMAINS)}.",
        )
    folder = open_policy(policies_dir, policy_id)
    if domain not in folder.header.domains:
        problem = f"policy {policy_id!r} does not apply to domain {domain!r} (it applies to: {', '.join(folder.header.domains)})"
        mend = f"Choose one of these domains, or add {domain!r} to the domains in the front matter."
        raise PolicyError(folder.body.path, folder.header.domains_line, problem, mend)

    shared = read_body(folder.body, "shared")
    if not shared.declining:
        raise folder.body.error(
            None,
            "there is no section '## Declining'",
            "End the file with '## Declining' and how to decline.",
        )
    header, addendum = folder.header, Body()
    if domain in folder.addenda:
        header, addendum_text = read_header(read_source(policies_dir, policy_id, f"{domain}.md"))
        addendum = read_body(addendum_text, "domain")

    rules = (*shared.rules, *addendum.rules)
    paths = {
        "shared": folder.body.path,
        "domain": shown_path(policies_dir, policy_id, f"{domain}.md"),
    }
    _refuse_duplicates(rules, paths)
    _refuse_unknown_waivers(folder.header, shared.rules, paths["shared"])
    if header is not folder.header:
        _refuse_unknown_waivers(header, rules, paths["domain"])
    return PolicyDocument(
        policy_id=policy_id,
        domain=domain,
        title=folder.header.title,
        owner=header.owner or folder.header.owner,
        effective_date=header.effective_date or folder.header.effective_date,
        references=header.references or folder.header.references,
        preamble=f"{shared.preamble} {addendum.preamble}".strip(),
        rules=rules,
        declining=f"{shared.declining} {addendum.declining}".strip(),
        waive_starved=tuple(dict.fromkeys((*folder.header.waive_starved, *header.waive_starved))),
    )


def _addenda(policies_dir: Path, policy_id: str, domains: tuple[str, ...]) -> frozenset[str]:
    """The domains that have a file. Any other Markdown file is an error: a misspelt addendum must not be passed over in silence."""
    found = set()
    for entry in sorted((policies_dir / policy_id).iterdir()):
        if entry.name == SHARED_NAME or entry.name.startswith(".") or entry.suffix.lower() != ".md":
            continue
        if entry.stem not in domains or entry.suffix != ".md":
            path, shared = (
                shown_path(policies_dir, policy_id, entry.name),
                shown_path(policies_dir, policy_id, SHARED_NAME),
            )
            problem = f"this is an addendum for {entry.stem!r}, a domain that {shared} does not list (it lists: {', '.join(domains)})"
            raise PolicyError(
                path,
                None,
                problem,
                f"List the domain in {shared}, rename the file to a listed domain, or move it away.",
            )
        found.add(entry.stem)
    return frozenset(found)


def _refuse_duplicates(rules: tuple[Rule, ...], paths: dict[str, str]) -> None:
    first: dict[str, Rule] = {}
    for rule in rules:
        earlier = first.setdefault(rule.rule_id, rule)
        if earlier is not rule:
            problem = f"the rule id {rule.rule_id!r} is used here (line {rule.line}) and in {paths[earlier.source]} (line {earlier.line})"
            raise PolicyError(
                paths[rule.source],
                rule.line,
                problem,
                "Give one of the two rules an id of its own.",
            )


def _refuse_unknown_waivers(header: Header, rules: tuple[Rule, ...], path: str) -> None:
    known = {rule.rule_id for rule in rules}
    for rule_id in header.waive_starved:
        if rule_id not in known:
            problem = f"waive_starved names {rule_id[:80]!r}, which is no rule here"
            raise PolicyError(
                path, header.waive_line, problem, f"Name only these: {', '.join(sorted(known))}."
            )
