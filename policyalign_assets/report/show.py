"""Prints a partition's report in the terminal: `python -m policyalign_assets.report.show 'medical|general-conduct'`."""

from __future__ import annotations

import json
import os
import sys

from policyalign_assets.files import Location, location
from policyalign_assets.report.formatting import visible


def show(partition: str, data_dir: Location) -> str:
    """The main table, the acceptance lines and where the page is. Raises FileNotFoundError if there is no report yet."""
    domain, _, policy = partition.partition("|")
    folder = data_dir / "reports" / policy / domain
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    arms = list(dict.fromkeys(f["arm"] for f in report["figures"]))
    lines = [
        f"{report['header']['title']} ({domain}), checkpoint {report['header']['checkpoint_id']}",
        "",
        f"{'':22}" + "".join(f"{arm:>26}" for arm in arms),
    ]
    for suite in dict.fromkeys(f["suite"] for f in report["figures"]):
        cells = {f["arm"]: f for f in report["figures"] if f["suite"] == suite}
        lines.append(f"{suite:22}" + "".join(f"{_cell(cells.get(arm)):>26}" for arm in arms))
    for name, result in report["internalisation"].items():
        known = result["estimate"] is not None
        value = (
            f"{result['estimate']:.2f} ({result['low']:.2f}-{result['high']:.2f})"
            if known
            else f"withheld: {result['withheld']}"
        )
        lines.append(f"internalisation, {name}: {value}")
    marks = {True: "met    ", False: "NOT MET", None: "not measured"}
    lines += [
        "",
        *(f"{marks[v['passed']]}  {v['name']}: {v['detail']}" for v in report["verdict"]),
        "",
        f"Report: {folder / 'report.html'}",
    ]
    return visible("\n".join(lines))


def _cell(figure: dict | None) -> str:
    if figure is None:
        return "not asked"
    rate = figure["rate"]
    if rate["estimate"] is None:
        return "not measured"
    return f"{figure['metric']} {100 * rate['estimate']:.1f} % of {rate['n']}"


def main() -> None:
    if len(sys.argv) != 2 or "|" not in sys.argv[1]:
        sys.exit("usage: python -m policyalign_assets.report.show '<domain>|<policy>'")
    try:
        print(show(sys.argv[1], location(os.environ.get("POLICYALIGN_DATA_DIR", "data"))))
    except FileNotFoundError as error:
        sys.exit(
            f"No report for {sys.argv[1]!r}: {error.filename} does not exist. Mend: materialize benchmark_report for this partition."
        )


if __name__ == "__main__":
    main()
