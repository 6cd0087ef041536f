"""Draws which package imports which, as a Mermaid graph in docs/architecture.md.

    python scripts/package_graph.py            print the graph
    python scripts/package_graph.py --write    replace the graph in the page

An arrow that follows from two others is left out, so that the layers can be seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import grimp

ROOT = "policyalign_assets"
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
BEGIN, END = "<!-- package graph: begin -->", "<!-- package graph: end -->"


def package_imports() -> dict[str, set[str]]:
    """For each package or top-level module, the others that it imports."""
    graph = grimp.build_graph(ROOT)
    imports: dict[str, set[str]] = {
        child.split(".")[1]: set() for child in graph.find_children(ROOT)
    }
    for module in graph.modules:
        for target in graph.find_modules_directly_imported_by(module):
            names = [name.split(".") for name in (module, target)]
            if all(len(parts) > 1 for parts in names) and names[0][1] != names[1][1]:
                imports[names[0][1]].add(names[1][1])
    return imports


def without_implied(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Drops each arrow that a longer path implies. The graph must have no circle."""

    def reachable(start: str) -> set[str]:
        return {r for step in imports[start] for r in {step, *reachable(step)}}

    return {
        name: {t for t in targets if not any(t in reachable(o) for o in targets - {t})}
        for name, targets in imports.items()
    }


def mermaid() -> str:
    arrows = sorted(
        f"    {name} --> {target}"
        for name, targets in without_implied(package_imports()).items()
        for target in targets
    )
    return "\n".join(["```mermaid", "graph TD", *arrows, "```"])


def page_with_graph(page: str) -> str:
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{mermaid()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the graph in the page")
    if parser.parse_args().write:
        PAGE.write_text(page_with_graph(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(mermaid())


if __name__ == "__main__":
    main()
