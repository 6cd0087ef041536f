"""Shows what differs between two reports, as text for a terminal or as Markdown."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from policyalign_assets.report.difference import Difference, Flip, GroupChange, RuleChange
from policyalign_assets.report.formatting import NOT_MEASURED, markdown_cell, points, visible

MARKS = {"worse": "WORSE", "better": "better", "no clear change": "", "not compared": NOT_MEASURED}


def as_text(difference: Difference, shown: int) -> str:
    """`shown`: how many flipped cases are printed."""
    lines = [
        f"before  {difference.before}: {difference.lines[0]}",
        f"now     {difference.now}: {difference.lines[1]}",
        "",
        *_regressions(difference),
        "",
        *(f"{change.word} {change.rule_id}: {_words(change)}" for change in difference.rules),
        *(_withdrawn(difference)),
    ]
    if not difference.rules:
        lines.append("No rule was added, changed or withdrawn.")
    lines += [f"{name}: {old} -> {new}" for name, old, new in difference.about]
    lines += ["", f"{'':62}{'points':>26}{'cases':>7}{'p':>9}"]
    lines += [_row(change) for change in (*difference.suites, *difference.by_rule)]
    lines += ["", *_flip_lines(difference, shown)]
    return visible("\n".join(lines))


def as_markdown(difference: Difference, shown: int) -> str:
    """For a merge request. Text of models and policies is escaped."""
    cell = markdown_cell
    lines = [
        f"**{'REGRESSION' if difference.regressions else 'No regression'}**: "
        f"{cell(difference.before)} → {cell(difference.now)}",
        "",
        f"- before: {cell(difference.lines[0])}",
        f"- now: {cell(difference.lines[1])}",
        *(f"- **{cell(sentence)}**" for sentence in difference.regressions),
        "",
        *(f"- {c.word} {cell(c.rule_id)}: {cell(_words(c))}" for c in difference.rules),
        *(f"- {cell(line)}" for line in _withdrawn(difference)),
        *(f"- {cell(name)}: {cell(old)} → {cell(new)}" for name, old, new in difference.about),
        "",
        "| | points, now minus before | cases | worse | better | p | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for change in (*difference.suites, *difference.by_rule):
        paired = change.paired
        cells = (
            change.label,
            points(paired),
            str(paired.n),
            str(paired.only_a),
            str(paired.only_b),
            _p(change),
            MARKS[change.outcome],
        )
        lines.append("| " + " | ".join(cell(text) for text in cells) + " |")
    flips = difference.flips[:shown]
    if flips:
        lines += ["", f"{len(flips)} of {len(difference.flips)} flipped cases:", ""]
        lines += ["| suite | rule | request | before | now |", "| --- | --- | --- | --- | --- |"]
        lines += [
            "| "
            + " | ".join(
                cell(text)
                for text in (
                    f"{f.group} ({'better' if f.better else 'WORSE'})",
                    f.rule_id or "",
                    f.prompt,
                    f.before,
                    f.now,
                )
            )
            + " |"
            for f in flips
        ]
    return "\n".join(lines) + "\n"


def headlines(difference: Difference) -> list[str]:
    """The sentences that stand on the first page of a report."""
    worse = sum(not flip.better for flip in difference.flips)
    found = list(difference.regressions) or ["No suite and no rule got worse (McNemar, Holm)."]
    found.append(
        f"{len(difference.flips)} cases changed their outcome: {worse} got worse, "
        f"{len(difference.flips) - worse} better."
    )
    return found + list(_withdrawn(difference))


def _regressions(difference: Difference) -> Iterator[str]:
    if not difference.regressions:
        yield "No regression."
    for sentence in difference.regressions:
        yield f"REGRESSION: {sentence}"


def _withdrawn(difference: Difference) -> Iterator[str]:
    for rule in difference.withdrawn:
        if rule.asked:
            yield (
                f"Withdrawn {rule.rule_id}: {rule.answered} of {rule.asked} of its requests that "
                "were asked again are answered."
            )
        else:
            yield (
                f"Withdrawn {rule.rule_id}: none of its requests was asked again, so whether they "
                "are answered is not measured."
            )


def _words(change: RuleChange) -> str:
    """The rule's text; where it changed, `[-old-]` and `{+new+}` words."""
    if change.before is None or change.now is None:
        return change.now or change.before or ""
    old, new = change.before.split(), change.now.split()
    parts = []
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new).get_opcodes():
        if tag == "equal":
            parts += old[i1:i2]
            continue
        if i1 < i2:
            parts.append(f"[-{' '.join(old[i1:i2])}-]")
        if j1 < j2:
            parts.append(f"{{+{' '.join(new[j1:j2])}+}}")
    return " ".join(parts)


def _row(change: GroupChange) -> str:
    mark = MARKS[change.outcome]
    n = str(change.paired.n)
    return (
        f"{change.label[:60]:62}{points(change.paired):>26}{n:>7}{_p(change):>9}  {mark}".rstrip()
    )


def _p(change: GroupChange) -> str:
    return "" if change.p_holm is None else f"{change.p_holm:.3g}"


def _flip_lines(difference: Difference, shown: int) -> Iterator[str]:
    total = len(difference.flips)
    if not total:
        yield "No case changed its outcome."
        return
    yield f"Cases that changed their outcome: {total}, of which {min(shown, total)} are shown."
    for flip in difference.flips[:shown]:
        yield from _flip(flip)


def _flip(flip: Flip) -> Iterator[str]:
    word = "better" if flip.better else "WORSE"
    rule = f", {flip.rule_id}" if flip.rule_id else ""
    yield f"{word}  {flip.group}{rule}: {_line(flip.prompt)}"
    yield f"    before: {_line(flip.before)}"
    yield f"    now:    {_line(flip.now)}"


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:299] + "…"
