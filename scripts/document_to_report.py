"""Takes a document all the way: import, review, lint, align, report, in a folder of its own.

    python scripts/document_to_report.py tests/policy/samples/clinic-release.md --domain medical \\
        --reviewed "A. Reviewer, 2026-12-01" --folder build/clinic

`--reviewed` says who has checked the draft; without it the script stops there, as the product does.
`--quick` shrinks every number, to see within minutes that all parts work together: its figures mean
nothing. Settings come from the environment, as for `policyalign align`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

QUICK = {
    "SYNTHESIS__PER_RULE": "4",
    "SYNTHESIS__ROUNDS": "8",
    "FILTERING__PER_RULE": "3",
    "FILTERING__AT_LEAST": "1",
    "DISTILLATION__STEPS": "2",
    "DISTILLATION__BATCH_SIZE": "4",
    "DISTILLATION__MINI_BATCH_SIZE": "4",
    "EVALUATION__CASES_PER_SUITE": "8",
    "EVALUATION__CASES_PER_RULE": "2",
    "EVALUATION__BENIGN_CASES": "8",
    "EVALUATION__CAPABILITY_CASES": "4",
    "EVALUATION__PROBE_CASES": "2",
    "EVALUATION__PRESSURE_CASES": "2",
    "EVALUATION__MAX_NEW_TOKENS": "16",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("document", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("build/document"))
    parser.add_argument("--policy", help="name of the policy; default: that of the file")
    parser.add_argument("--domain", default="general")
    parser.add_argument("--owner", default="Policy office")
    parser.add_argument("--reviewed", help="'NAME, DATE' of who has checked the draft")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    name = args.policy or args.document.stem.lower().replace("_", "-")
    run = Runner(args.folder, args.quick)
    document = str(args.document.resolve())
    owner, domain = ("--owner", args.owner), ("--domain", args.domain)
    run.must("init", ".")
    run.must("import", document, "--policy", name, *domain, *owner)
    if not args.reviewed:
        print("The draft waits for a review: run this again with --reviewed 'NAME, DATE'.")
        return 1
    mark_reviewed(args.folder / "policies" / name / "policy.md", args.reviewed)
    run.must("lint", name)
    run.must("align", f"{args.domain}|{name}")
    run.run("report", f"{args.domain}|{name}")  # its exit code is its verdict
    return 0


class Runner:
    """Runs `policyalign` in a folder."""

    def __init__(self, folder: Path, quick: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        small = {f"POLICYALIGN_{key}": value for key, value in QUICK.items()} if quick else {}
        self.folder, self.environ = folder, {**os.environ, **small}

    def run(self, *arguments: str) -> int:
        print(f"$ policyalign {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "policyalign_assets", *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.environ).returncode

    def must(self, *arguments: str) -> None:
        if code := self.run(*arguments):
            raise SystemExit(code)


def mark_reviewed(draft: Path, who: str) -> None:
    """Writes the review into the front matter of a draft, where none stands yet."""
    text = draft.read_text(encoding="utf-8")
    if "\nreviewed: " not in text:
        head, closing, rest = text.partition("\n---\n")
        draft.write_text(f'{head}\nreviewed: "{who}"{closing}{rest}', encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
