"""Measures time and memory of de-duplicating and selecting many synthetic rows.

    python benchmarks/million_rows.py --rows 1000000 --rules 10

The rows are made up; a tenth are near copies and a twentieth are exact copies. Each rule is
de-duplicated as in synthesis, written as Parquet, scored at random and selected by `select.sql`.
It prints the seconds, the rows that remain, and the process's peak memory.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from policyalign_assets.filtering.select import select_instructions
from policyalign_assets.settings import FilterSettings
from policyalign_assets.synthesis.duplicates import DuplicateFilter
from policyalign_assets.tables import INSTRUCTIONS, SENSITIVITY

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "el", "in")]
CHUNK = 20_000


def texts(n: int, rng: random.Random):
    """(text, whether it was planted as a copy or near-copy)."""
    last: list[str] = []
    for _ in range(n):
        draw = rng.random()
        if last and draw < 0.05:
            yield rng.choice(last).upper(), True
        elif last and draw < 0.15:
            yield rng.choice(last)[:-1] + "!", True
        else:
            text = (
                " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(14))
                + "."
            )
            last = [*last[-200:], text]
            yield text, False


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rules", type=int, default=10)
    args = parser.parse_args()
    rng = random.Random(0)
    start = time.perf_counter()
    kept = survivors = lost = 0
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("instructions.parquet", "scores.parquet")]
        with (
            pq.ParquetWriter(files[0], INSTRUCTIONS) as instructions,
            pq.ParquetWriter(files[1], SENSITIVITY) as scores,
        ):
            for rule in range(args.rules):
                seen, rows = DuplicateFilter(0.85), []
                for text, planted in texts(args.rows // args.rules, rng):
                    repeats = seen.add(text)
                    survivors += planted and not repeats
                    lost += bool(repeats) and not planted
                    if not repeats:
                        rows.append(
                            {
                                "instruction_id": f"{rule}-{len(rows)}",
                                "rule_id": f"C{rule}",
                                "kind": "violating",
                                "text": text,
                                "split": "train",
                                "policy_hash": "p",
                                "reverse_kl": rng.random(),
                                "flip": rng.random() < 0.5,
                            }
                        )
                    if len(rows) % CHUNK == 0 and rows and not repeats:
                        _write(rows[-CHUNK:], instructions, scores)
                _write(rows[len(rows) // CHUNK * CHUNK :], instructions, scores)
                kept += len(rows)
                print(
                    f"rule {rule + 1}/{args.rules}: {len(rows)} kept, "
                    f"{time.perf_counter() - start:.0f} s, {_peak():.2f} GiB",
                    flush=True,
                )
        deduplicated = time.perf_counter() - start
        del seen, rows
        selected = select_instructions(
            *(pq.read_table(f, columns=_needed(f)) for f in files),
            FilterSettings(per_rule=1000, share=0.5),
        )
    print(
        f"{args.rows} rows in {args.rules} rules: {kept} kept, {survivors} planted copies "
        f"survived, {lost} others dropped\n"
        f"de-duplicated in {deduplicated:.0f} s, "
        f"selected {pc.sum(selected['selected']).as_py()} in "
        f"{time.perf_counter() - start - deduplicated:.1f} s, peak memory {_peak():.2f} GiB"
    )


def _write(rows: list[dict], instructions: pq.ParquetWriter, scores: pq.ParquetWriter) -> None:
    for writer, schema in ((instructions, INSTRUCTIONS), (scores, SENSITIVITY)):
        writer.write_table(
            pa.Table.from_pylist(
                [{k: v for k, v in r.items() if k in schema.names} for r in rows], schema=schema
            )
        )


def _needed(file: Path) -> list[str]:
    return (INSTRUCTIONS if file.stem == "instructions" else SENSITIVITY).names


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
