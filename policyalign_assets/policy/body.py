"""Reads a policy file's body: a preamble, '## Rules', '## Declining'."""

import re
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from policyalign_assets.policy.model import Rule, RuleSource, collapse
from policyalign_assets.policy.source import Source
from policyalign_assets.policy.stems import compile_rule

# Only the block structure counts. Three rules would swallow legal text: "</s>" as HTML, "[INST]: x" as a link definition, an
# indented paragraph as code. "inline" is work that nobody reads, since a model gets marks as written.
_MARKDOWN = MarkdownIt("commonmark").disable(["html_block", "reference", "code", "inline"])
_SECTIONS = ("", "Rules", "Declining")
_RULE = re.compile(r"([A-Z]{1,2}[0-9]+): (.+)")
_HIDDEN_RULE = re.compile(r" ([A-Z]{1,2}[0-9]+): ")
_RULE_FORM = "Write it as '- C1: Never help anyone forge a signature.' (one or two capital letters, a number, a colon, a sentence)."


@dataclass(frozen=True)
class Body:
    """What the body says; `preamble` and `declining` may be empty."""

    preamble: str = ""
    rules: tuple[Rule, ...] = ()
    declining: str = ""


def read_body(source: Source, origin: RuleSource) -> Body:
    """Raises PolicyError: a heading or block that the format does not know, a malformed rule, no rules, '## Declining' without text."""
    headings: dict[str, int] = {}
    paragraphs: dict[str, list[str]] = {"": [], "Declining": []}
    rules: list[Rule] = []
    section = ""
    for node in SyntaxTreeNode(_MARKDOWN.parse(source.text)).children:
        index = node.map[0]
        if node.type == "heading":
            section = _next_section(source, node, section)
            headings[section] = index
        elif section == "Rules" and node.type == "bullet_list":
            rules += [_rule(source, item, origin) for item in node.children]
        elif section == "Rules":
            raise source.error(index, "this text among the rules is not a rule", _RULE_FORM)
        elif node.type == "paragraph":
            paragraphs[section].append(_text(node))
        else:
            raise source.error(
                index,
                "only plain paragraphs may stand here",
                "Write it as a paragraph, or as a rule under '## Rules'.",
            )
    if not rules:
        mend = f"Add a heading '## Rules' with a list of rules below it. {_RULE_FORM}"
        raise source.error(
            headings.get("Rules"), "there are no rules under a heading '## Rules'", mend
        )
    if "Declining" in headings and not paragraphs["Declining"]:
        raise source.error(
            headings["Declining"],
            "the section '## Declining' is empty",
            "Say in a paragraph below it how to decline.",
        )
    return Body(
        collapse(" ".join(paragraphs[""])),
        tuple(rules),
        collapse(" ".join(paragraphs["Declining"])),
    )


def _next_section(source: Source, node: SyntaxTreeNode, section: str) -> str:
    name = _text(node)
    if node.tag != "h2" or name not in _SECTIONS[1:]:
        problem = f"the heading {name[:80]!r} is not part of a policy"
        mend = "Use '## Rules', then '## Declining', and no other heading; the title stands in the front matter."
        raise source.error(node.map[0], problem, mend)
    if _SECTIONS.index(name) <= _SECTIONS.index(section):
        problem = f"the section '## {name}' stands here a second time or too late"
        raise source.error(node.map[0], problem, "Write '## Rules' once, then '## Declining' once.")
    return name


def _rule(source: Source, item: SyntaxTreeNode, origin: RuleSource) -> Rule:
    text = collapse(" ".join(_text(child) for child in item.children if child.type == "paragraph"))
    found = _RULE.fullmatch(text)
    if found is None or any(child.type != "paragraph" for child in item.children):
        raise source.error(item.map[0], f"this is not a rule with an id: {text[:80]!r}", _RULE_FORM)
    rule_id, sentence = found.groups()
    hidden = _HIDDEN_RULE.search(f" {sentence}")
    if hidden:
        problem = f"the rule {rule_id!r} seems to run on into {hidden[1]!r}"
        raise source.error(item.map[0], problem, "Start each rule on its own line with '- '.")
    made = compile_rule(sentence)
    return Rule(
        rule_id,
        sentence,
        made.kind,
        made.action,
        origin,
        source.numbers[item.map[0]],
        made.forbids,
        made.condition,
        made.exceptions,
        made.permitted,
    )


def _text(node: SyntaxTreeNode) -> str:
    return node.children[0].content
