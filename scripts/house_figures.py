"""Prints figures about the code and the docs: lines, comments, docstrings, annotations, sentences.

    python scripts/house_figures.py [--long]

`--long` lists the sentences of the docs that have more than 35 words.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORDS = 35
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[Function]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def arguments(function: Function) -> list[ast.arg]:
    a = function.args
    return [x for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")]


def comments(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(t.type == tokenize.COMMENT for t in tokens)


def sentences(page: str) -> Iterator[str]:
    """Sentences of a Markdown page, without its code, tables, headings and links' addresses."""
    text = re.sub(r"```.*?```", "", page, flags=re.S)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#|<!--)", line)]
    for block in re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) ", "\n".join(lines)):
        plain = re.sub(r"\]\([^)]*\)", "]", " ".join(block.split()))
        yield from (s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z`*\[])", plain) if s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="list long sentences of the docs")
    show_long = parser.parse_args().long
    files = sorted((ROOT / "policyalign_assets").rglob("*.py"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    trees = [ast.parse(text) for text in texts]
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    modules = [tree for text, tree in zip(texts, trees, strict=True) if text.strip()]
    found = [f for tree in trees for f in functions(tree)]
    given = [a for f in found for a in arguments(f)]
    lengths = sorted((f.end_lineno or f.lineno) - f.lineno + 1 for f in found)
    count = sum(len(text.splitlines()) for text in texts)
    over = sum(len(line) > 120 for line in lines) / len(lines)
    documented = sum(bool(ast.get_docstring(tree)) for tree in modules) / len(modules)
    annotated = sum(a.annotation is not None for a in given) / len(given)
    print("| figure | value |\n| --- | --- |")
    print(f"| lines in files | {count} in {len(files)} |")
    print(f"| mean line, share over 120 | {statistics.mean(map(len, lines)):.0f}, {over:.1%} |")
    print(f"| comments per 100 lines | {100 * sum(map(comments, texts)) / count:.1f} |")
    print(f"| modules with a docstring | {documented:.0%} |")
    print(f"| annotated arguments | {annotated:.0%} |")
    print(f"| lines of a function, 95th percentile | {lengths[int(0.95 * len(lengths))]} |")
    print(f"| most arguments of a function | {max(len(arguments(f)) for f in found)} |")
    pages = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
    said = [(p.name, s) for p in pages for s in sentences(p.read_text(encoding="utf-8"))]
    long = [(name, s) for name, s in said if len(s.split()) > WORDS]
    print(f"| sentences of the docs over {WORDS} words | {len(long)} of {len(said)} |")
    if show_long:
        for name, sentence in long:
            print(f"{name} ({len(sentence.split())} words): {sentence}")


if __name__ == "__main__":
    main()
