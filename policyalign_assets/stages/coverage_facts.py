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
    """After synthesis: rows, drafts, diversity and held-out rows per rule.

    The table "drafts" adds up: every draft is kept or dropped for one reason.
    """
    from policyalign_assets.synthesis.coverage import coverage

    found = coverage(instructions, yields)
    return {
        "instructions per rule, fewest": found.minimum,
        "instructions per rule, Gini": found.uneven,
        "held out": sum(r.heldout for r in found.rules),
        "firewall hits": sum(r.firewall_hits for r in found.rules),
        "coverage": markdown_table(
            (
                *("rule", "made", "twins", "neighbours", "held out", "clusters", "effective"),
                *("distinct-2", "self-BLEU", "empty cells", "refused", "starved"),
            ),
            [
                (
                    r.rule_id,
                    r.made,
                    _of(r.twins, r.wanted_twins),
                    _of(r.neighbours, r.wanted_neighbours),
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
        "drafts": _funnel(yields),
    }


def _funnel(yields: Mapping[str, Mapping]) -> dict[str, str]:
    """Per rule: the candidate texts, how many were kept, and how many were dropped per reason."""
    from policyalign_assets.synthesis.coverage import FIREWALL_REASONS
    from policyalign_assets.synthesis.yields import RuleYield

    counts = {rule_id: RuleYield.from_dict(fields) for rule_id, fields in yields.items()}
    reasons = sorted({reason for y in counts.values() for reason in y.dropped})
    titles = [f"{r} (firewall)" if r in FIREWALL_REASONS else r for r in reasons]
    return markdown_table(
        ("rule", "by the author", "drafted", "by templates", "kept", *titles),
        [
            (
                *(rule_id, y.written, y.drafted, y.templated, y.kept),
                *(y.dropped[reason] for reason in reasons),
            )
            for rule_id, y in counts.items()
        ],
    )


def _of(kept: int, wanted: int) -> str:
    return f"{kept} of {wanted}"


def selection_coverage(
    instructions: pa.Table,
    yields: Mapping[str, Mapping],
    filtered: pa.Table,
    scores: pa.Table,
    score: str,
) -> Facts:
    """After filtering: what each rule kept, how often its verdicts flip, and the scores.

    The interval of the flip rate is Wilson's at 95 %.
    """
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
            (
                *("rule", "made", "selected", "twins selected", "flip rate", "95 % interval"),
                *("of", "flip unknown"),
            ),
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
                    r.flips_unscored,
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
