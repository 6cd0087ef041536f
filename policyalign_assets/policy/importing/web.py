"""Reads an HTML page without its navigation, scripts and styles."""

import html
from html.parser import HTMLParser

from policyalign_assets.policy.importing.documents import section_places
from policyalign_assets.policy.importing.pandoc import run_pandoc

_LEFT_OUT = ("script", "style", "nav", "header", "footer", "aside", "noscript", "template", "form")
_EMPTY = frozenset("area base br col embed hr img input link meta source track wbr".split())


def read_html(path: str, data: bytes) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """(Markdown, place of each line, notes)."""
    kept = _Kept()
    kept.feed(data.decode("utf-8", errors="replace"))
    kept.close()
    page = "".join(kept.out).encode()
    options = ("--wrap=none", "--strip-comments")
    text = run_pandoc(path, page, "html-native_divs-native_spans", "gfm-raw_html", *options)
    notes = [f"the page's <{tag}> is left out" for tag in _LEFT_OUT if tag in kept.left_out]
    return text, section_places(text), tuple(notes)


class _Kept(HTMLParser):
    """Copies a page without the elements that hold no text of it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.out: list[str] = []
        self.left_out: set[str] = set()
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.depth or tag in _LEFT_OUT:
            if tag not in _EMPTY:
                self.depth += 1
            if tag in ("nav", "header", "footer", "aside", "form"):
                self.left_out.add(tag)
            return
        self.out.append(self.get_starttag_text() or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self.depth and tag not in _LEFT_OUT:
            self.out.append(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        if self.depth:
            self.depth -= tag not in _EMPTY
        else:
            self.out.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.out.append(html.escape(data, quote=False))

    def handle_entityref(self, name: str) -> None:
        if not self.depth:
            self.out.append(f"&{name};")

    def handle_charref(self, name: str) -> None:
        if not self.depth:
            self.out.append(f"&#{name};")
