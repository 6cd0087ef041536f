"""Reads the structure of a policy's Markdown: headings, lists, tables and the lines above them.

The result is a flat list of entries in the order of the text. Each holds its own words and what it
inherits: the headings above it and the lines that introduce its list, outermost first.
"""

import re
from dataclasses import dataclass, field

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from policyalign_assets.policy.errors import Fault
from policyalign_assets.policy.fields import Fields, add_field, field_name
from policyalign_assets.policy.model import collapse
from policyalign_assets.policy.reading.surroundings import read_lead
from policyalign_assets.policy.source import Source
from policyalign_assets.policy.tables import table_cells

# Only the block structure counts. Three rules would swallow legal text: "</s>" as HTML, "[INST]: x"
# as a link definition, an indented paragraph as code. "inline" is work that nobody reads, since a
# model gets marks as written.
_MARKDOWN = (
    MarkdownIt("commonmark").enable("table").disable(["html_block", "reference", "code", "inline"])
)
_LISTS = ("bullet_list", "ordered_list")
_BOLD_LINE = re.compile(r"(?:\*\*|__)(?P<text>[^*_]{2,80}?)(?:\*\*|__):?")
# List items whose marks Markdown does not know: "(a) ...", "• ...", "3.2 ...".
_ITEM_LINE = re.compile(
    r"(?P<mark>\(?(?:[a-z]|[ivx]{1,5})\)|[a-z]\.(?= )|[•◦▪‣·●○■–](?= )"
    r"|(?=[0-9]{1,3}(?:\.[0-9]{1,3})+[.:)]? )"
    r"|(?=(?:\*\*)?[A-Z]{1,8}-?[0-9]{1,4}(?:[.-][0-9]+)*(?:\*\*)?[:.] ))\s*(?P<text>\S.*)"
)


_NUMBERED = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3})+")


@dataclass
class Entry:
    """One item, table cell or paragraph, at line `index` of the text."""

    text: str
    index: int
    headings: tuple[str, ...] = ()
    lead_ins: tuple[str, ...] = ()
    fields: Fields = field(default_factory=Fields)
    form: str = "item"  # or "prose", "cell", "declining"
    exceptions: tuple[str, ...] = ()  # the items below "..., except:"
    introduces: bool = False  # whether other entries inherit its words


@dataclass
class Outline:
    """All entries of a file, its title (a first heading of level 1) and where headings stand."""

    entries: list[Entry] = field(default_factory=list)
    title: str = ""
    heading_lines: dict[str, int] = field(default_factory=dict)


def read_outline(source: Source, faults: list[Fault]) -> Outline:
    """Adds to `faults` only what stands in fields below rules; any Markdown has an outline."""
    reader = _Reader(source, faults)
    nodes = SyntaxTreeNode(_MARKDOWN.parse(source.text)).children
    # Several headings of level 1 are chapters, and none of them is the title.
    reader.titled = sum(node.type == "heading" and node.tag == "h1" for node in nodes) == 1
    reader.blocks(nodes, ())
    return reader.outline


class _Reader:
    def __init__(self, source: Source, faults: list[Fault]) -> None:
        self.source, self.faults = source, faults
        self.outline = Outline()
        self.headings: list[tuple[int, str]] = []
        self.titled = True

    def blocks(self, nodes: list[SyntaxTreeNode], leads: tuple[str, ...]) -> None:
        """Reads blocks that follow each other; a paragraph before a list may introduce it."""
        lead: str | None = None
        for at, node in enumerate(nodes):
            after = nodes[at + 1] if at + 1 < len(nodes) else None
            if node.type == "heading":
                lead = None
                self._heading(int(node.tag[1:]), collapse(_content(node)), _line(node))
            elif node.type in _LISTS:
                inherited = (*leads, lead) if lead else leads
                self.items(node, inherited, Fields())
                lead = None
            elif node.type == "table":
                self._table(node, (*leads, lead) if lead else leads)
                lead = None
            elif node.type == "paragraph":
                lead = self._paragraph(node, leads, after)
            elif node.type == "blockquote":
                self.blocks(node.children, leads)
            elif node.type in ("fence", "code_block"):
                self._add(Entry(collapse(node.content), _line(node), form="prose"), leads)

    def _heading(self, level: int, text: str, index: int) -> None:
        text = text.strip(" *_#")
        self.outline.heading_lines.setdefault(text, index)
        while self.headings and self.headings[-1][0] >= level:
            self.headings.pop()
        if level == 1 and self.titled and not self.outline.entries:
            self.outline.title = text
            return
        self.headings.append((level, text))

    def _paragraph(
        self, node: SyntaxTreeNode, leads: tuple[str, ...], after: SyntaxTreeNode | None
    ) -> str | None:
        """Adds a paragraph's entries; returns it where it introduces the list behind it."""
        text = _content(node)
        bold = _BOLD_LINE.fullmatch(text.strip())
        if bold and "\n" not in text and not text.rstrip(" *_").endswith(":"):
            self._heading(7, bold["text"], _line(node))
            return None
        head, items = _split_lines(text)
        if items:
            return self._lines(head, items, _line(node), leads)
        whole = collapse(text)
        if after is not None and after.type in (*_LISTS, "table") and introduces(whole):
            return self._lead(whole, _line(node), leads)
        self._add(Entry(whole, _line(node), form="prose"), leads)
        return None

    def _lines(
        self, head: str, items: list[tuple[str, int]], index: int, leads: tuple[str, ...]
    ) -> str | None:
        """Entries of a paragraph whose lines are list items without Markdown's marks."""
        lead = None
        if head and introduces(head):
            lead = self._lead(head, index, leads)
        elif head:
            self._add(Entry(head, index, form="prose"), leads)
        for text, offset in items:
            form = "prose" if _NUMBERED.match(text) else "item"
            self._add(Entry(text, index + offset, form=form), (*leads, lead) if lead else leads)
        last = items[-1][0]
        return last if last.endswith(":") else None

    def _lead(self, text: str, index: int, leads: tuple[str, ...]) -> str:
        if re.search(r",? including(?: but not limited to)?:?$", text) and read_lead(text).kind:
            self._add(Entry(re.sub(r",? including.*$", ".", text), index, introduces=True), leads)
        return text

    def items(self, node: SyntaxTreeNode, leads: tuple[str, ...], outer: Fields) -> None:
        for item in node.children:
            self._item(item, leads, outer)

    def _item(self, item: SyntaxTreeNode, leads: tuple[str, ...], outer: Fields) -> None:
        index = _line(item)
        paragraphs = [child for child in item.children if child.type in ("paragraph", "heading")]
        nested = [child for child in item.children if child.type in _LISTS]
        raw = "\n".join(_content(child) for child in paragraphs)
        head, lines = _split_lines(raw)
        if not head and lines:
            (head, _), lines = lines[0], lines[1:]
        text = head or collapse(raw)
        fields = Fields()
        leaves = [
            leaf for group in nested for leaf in group.children if not self._field(leaf, fields)
        ]
        fields = fields.with_inherited(outer)
        for other in item.children:
            if other.type == "table":
                self._table(other, (*leads, text))
        if not leaves and not (lines and introduces(text)):
            self._add(Entry(text, index, fields=fields), leads)
            for line, offset in lines:
                self._add(Entry(line, index + offset), leads)
            return
        self._parent(text, index, fields, leads, leaves, lines)

    def _parent(
        self,
        text: str,
        index: int,
        fields: Fields,
        leads: tuple[str, ...],
        leaves: list[SyntaxTreeNode],
        lines: list[tuple[str, int]],
    ) -> None:
        """An item with items below it: they are its exceptions, or rules that inherit its words."""
        if read_lead(_without_id(text)).leaf_is_exception:
            said = [
                collapse(_content(c))
                for leaf in leaves
                for c in leaf.children
                if c.type == "paragraph"
            ]
            said += [line for line, _ in lines]
            self._add(
                Entry(text, index, fields=fields, exceptions=tuple(s.rstrip(" .;,") for s in said)),
                leads,
            )
            return
        if not introduces(text) or re.search(r",? including(?: but not limited to)?:?$", text):
            own = re.sub(r",? including(?: but not limited to)?:?$", ".", text)
            self._add(Entry(own, index, fields=fields, introduces=True), leads)
        lead = _without_id(text)
        for line, offset in lines:
            self._add(
                Entry(line, index + offset, fields=Fields().with_inherited(fields)), (*leads, lead)
            )
        for leaf in leaves:
            self._item(leaf, (*leads, lead), fields)

    def _field(self, leaf: SyntaxTreeNode, fields: Fields) -> bool:
        """Whether an item below a rule is a field; it is then added."""
        if len(leaf.children) != 1 or leaf.children[0].type != "paragraph":
            return False
        text = _content(leaf.children[0])
        if field_name(text) is None:
            return False
        add_field(fields, text, _line(leaf), self.source, self.faults)
        return True

    def _table(self, node: SyntaxTreeNode, leads: tuple[str, ...]) -> None:
        rows = [
            [collapse(_content(cell)) for cell in row.children]
            for part in node.children
            for row in part.children
        ]
        for row_number, cell in table_cells(rows):
            fields = Fields()
            index = min(
                _line(node) + row_number + (1 if row_number else 0), len(self.source.lines) - 1
            )
            for said in cell.fields:
                add_field(fields, said, index, self.source, self.faults)
            self._add(
                Entry(cell.text, index, fields=fields, form="cell"),
                leads,
                cell.heading,
                cell.category,
            )

    def _add(
        self, entry: Entry, leads: tuple[str, ...], column: str = "", category: str = ""
    ) -> None:
        if not re.search(r"\w", entry.text):
            return
        entry.headings = tuple(text for _, text in self.headings)
        entry.headings += tuple(x for x in (category, column) if x)
        entry.lead_ins = leads
        self.outline.entries.append(entry)


def introduces(text: str) -> bool:
    """Whether a line introduces the list below it: "You may not use the service for:"."""
    text = text.rstrip(" *_")
    if text.endswith(":"):
        return True
    if text.endswith((".", "!", "?", ";")):
        return False
    return bool(
        re.search(
            r"\b(?:not|never|to|for|must|shall|should|may|the following|following|includes?"
            r"|including|except|unless|if|when|from)$",
            text,
        )
    )


def _without_id(text: str) -> str:
    from policyalign_assets.policy.ids import split_id

    return split_id(text)[1]


def _split_lines(text: str) -> tuple[str, list[tuple[str, int]]]:
    """The words before the first line that is an item of its own, and those items."""
    head: list[str] = []
    items: list[tuple[list[str], int]] = []
    for offset, line in enumerate(text.split("\n")):
        found = _ITEM_LINE.fullmatch(line.strip())
        if found and not (offset == 0 and found["mark"] == "–"):
            items.append(([found["text"] if found["mark"] else line.strip()], offset))
        elif items:
            items[-1][0].append(line)
        else:
            head.append(line)
    if len(items) == 1 and not head:
        return "", [(collapse(" ".join(items[0][0])), items[0][1])]
    return collapse(" ".join(head)), [(collapse(" ".join(lines)), at) for lines, at in items]


def _content(node: SyntaxTreeNode) -> str:
    return "\n".join(child.content for child in node.children if child.type == "inline")


def _line(node: SyntaxTreeNode) -> int:
    return node.map[0] if node.map else 0
