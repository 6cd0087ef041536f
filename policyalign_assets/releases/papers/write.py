"""Writes all papers of a bundle into a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from policyalign_assets.files import write_whole
from policyalign_assets.releases.papers.annex_iv import annex_iv
from policyalign_assets.releases.papers.facts import Facts, read_facts
from policyalign_assets.releases.papers.ml_bom import ml_bom
from policyalign_assets.releases.papers.model_card import model_card
from policyalign_assets.releases.papers.oscal import assessment_results

PAPERS: dict[str, Callable[[Facts], str]] = {
    "README.md": model_card,
    "annex-iv.md": annex_iv,
    "ml-bom.cdx.json": ml_bom,
    "oscal-assessment-results.json": assessment_results,
}


def write_papers(bundle: Path, folder: Path) -> list[Path]:
    """Writes every paper, or none: a paper that is not valid raises ReleaseError before."""
    facts = read_facts(bundle)
    texts = {name: paper(facts) for name, paper in PAPERS.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(folder / name, text.encode())
    return [folder / name for name in texts]
