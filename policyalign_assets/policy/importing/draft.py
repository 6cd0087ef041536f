"""Makes a draft policy of a document, or brings a policy up to date with a newer version of it.

A draft is not trained until `reviewed: NAME, DATE` stands in its front matter. A newer version
keeps the ids and fields of the rules whose text is alike.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from policyalign_assets.files import write_whole
from policyalign_assets.policy.domains import domains_fix, known_domains
from policyalign_assets.policy.errors import Fault, PolicyError
from policyalign_assets.policy.header import Header, read_header
from policyalign_assets.policy.importing.documents import Document, read_document
from policyalign_assets.policy.importing.proposals import Ask, Proposal, applied, propose
from policyalign_assets.policy.importing.versions import Change, matched
from policyalign_assets.policy.model import Rule
from policyalign_assets.policy.parser import SHARED_NAME, check_name, examine_source
from policyalign_assets.policy.reading.reader import Surroundings, read_rule
from policyalign_assets.policy.source import Source, read_source, source_of

DECLINING = (
    "Decline politely, name the rule that applies, and offer a lawful alternative where there is "
    "one."
)
_UNNAMED_OWNER = "To be named"


@dataclass(frozen=True)
class Imported:
    """A draft policy and what its reviewer must know.

    changes: against the policy that stood there before; empty for a first import.
    unplaced: texts of the document that became no rule, with their places.
    """

    text: str
    path: Path
    rules: tuple[Rule, ...]
    notes: tuple[str, ...]
    unplaced: tuple[tuple[str, str], ...]
    changes: tuple[Change, ...] = ()
    faults: tuple[Fault, ...] = ()
    unchanged: bool = False
    proposals: tuple[Proposal, ...] = ()  # of the reader model

    @property
    def kinds(self) -> dict[str, int]:
        return dict(Counter(rule.kind for rule in self.rules))


@dataclass(frozen=True)
class _Before:
    """The policy that stands there already."""

    header: Header = field(default_factory=Header)
    rules: tuple[Rule, ...] = ()
    declining: str = ""
    preamble: str = ""


def import_document(
    file: Path,
    policies_dir: Path,
    policy_id: str,
    *,
    domains: tuple[str, ...] = ("general",),
    owner: str = "",
    title: str = "",
    write: bool = True,
    reader: tuple[str, Ask] | None = None,
) -> Imported:
    """Reads `file` and writes the draft `policies_dir/policy_id/policy.md`.

    reader: name of a model, and how it is asked; it proposes readings of the rules whose words are
    new (see `proposals`).

    Raises PolicyError: a name, domain or document that cannot be used, no rule in the document, or
    a policy of that name that was not imported.
    """
    check_name(policies_dir, policy_id)
    for domain in domains:
        if domain not in known_domains():
            fix = domains_fix()
            raise PolicyError(policy_id, None, f"{domain[:80]!r} is not a domain", fix)
    document = read_document(file)
    before = _before(policies_dir, policy_id)
    examined = examine_source(source_of(str(file), document.text.encode()))
    if examined.document is None:
        raise PolicyError.of(examined.errors)
    policy = examined.document
    placed = [_placed(rule, document) for rule in policy.rules]
    unplaced = tuple((r.text, r.source_place) for r in placed if _is_prose(r))
    rules = tuple(r for r in placed if not _is_prose(r))
    if not rules:
        fix = "Check that it is the right file; rules are sentences such as 'Never ...'."
        raise PolicyError(str(file), None, "no rule was found in it", fix)
    changes = matched(before.rules, rules)
    kept = tuple(change.rule for change in changes if change.rule is not None)
    proposals: tuple[Proposal, ...] = ()
    if reader is not None:
        name, ask = reader
        old = {c.rule.rule_id for c in changes if c.rule is not None and c.word == "same"}
        new = [rule for rule in kept if rule.rule_id not in old]
        proposals = tuple(propose(new, ask))
        by_id = {each.rule_id: each for each in proposals}
        kept = tuple(
            made
            for rule in kept
            for made in (
                applied(rule, by_id[rule.rule_id], name) if rule.rule_id in by_id else [rule]
            )
        )
    same = bool(before.rules) and all(change.word == "same" for change in changes)
    head = replace(
        before.header,
        title=title or before.header.title or document.title or policy.title,
        owner=owner or before.header.owner or _UNNAMED_OWNER,
        domains=before.header.domains or domains,
        reviewed=before.header.reviewed if same else "",
    )
    preamble = before.preamble or policy.preamble
    text = _text(document, head, preamble, kept, before.declining or policy.declining, unplaced)
    path = policies_dir / policy_id / SHARED_NAME
    if write:
        write_whole(path, text.encode())
    return Imported(
        text,
        path,
        kept,
        document.notes,
        unplaced,
        changes if before.rules else (),
        _told(examined.faults, document),
        same,
        proposals,
    )


def _before(policies_dir: Path, policy_id: str) -> _Before:
    path = policies_dir / policy_id / SHARED_NAME
    if not path.exists():
        return _Before()
    source = read_source(policies_dir, policy_id, SHARED_NAME)
    header, body = read_header(source, [])
    if not header.imported:
        problem = f"the policy {policy_id!r} was not imported, so it is not overwritten"
        raise PolicyError(str(path), None, problem, "Choose another name with --policy.")
    found = examine_source(Source(source.path, body.lines, body.numbers)).document
    if found is None:
        return _Before(header)
    return _Before(header, found.rules, found.declining, found.preamble)


def _placed(rule: Rule, document: Document) -> Rule:
    """The rule with the place of the document that it comes from."""
    at = min(rule.line, len(document.places)) - 1
    return replace(rule, source_place=f"{document.name}, {document.places[at]}")


def _is_prose(rule: Rule) -> bool:
    """Whether a text explains something without being a definition."""
    if rule.kind != "define" or "kind" in rule.overruled:
        return False
    again = read_rule(rule.words)
    if any("example" in doubt for doubt in again.doubts):
        return True
    return again.kind != "define" and not re.search(
        r"\b(?:definitions?|glossary|terms)\b", rule.category, re.IGNORECASE
    )


def _told(faults: tuple[Fault, ...], document: Document) -> tuple[Fault, ...]:
    """The reader's doubts with places; what only a finished policy needs is not yet a fault."""
    return tuple(
        replace(
            f, path=document.name, line=None, problem=f"{_place(document, f.line)}: {f.problem}"
        )
        for f in faults
        if f.line is not None
    )


def _place(document: Document, line: int | None) -> str:
    return document.places[min(line or 1, len(document.places)) - 1]


def _text(
    document: Document,
    header: Header,
    preamble: str,
    rules: tuple[Rule, ...],
    declining: str,
    unplaced: tuple[tuple[str, str], ...],
) -> str:
    lines = ["---", *_front_matter(document, header), "---", ""]
    if preamble:
        lines += [_plain_block(preamble), ""]
    lines += ["## Rules", ""]
    category = ""
    for rule in rules:
        if rule.category != category:
            category = rule.category
            lines += [*([""] if lines[-1] else []), f"### {category or 'General'}", ""]
        lines += _rule_lines(rule)
    lines += ["", "## Declining", "", _plain_block(declining or DECLINING)]
    if unplaced:
        lines += ["", "<!-- Not placed: texts of the document that became no rule."]
        lines += [f"{place}: {_commented(text)}" for text, place in unplaced]
        lines += ["-->"]
    return "\n".join(lines) + "\n"


def _front_matter(document: Document, header: Header) -> list[str]:
    lines = [
        f"title: {_quoted(header.title)}",
        f"owner: {_quoted(header.owner)}",
        f"domains: [{', '.join(header.domains)}]",
    ]
    if header.effective_date:
        lines.append(f"effective_date: {header.effective_date}")
    if header.references:
        lines.append(f"references: {json.dumps(list(header.references), ensure_ascii=False)}")
    if header.waive_starved:
        lines.append(f"waive_starved: {json.dumps(list(header.waive_starved))}")
    if header.gates:
        lines.append(f"gates: {json.dumps(dict(header.gates))}")
    if header.approvers:
        lines.append(f"approvers: {json.dumps(list(header.approvers), ensure_ascii=False)}")
    lines.append(f"imported: {_quoted(f'{document.name}, sha256 {document.sha256[:16]}')}")
    if header.reviewed:
        lines.append(f"reviewed: {_quoted(header.reviewed)}")
    return lines


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _rule_lines(rule: Rule) -> list[str]:
    """A rule as a list item, with the fields that its own words would not give again."""
    text = _plain_block(rule.text)
    lines = [f"- {rule.rule_id}: {text}"]
    again = read_rule(text, Surroundings(headings=(rule.category,) if rule.category else ()))
    if (again.kind, again.forbids) != (rule.kind, rule.forbids) or "kind" in rule.overruled:
        lines.append(f"  - kind: {rule.kind}")
    if rule.action and (again.action != rule.action or "action" in rule.overruled):
        lines.append(f"  - action: {rule.action}")
    if rule.condition and (again.condition != rule.condition or "condition" in rule.overruled):
        lines.append(f"  - condition: {rule.condition}")
    if rule.exceptions and (again.exceptions != rule.exceptions or "except" in rule.overruled):
        lines += [f"  - except: {each}" for each in rule.exceptions]
    if rule.severity:
        lines.append(f"  - severity: {rule.severity}")
    lines += [f'  - violates: "{each}"' for each in rule.violates]
    lines += [f'  - allowed: "{each}"' for each in rule.allowed]
    lines.append(f"  - source: {rule.source_place}")
    return lines


def _plain_block(text: str) -> str:
    """Text of the document that cannot open a comment or a block of its own in the draft."""
    text = text.replace("<!--", "<! --").replace("-->", "-- >")
    return re.sub(r"^([#>|-]|\d+[.)] |```)", r"\\\1", text)


def _commented(text: str) -> str:
    return text.replace("<!--", "<! --").replace("-->", "-- >")
