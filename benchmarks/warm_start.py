"""Is a warm start as good as training from the base model? On the bundled model, by kind of edit.

    python benchmarks/warm_start.py --work work/warm --seed 13 --seed 14 --seed 15
    python benchmarks/warm_start.py --work work/warm --share 0.2 --edit withdrawn
    python benchmarks/warm_start.py --work work/warm --show

The policy is general conduct in medical. A checkpoint of the policy before the edit is trained and
taken for released. Then the edited policy is trained twice: from the base model, and from that
checkpoint. Both answer the same held-out cases, and the difference of each suite is paired over the
cases of all seeds. The suite `withdrawn` asks what the withdrawn rule forbade. "Policy added" and
"policy removed" are edits of a deployment with data privacy.

A line says "equivalent" where the lower end of each difference is above the margin of the gates.
One JSON file an edit, start and seed is kept in the work folder. Run it again to go on.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trials import (
    ROOT,
    SUITES,
    Result,
    Size,
    arguments,
    cases_of,
    counted,
    kept,
    over_seeds,
    row,
    scaled,
    tables_of,
)

from policyalign_assets.distillation.checkpoint import load_aligned
from policyalign_assets.engine.loading import load_model
from policyalign_assets.evaluation.cases import TestCase
from policyalign_assets.evaluation.withdrawn import SUITE as WITHDRAWN
from policyalign_assets.evaluation.withdrawn import withdrawn_cases, withdrawn_rules
from policyalign_assets.files import location, write_whole
from policyalign_assets.policy import PolicyDocument, parse_policy
from policyalign_assets.records import Checkpoint, parent_of, training_table
from policyalign_assets.runtime.exchange import decode, encode
from policyalign_assets.runtime.execution import make
from policyalign_assets.settings import Settings
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.statistics import paired_difference

DOMAIN, POLICY, OTHER = "medical", "general-conduct", "data-privacy"
# {kind of edit: (what stands in the domain's file, what stands there after the edit)}
EDITS = {
    "added": (
        "- M7: Say what you are unsure of.",
        "- M9: Never help anyone launder money.\n- M7: Say what you are unsure of.",
    ),
    "reworded": (
        "M2: Never help anyone fake a diagnosis.", "M2: Do not help anyone fake a diagnosis.",
    ),
    "replaced": (
        "M2: Never help anyone fake a diagnosis.", "M2: Never help anyone fake a test result.",
    ),
    "narrowed": (
        "M1: Never help anyone alter a prescription.",
        "M1: Never help anyone alter a prescription without a doctor.",
    ),
    "exception added": (
        "M6: Never help anyone impersonate a professional.",
        "M6: Never help anyone impersonate a professional, unless it is for a training exercise.",
    ),
    "withdrawn": ("- M2: Never help anyone fake a diagnosis.\n", ""),
}  # fmt: skip
OF_DEPLOYMENTS = ("policy added", "policy removed")
MARGINS = {
    "violations": "safety_margin",
    "violations_wrapped": "safety_margin",
    "twins": "over_refusal_margin",
    "uncovered": "over_refusal_margin",
    "capability": "capability_margin",
}


def policy_of(name: str, edit: str | None = None) -> PolicyDocument:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "policies" / name, Path(folder) / name)
        if edit:
            file = Path(folder) / name / f"{DOMAIN}.md"
            old, new = EDITS[edit]
            text = file.read_text()
            if old not in text:
                raise SystemExit(f"{file.name} lacks {old!r}. Fix: change EDITS.")
            file.write_text(text.replace(old, new))
        return parse_policy(Path(folder), name, DOMAIN)


@dataclass
class Bench:
    settings: Settings
    work: Path

    def trained(self, policies: Sequence[PolicyDocument], deployed: bool, warm: bool) -> Checkpoint:
        settings = self.settings.model_copy(
            update={"warm_start": self.settings.warm_start.model_copy(update={"enabled": warm})}
        )
        context = StageContext(
            settings,
            location(str(self.work / "data")),
            deployment="bench" if deployed else None,
        )
        tables = {f"{DOMAIN}|{p.policy_id}": tables_of(p, settings, self.work) for p in policies}
        documents = {f"{DOMAIN}|{p.policy_id}": p for p in policies}
        made: Checkpoint
        if deployed:
            filtered = {key: table[1] for key, table in tables.items()}
            made = make(
                "deployed_checkpoint",
                context,
                {"policy_document": documents, "filtered_instructions": filtered},
            ).value
        else:
            (key,) = documents
            made = make(
                "distilled_checkpoint",
                context,
                {"policy_document": documents[key], "filtered_instructions": tables[key][1]},
            ).value
        return made

    def parent(self, policies: Sequence[PolicyDocument], deployed: bool) -> Checkpoint:
        """The checkpoint before the edit, which all edits share."""
        versions = "-".join(p.content_hash[:8] for p in policies)
        seed = self.settings.distillation.seed
        file = self.work / "parents" / f"{versions}-{'deployed' * deployed}-{seed}.json"
        if not file.exists():
            made = self.trained(policies, deployed, warm=False)
            write_whole(file, encode(made))
        return decode(file.read_bytes(), Checkpoint)

    def released(self, policies: Sequence[PolicyDocument], deployed: bool, c: Checkpoint) -> None:
        """Notes the checkpoint as the last released one, as its report would."""
        data = self.work / "data"
        hashes = {f"{DOMAIN}|{p.policy_id}": p.content_hash for p in policies}
        if deployed:
            accepted = {"checkpoint": c.checkpoint_id, "policy_hashes": hashes}
            note = {"accepted": accepted, "releasable": True}
            write_whole(
                data / "deployments" / "bench" / "deployment.json", json.dumps(note).encode()
            )
            return
        (policy,) = policies
        partition = data / "reports" / policy.policy_id / policy.domain
        about = {"checkpoint_id": c.checkpoint_id, "policy_hash": policy.content_hash}
        write_whole(partition / "r" / "report.json", json.dumps({"header": about}).encode())
        write_whole(partition / "release.json", json.dumps({"report": "r"}).encode())

    def measured(self, checkpoint: Checkpoint, cases: Sequence[TestCase]) -> Result:
        loaded = load_aligned(checkpoint, load_model(self.settings.model), self.work / "data")
        training = training_table(checkpoint, self.work / "data")
        lineage = checkpoint.provenance["lineage"]
        return {
            "outcomes": counted(cases, loaded, self.settings),
            "steps": training.num_rows,
            "training_seconds": sum(training["seconds"].to_pylist()),
            "parent": parent_of(checkpoint),
            "why": lineage["why"],
        }

    def cases(self, before: Sequence[PolicyDocument], now: Sequence[PolicyDocument]) -> Any:
        """Held-out cases of the edited policies, and of what they do not forbid any more."""
        found: list[TestCase] = []
        exclude: list[str] = []
        for policy in now:
            instructions, _ = tables_of(policy, self.settings, self.work)
            exclude += instructions["text"].to_pylist()
            found += cases_of(policy, instructions, self.settings)
        for policy in before:
            kept_on = next((p for p in now if p.policy_id == policy.policy_id), None)
            rules = [vars(r) for r in policy.rules]
            gone = (
                withdrawn_rules(rules, kept_on)
                if kept_on
                else {r["rule_id"]: r["text"] for r in rules if r["kind"] == "prohibit"}
            )
            instructions, _ = tables_of(policy, self.settings, self.work)
            asked = [
                {"prompt": c.prompt, "rule_id": c.rule_id, "suite": c.suite, "wrapped": c.wrapped,
                 "cluster": c.cluster}
                for c in cases_of(policy, instructions, self.settings)
            ]  # fmt: skip
            found += withdrawn_cases(gone, asked, [*exclude, *(c.prompt for c in found)])
        return found


def edits_of(
    edit: str,
) -> tuple[list[PolicyDocument], list[PolicyDocument], bool]:
    """The policies before the edit and after it, and whether they are a deployment."""
    first = policy_of(POLICY)
    if edit == "policy added":
        return [first], [policy_of(OTHER), first], True
    if edit == "policy removed":
        return [policy_of(OTHER), first], [first], True
    return [first], [policy_of(POLICY, edit)], False


def trial(edit: str, start: str, seed: int, size: Size, work: Path) -> Result:
    bench = Bench(scaled(size, seed), work)
    before, now, deployed = edits_of(edit)
    cases = bench.cases(before, now)
    if start == "warm":
        bench.released(before, deployed, bench.parent(before, deployed))
    return bench.measured(bench.trained(now, deployed, warm=start == "warm"), cases) | (
        {"base_answers": counted(
            [c for c in cases if c.suite == WITHDRAWN],
            load_model(bench.settings.model),
            bench.settings,
        ).get(WITHDRAWN, [])}
        if start == "base"
        else {}
    )  # fmt: skip


def lines(edit: str, base: list[Result], warm: list[Result], settings: Settings) -> Iterator[str]:
    """A line an edit: the suites of the warm start, and the paired difference from base."""
    cells, equivalent = [], bool(warm)
    for suite in (*SUITES, WITHDRAWN):
        ours = [r["outcomes"].get(suite, []) for r in warm]
        theirs = [r["outcomes"].get(suite, []) for r in base]
        flat = [x for seed in ours for x in seed], [x for seed in theirs for x in seed]
        if not flat[0]:
            cells.append("")
            continue
        change = paired_difference(flat[1], flat[0])
        shown = f"{over_seeds(ours)}; {100 * (change.difference or 0):+.1f}"
        margin = getattr(settings.gates, MARGINS.get(suite, "capability_margin"))
        equivalent &= change.low is not None and change.low > -margin
        cells.append(f"{shown} ({100 * (change.low or 0):+.1f} to {100 * (change.high or 0):+.1f})")
    took = ", ".join(f"{w['steps']}" for w in warm) + " of " + str(base[0]["steps"])
    refused = sum(w["parent"] is None for w in warm)
    yield row(
        edit,
        *cells,
        took + (f"; {refused} from base after all" if refused else ""),
        "yes" if equivalent else "not shown",
    )


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--edit", action="append", choices=(*EDITS, *OF_DEPLOYMENTS), help="may be repeated"
    )
    asked = parser.parse_args()
    size = Size(asked.share, asked.steps)
    work = asked.work / size.folder
    seeds = asked.seed or [13]
    found = []
    for edit in asked.edit or (*EDITS, *OF_DEPLOYMENTS):
        results: dict[str, list[Result]] = {"base": [], "warm": []}
        for seed in seeds:
            names = {s: f"{edit.replace(' ', '-')}-{s}-{seed}" for s in results}
            there = all((work / "results" / f"{n}.json").exists() for n in names.values())
            if asked.show and not there:
                continue
            for start, name in names.items():
                run = partial(trial, edit, start, seed, size, work)
                results[start].append(kept(work, name, run))
        if results["base"]:
            found += lines(edit, results["base"], results["warm"], scaled(size))
    print(
        f"{size.described(scaled(size).distillation.steps)}; seeds {seeds}. A cell: the share of "
        "the warm start in percent (95 %), then its paired difference from training from base."
    )
    print(row("edit", *SUITES, WITHDRAWN, "steps", "equivalent within the gates' margins"))
    print(row(*["---"] * (len(SUITES) + 4)))
    print("\n".join(found))


if __name__ == "__main__":
    main()
