"""A partition's report as text for the terminal, the verdict first (`policyalign report`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from policyalign_assets.files import Location
from policyalign_assets.report.folders import RELEASE, current_report, partition_folder
from policyalign_assets.report.formatting import visible

MARKS = {True: "passed      ", False: "FAILED      ", None: "NOT MEASURED"}
WIDTH = 100


def show(partition: str, data_dir: Location, brief: bool = False) -> str:
    """Verdict, gates, main table, and where page and release are.

    `brief` leaves out the tables and puts the verdict last, where a terminal that scrolls ends.
    Raises FileNotFoundError where there is no report yet.
    """
    domain, _, policy = partition.partition("|")
    folder = current_report(data_dir, domain, policy)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    decision = _decision(data_dir, domain, policy, folder.name)
    verdict = (decision or report)["verdict"]
    gates = (decision or report)["gates"] or report["gates"]
    about = [*_about(report, domain), "", "Gates:", *(_gate(g) for g in gates), ""]
    where = [f"Report:  {folder / 'report.html'}", _release_line(data_dir, domain, policy)]
    if decision is None:
        where.append("The release checks have not run on this report: no release was decided.")
    if brief:
        return visible("\n".join([*about, *where, *_reasons(verdict), verdict["line"]]))
    table = [*_table(report["figures"]), *_runs(report.get("runs"))]
    table += [_internalised(name, r) for name, r in report["internalisation"].items()]
    lines = [verdict["line"], *_reasons(verdict), "", *about, *table, "", *where]
    return visible("\n".join(lines))


def summary(partition: str, data_dir: Location) -> dict[str, Any]:
    """The verdict and the gates as data. Raises FileNotFoundError where there is no report yet.

    decided: whether the release checks ran on this very report.
    """
    domain, _, policy = partition.partition("|")
    folder = current_report(data_dir, domain, policy)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    decision = _decision(data_dir, domain, policy, folder.name)
    release = partition_folder(data_dir, domain, policy) / RELEASE
    return {
        "partition": partition,
        "report": str(folder),
        "checkpoint_id": report["header"]["checkpoint_id"],
        "verdict": (decision or report)["verdict"],
        "gates": (decision or report)["gates"] or report["gates"],
        "figures": report["figures"],
        "decided": decision is not None,
        "release": str(release) if release.exists() else None,
    }


def show_deployment(name: str, folder: Location) -> str:
    """The verdict on a deployment and on each of its policies. folder: of the deployment.

    Raises FileNotFoundError where there is no report yet.
    """
    found = deployment_summary(folder)
    lines = [found["verdict"], f"deployment {name}, checkpoint {found['checkpoint']}", ""]
    lines += [f"  {p['policy']:24} {p['verdict']}" for p in found["policies"]]
    lines += [f"  conflict: {sentence}" for sentence in found["conflicts"]]
    return visible("\n".join([*lines, "", f"Report:  {folder / 'deployment.html'}"]))


def deployment_summary(folder: Location) -> dict[str, Any]:
    """What `deployment.json` says. Raises FileNotFoundError where there is none."""
    found: dict[str, Any] = json.loads((folder / "deployment.json").read_text(encoding="utf-8"))
    return found


def _decision(data: Location, domain: str, policy: str, report: str) -> Mapping[str, Any] | None:
    """What the release checks decided on this very report, if they ran."""
    file = partition_folder(data, domain, policy) / "decision.json"
    try:
        decision = json.loads(file.read_text(encoding="utf-8"))
        return decision if decision["report"] == report and decision["verdict"]["line"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reasons(verdict: Mapping[str, Any]) -> list[str]:
    lines = [f"  - {problem}" for problem in verdict["problems"]]
    lines += [f"  What to do: {remedy}" for remedy in verdict["remedies"]]
    lines += [f"  !! {a['what']}, by {a['who']}: {a['why']}" for a in verdict["allowances"]]
    return lines


def _about(report: Mapping[str, Any], domain: str) -> list[str]:
    header = report["header"]
    return [
        f"{header['title']} ({domain}), checkpoint {header['checkpoint_id']}, {header['model_id']}"
    ]


def _gate(gate: Mapping[str, Any]) -> str:
    waived = "" if gate["blocking"] else " WAIVED"
    why = gate["problem"] or _first_sentence(gate["sentence"])
    return f"  {MARKS[gate['passed']]}{waived}  {gate['gate']:13} {why}"


def _first_sentence(text: str) -> str:
    head = text.split("; the ")[0]
    return head if len(head) <= WIDTH else head[: WIDTH - 1] + "…"


def _table(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    arms = list(dict.fromkeys(f["arm"] for f in figures))
    lines = [f"{'':20}" + "".join(f"{arm:>26}" for arm in arms)]
    for suite in dict.fromkeys(f["suite"] for f in figures):
        cells = {f["arm"]: f for f in figures if f["suite"] == suite}
        lines.append(
            f"{suite:20}"
            + "".join(f"{_cell(cells[arm]) if arm in cells else '':>26}" for arm in arms)
        )
    return lines


def _cell(figure: Mapping[str, Any]) -> str:
    rate = figure["rate"]
    if rate["estimate"] is None:
        return "not measured"
    return f"{figure['metric']} {100 * rate['estimate']:.1f} % of {rate['n']}"


def _runs(runs: Mapping[str, Any] | None) -> list[str]:
    """Mean, spread and worst of several training runs."""
    if not runs:
        return []
    lines = [f"{len(runs['seeds'])} training runs, seeds {', '.join(map(str, runs['seeds']))}:"]
    for m in runs["measures"]:
        figures = (
            "not measured in every run"
            if m["mean"] is None
            else f"{m['metric']} {100 * m['mean']:.1f} % on average, standard deviation "
            f"{100 * m['deviation']:.1f} points, worst {100 * m['worst']:.1f} %"
        )
        lines.append(f"  {m['suite']:20} {figures}")
    return [*lines, ""]


def _internalised(name: str, result: Mapping[str, Any]) -> str:
    if result["estimate"] is None:
        return f"internalisation, {name}: withheld: {result['withheld']}"
    interval = f"({result['low']:.2f} to {result['high']:.2f})"
    return f"internalisation, {name}: {result['estimate']:.2f} {interval}"


def _release_line(data: Location, domain: str, policy: str) -> str:
    file = partition_folder(data, domain, policy) / RELEASE
    return f"Release: {file}" if file.exists() else f"Release: none ({file} is not written)"
