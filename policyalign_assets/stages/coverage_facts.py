"""What the data stages show of their coverage."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa

from policyalign_assets.stages.facts import Facts, image, markdown_table
from policyalign_assets.tables import YIELDS


def yields_of(instructions: pa.Table) -> dict[str, dict]:
    """Per rule, the fields of its RuleYield."""
    return json.loads(instructions.schema.metadata[YIELDS])["rules"]


def synthesis_coverage(instructions: pa.Table, yields: Mapping[str, Mapping]) -> Facts:
    """After synthesis: rows, drafts, diversity and held-out rows per rule, and every reason for which a draft was dropped."""
    from policyalign_assets.synthesis.coverage import FIREWALL_REASONS, coverage

    found = coverage(instructions, yields)
    reasons = sorted({reason for y in yields.values() for reason in y["dropped"]})
    return {
        "instructions per rule, fewest": found.minimum,
        "instructions per rule, Gini": found.uneven,
        "held out": sum(r.heldout for r in found.rules),
        "firewall hits": sum(r.firewall_hits for r in found.rules),
        "coverage": markdown_table(
            (
                "rule",
                "made",
                "twins",
                "neighbours",
                "held out",
                "clusters",
                "effective",
                "distinct-2",
                "self-BLEU",
                "empty cells",
                "refused",
                "starved",
            ),
            [
                (
                    r.rule_id,
                    r.made,
                    r.twins,
                    r.neighbours,
                    r.heldout,
                    r.clusters,
                    _figure(r.effective_clusters),
                    _figure(r.distinct_2),
                    _figure(r.self_bleu),
                    "no grid" if r.empty_cells is None else r.empty_cells,
                    f"{r.refused} of {r.drafted}",
                    "yes" if r.starved else "no",
                )
                for r in found.rules
            ],
        ),
        "dropped drafts": markdown_table(
            (
                "rule",
                *(
                    f"{reason} (firewall)" if reason in FIREWALL_REASONS else reason
                    for reason in reasons
                ),
            ),
            [
                (rule, *(y["dropped"].get(reason, 0) for reason in reasons))
                for rule, y in yields.items()
            ],
        )
        if reasons
        else "none",
    }


def selection_coverage(
    instructions: pa.Table,
    yields: Mapping[str, Mapping],
    filtered: pa.Table,
    scores: pa.Table,
    score: str,
) -> Facts:
    """After filtering: what each rule kept, how often its verdicts flip (Wilson's 95 % interval), and the scores."""
    from policyalign_assets.report.coverage_plot import coverage_plot
    from policyalign_assets.synthesis.coverage import coverage

    found = coverage(instructions, yields, filtered, scores)
    return {
        "selected per rule, fewest": found.minimum,
        "selected per rule, Gini": found.uneven,
        "twins per selected instruction": found.twin_ratio
        if found.twin_ratio is not None
        else "nothing selected",
        "selection": markdown_table(
            ("rule", "made", "selected", "twins selected", "flip rate", "95 % interval", "of"),
            [
                (
                    r.rule_id,
                    r.made,
                    r.selected,
                    r.selected_twins,
                    _figure(r.flips.estimate if r.flips else None),
                    f"{_figure(r.flips.low)} to {_figure(r.flips.high)}"
                    if r.flips and r.flips.n
                    else "not measured",
                    r.flips.n if r.flips else 0,
                )
                for r in found.rules
            ],
        ),
        "coverage plot": image(
            coverage_plot(found, score), "instructions per rule and their scores"
        ),
    }


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"
