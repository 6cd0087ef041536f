"""A policy folder and a domain in, a PolicyDocument out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from policyalign_assets.policy.body import Body, read_body
from policyalign_assets.policy.domains import domains_fix, known_domains
from policyalign_assets.policy.errors import Fault, PolicyError
from policyalign_assets.policy.header import Header, read_header, read_shared_header
from policyalign_assets.policy.model import PolicyDocument, Rule, RuleSource
from policyalign_assets.policy.readings import contradictions, doubts_of
from policyalign_assets.policy.source import Source, read_any_file, read_source, shown_path

CODE_VERSION = 4  # raise it when new code changes how policies are read

SHARED_NAME = "policy.md"
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MAX_SLUG = 64


@dataclass(frozen=True)
class PolicyFolder:
    """A policy folder: policy.md's header and body text, and the domains that have an addendum."""

    header: Header
    body: Source
    addenda: frozenset[str]


@dataclass(frozen=True)
class Examined:
    """What could be read of a policy, and all its faults; errors stop it from being used."""

    document: PolicyDocument | None
    faults: tuple[Fault, ...]

    @property
    def errors(self) -> tuple[Fault, ...]:
        return tuple(fault for fault in self.faults if fault.level == "error")

    @property
    def warnings(self) -> tuple[Fault, ...]:
        return tuple(fault for fault in self.faults if fault.level == "warning")


def parse_policy(policies_dir: Path, policy_id: str, domain: str) -> PolicyDocument:
    """Read the policy as it applies to `domain`.

    Raises PolicyError with every error of the policy's files, each with its file, its line where
    one is to blame, and what corrects it; or where the policy does not apply to the domain.
    """
    found = examine_policy(policies_dir, policy_id, domain)
    if found.errors or found.document is None:
        raise PolicyError.of(found.errors)
    return found.document


def open_policy(policies_dir: Path, policy_id: str) -> PolicyFolder:
    """Raises PolicyError: a bad policy name, a policy.md that is missing or has broken front
    matter, a stray addendum."""
    faults: list[Fault] = []
    folder = _open(policies_dir, policy_id, faults)
    if errors := [fault for fault in faults if fault.level == "error"]:
        raise PolicyError.of(errors)
    return folder


def examine_policy(policies_dir: Path, policy_id: str, domain: str) -> Examined:
    """Read as much of a policy as can be read, with all its faults at once."""
    faults: list[Fault] = []
    try:
        document = _examine(policies_dir, policy_id, domain, faults)
    except PolicyError as error:  # a file that cannot be read at all
        return Examined(None, (*faults, *error.faults))
    return Examined(document, tuple(faults))


def examine_file(file: Path) -> Examined:
    """Read any Markdown or text file as a policy, wherever it stands.

    What only a policy in the policies folder needs (front matter, '## Declining') is a warning.
    """
    try:
        return examine_source(read_any_file(file))
    except PolicyError as error:
        return Examined(None, error.faults)


def examine_source(source: Source) -> Examined:
    """Read the text of a file that stands outside the policies folder, as `examine_file`."""
    faults: list[Fault] = []
    header, rest = read_header(source, faults)
    if not header.found:
        fix = "To use it as a policy, add title, owner and domains, or run 'policyalign import'."
        faults.append(source.warning(None, "the file has no front matter", fix))
    body = read_body(rest, "shared", faults)
    if not body.declining and body.declining_line is None:
        fix = "To use it as a policy, end it with '## Declining' and how to decline."
        faults.append(source.warning(None, "there is no section '## Declining'", fix))
    name = re.sub(r"[^a-z0-9]+", "-", Path(source.path).stem.lower()).strip("-")
    domain = next((d for d in header.domains if d in known_domains()), "general")
    document = _document(name or "policy", domain, [(header, body)], header)
    _check(document, {"shared": source.path}, [body], faults)
    return Examined(replace(document, warnings=_words(faults)), tuple(faults))


def check_name(policies_dir: Path, policy_id: str) -> None:
    """Raises PolicyError where a policy cannot have this name, since it names a folder."""
    if len(policy_id) > _MAX_SLUG or not _SLUG.fullmatch(policy_id):
        problem = f"{policy_id[:80]!r} cannot be the name of a policy"
        fix = (
            f"Name the folder with small letters, digits and single hyphens, {_MAX_SLUG} characters"
            " at most, such as 'general-conduct'."
        )
        raise PolicyError(shown_path(policies_dir), None, problem, fix)


def _open(policies_dir: Path, policy_id: str, faults: list[Fault]) -> PolicyFolder:
    check_name(policies_dir, policy_id)
    source = read_source(policies_dir, policy_id, SHARED_NAME)
    header, body = read_shared_header(source, faults)
    if header.imported and not header.reviewed:
        problem = f"this is a draft imported from {header.imported[:80]!r} that nobody has reviewed"
        fix = "Check each rule, then add 'reviewed: NAME, DATE' to the front matter."
        faults.append(Fault(source.path, header.lines.get("imported"), problem, fix))
    return PolicyFolder(header, body, _addenda(policies_dir, policy_id, header.domains, faults))


def _examine(
    policies_dir: Path, policy_id: str, domain: str, faults: list[Fault]
) -> PolicyDocument | None:
    if domain not in known_domains():
        raise PolicyError(
            shown_path(policies_dir),
            None,
            f"{domain[:80]!r} is not a domain",
            domains_fix(),
        )
    folder = _open(policies_dir, policy_id, faults)
    if folder.header.broken and not folder.body.lines:
        return None  # the front matter is never closed: what follows is unknown
    listed = folder.header.domains
    if listed and domain not in listed and set(listed) <= set(known_domains()):
        raise _not_applicable(folder, policy_id, domain)
    shared = read_body(folder.body, "shared", faults)
    if not shared.declining and shared.declining_line is None:
        fix = "End the file with '## Declining' and how to decline."
        problem = "there is no section '## Declining'"
        faults.append(folder.body.error(None, problem, fix))
    paths = {"shared": folder.body.path}
    header, bodies = folder.header, [shared]
    if domain in folder.addenda:
        header, addendum = _addendum(policies_dir, policy_id, domain, faults)
        paths["domain"] = shown_path(policies_dir, policy_id, f"{domain}.md")
        bodies.append(addendum)
    document = _document(
        policy_id, domain, list(zip((folder.header, header), bodies, strict=False)), header
    )
    _check(document, paths, bodies, faults)
    _refuse_unknown_waivers(folder.header, shared.rules, paths["shared"], faults)
    if header is not folder.header:
        _refuse_unknown_waivers(header, document.rules, paths["domain"], faults)
    return replace(document, warnings=_words(faults))


def _addendum(
    policies_dir: Path, policy_id: str, domain: str, faults: list[Fault]
) -> tuple[Header, Body]:
    try:
        source = read_source(policies_dir, policy_id, f"{domain}.md")
    except PolicyError as error:
        faults += error.faults
        return Header(), Body()
    header, text = read_header(source, faults)
    return header, read_body(text, "domain", faults)


def _not_applicable(folder: PolicyFolder, policy_id: str, domain: str) -> PolicyError:
    listed = ", ".join(folder.header.domains)
    problem = f"policy {policy_id!r} does not apply to domain {domain!r} (it applies to: {listed})"
    fix = f"Choose one of these domains, or add {domain!r} to the domains in the front matter."
    return PolicyError(folder.body.path, folder.header.lines.get("domains"), problem, fix)


def _document(
    policy_id: str, domain: str, parts: Sequence[tuple[Header, Body]], own: Header
) -> PolicyDocument:
    """The shared part, then that of the domain; `own` is the header that overrides."""
    shared = parts[0][0]
    bodies = [body for _, body in parts]
    waived = [rule_id for header, _ in parts for rule_id in header.waive_starved]
    return PolicyDocument(
        policy_id=policy_id,
        domain=domain,
        title=shared.title or bodies[0].title or policy_id,
        owner=own.owner or shared.owner,
        effective_date=own.effective_date or shared.effective_date,
        references=own.references or shared.references,
        preamble=" ".join(body.preamble for body in bodies).strip(),
        rules=tuple(rule for body in bodies for rule in body.rules),
        declining=" ".join(body.declining for body in bodies).strip(),
        waive_starved=tuple(dict.fromkeys(waived)),
        # an addendum's bar replaces the shared one
        gates=tuple({bar: v for header, _ in parts for bar, v in header.gates}.items()),
        approvers=own.approvers or shared.approvers,
    )


def _addenda(
    policies_dir: Path, policy_id: str, domains: tuple[str, ...], faults: list[Fault]
) -> frozenset[str]:
    """The domains that have a file.

    Any other Markdown file is an error: a misspelt addendum must not be passed over in silence.
    """
    found = set()
    for entry in sorted((policies_dir / policy_id).iterdir()):
        if entry.name == SHARED_NAME or entry.name.startswith(".") or entry.suffix.lower() != ".md":
            continue
        if domains and (entry.stem not in domains or entry.suffix != ".md"):
            path = shown_path(policies_dir, policy_id, entry.name)
            shared = shown_path(policies_dir, policy_id, SHARED_NAME)
            problem = (
                f"this is an addendum for {entry.stem!r}, a domain that {shared} does not list"
                f" (it lists: {', '.join(domains)})"
            )
            fix = (
                f"List the domain in {shared}, rename the file to a listed domain, or move it away."
            )
            faults.append(Fault(path, None, problem, fix))
        found.add(entry.stem)
    return frozenset(found)


def _check(
    document: PolicyDocument,
    paths: dict[RuleSource, str] | dict[str, str],
    bodies: Sequence[Body],
    faults: list[Fault],
) -> None:
    """Adds the faults that only the whole policy shows, then the doubts about single rules."""
    path_of = {str(origin): path for origin, path in paths.items()}
    _refuse_duplicates(document.rules, path_of, faults)
    by_id = {rule.rule_id: rule for rule in document.rules}
    for rule in document.rules:
        if rule.limits and rule.limits not in by_id:
            problem = f"{rule.rule_id} limits {rule.limits!r}, which is no rule here"
            fix = "Name the id of a rule of this policy."
            faults.append(Fault(path_of[rule.source], rule.line, problem, fix))
    for first, second in contradictions(document.rules):
        problem = (
            f"{second.rule_id} contradicts {first.rule_id} (line {first.line}) word for word:"
            f" one forbids what the other {'allows' if second.kind == 'permit' else 'demands'}"
        )
        fix = "Delete one of the two, or say when each of them holds."
        faults.append(Fault(path_of[second.source], second.line, problem, fix))
    for body in bodies:
        for rule in body.rules:
            for doubt in doubts_of(by_id.get(rule.rule_id, rule), body.doubts):
                faults.append(replace(doubt, path=path_of[rule.source]))


def _words(faults: Sequence[Fault]) -> tuple[str, ...]:
    return tuple(str(fault) for fault in faults if fault.level == "warning")


def _refuse_duplicates(rules: tuple[Rule, ...], paths: dict[str, str], faults: list[Fault]) -> None:
    first: dict[str, Rule] = {}
    for rule in rules:
        earlier = first.setdefault(rule.rule_id, rule)
        if earlier is not rule:
            problem = (
                f"the rule id {rule.rule_id!r} is used here (line {rule.line}) and in"
                f" {paths[earlier.source]} (line {earlier.line})"
            )
            fix = "Give one of the two rules an id of its own."
            faults.append(Fault(paths[rule.source], rule.line, problem, fix))


def _refuse_unknown_waivers(
    header: Header, rules: tuple[Rule, ...], path: str, faults: list[Fault]
) -> None:
    known = {rule.rule_id for rule in rules}
    for rule_id in header.waive_starved:
        if rule_id not in known:
            problem = f"waive_starved names {rule_id[:80]!r}, which is no rule here"
            fix = f"Name only these: {', '.join(sorted(known))}."
            faults.append(Fault(path, header.lines.get("waive_starved"), problem, fix))
