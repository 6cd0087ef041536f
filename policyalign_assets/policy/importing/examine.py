"""Reads a Word, HTML or PDF file as a policy, without writing a draft: what `lint` shows of it."""

from dataclasses import replace
from pathlib import Path

from policyalign_assets.policy.errors import Fault, PolicyError
from policyalign_assets.policy.importing.documents import read_document
from policyalign_assets.policy.parser import Examined, examine_source
from policyalign_assets.policy.source import source_of


def examine_document(file: Path) -> Examined:
    """As `examine_file`; what the import leaves out is a warning."""
    try:
        document = read_document(file)
        found = examine_source(source_of(str(file), document.text.encode()))
    except PolicyError as error:
        return Examined(None, error.faults)
    fix = "Check it before the policy is used."
    notes = tuple(Fault(str(file), None, note, fix, "warning") for note in document.notes)
    # A line of the converted text is no line of the document, so the place is named instead.
    faults = tuple(
        replace(f, line=None, problem=f"{document.places[f.line - 1]}: {f.problem}")
        if f.line is not None and f.line <= len(document.places)
        else f
        for f in found.faults
    )
    return Examined(found.document, (*faults, *notes))
