"""Exports a released model as GGUF. The file is read back, and what was read answers the cases."""

from __future__ import annotations

import shutil
from pathlib import Path

from policyalign_assets.engine.gguf_writer import CannotWriteGguf, write_gguf
from policyalign_assets.releases.answer_again import Report
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.export import MOST_FLIPPED, Exported, export
from policyalign_assets.releases.record import read_record
from policyalign_assets.releases.serving import alias_of


def export_gguf(
    bundle: Path,
    target: Path,
    base: Path | None = None,
    most_flipped: float = MOST_FLIPPED,
    report: Report = lambda _: None,
) -> Exported:
    """Writes a folder with one GGUF file to `target`.

    Raises ReleaseError if the model is of a kind that is not written, or does not behave as the
    release.
    """
    name = alias_of(read_record(bundle).target)

    def converted(merged: Path) -> Path:
        folder = merged.parent / "gguf"
        folder.mkdir()
        report("the merged model is written as GGUF")
        try:
            write_gguf(merged, folder / f"{name}.gguf")
        except CannotWriteGguf as error:
            raise ReleaseError(f"This model cannot be exported as GGUF: {error}") from None
        shutil.rmtree(merged)
        return folder

    return export(bundle, target, base, most_flipped, report, "gguf", converted)
