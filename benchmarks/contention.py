"""Times a distillation step alone, and beside one and two processes that do the same.

    python benchmarks/contention.py [--json] [--wait spinning]

Two PyTorch processes on two cores slow each other 10 to 25 times where their threads spin at
barriers. `policyalign_assets.threads` lets them sleep; `--wait spinning` leaves it as PyTorch
has it, for comparison, and takes long. Run it on idle cores: any other program is one more
competitor.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def work(steps: int) -> None:
    """Trains and prints the seconds of each step, one a line. Runs in a process of its own."""
    sys.path.insert(0, str(HERE))
    import policyalign_assets  # noqa: F401, I001  before PyTorch, which reads how to wait once

    import workload

    from policyalign_assets.distillation.batches import Instruction
    from policyalign_assets.distillation.trainer import distill
    from policyalign_assets.settings import DistillationSettings

    settings = DistillationSettings(
        steps=steps, batch_size=16, mini_batch_size=16, max_new_tokens=64, save_every=10_000
    )
    policy = SimpleNamespace(prompt_text=workload.text(400, 0))
    asked = [Instruction(workload.text(40, 1 + n)) for n in range(16)]
    began = time.perf_counter()

    def report(line: str) -> None:
        nonlocal began
        if line.startswith("step "):
            now = time.perf_counter()
            print(now - began, flush=True)
            began = now

    with tempfile.TemporaryDirectory() as folder:
        distill(
            [policy.prompt_text],
            asked,
            workload.random_model(),
            settings,
            Path(folder),
            16_384,
            report,
        )


def timed(competitors: int, steps: int, environ: dict[str, str]) -> float:
    """Median seconds of a step beside `competitors` processes; the first two steps warm up."""
    command = [sys.executable, __file__, "--work"]
    others = [
        subprocess.Popen([*command, "100000"], env=environ, stdout=subprocess.DEVNULL)
        for _ in range(competitors)
    ]
    try:
        if others:
            time.sleep(15)  # until the competitors have loaded and train
        done = subprocess.run(
            [*command, str(steps)], env=environ, capture_output=True, text=True, check=True
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    return statistics.median([float(line) for line in done.stdout.split()][2:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the seconds as JSON alone")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument(
        "--wait", choices=("asleep", "spinning"), default="asleep", help="how threads wait"
    )
    parser.add_argument("--work", type=int, metavar="STEPS", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.work:
        work(a.work)
        return
    # This process has imported nothing of the package, so the user's own variables are unchanged.
    environ = dict(os.environ)
    environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(HERE.parent), environ.get("PYTHONPATH")))
    )
    if a.wait == "spinning":
        environ = {k: v for k, v in environ.items() if k not in VARIABLES}
        environ["GOMP_SPINCOUNT"] = "300000"  # libgomp's own value when nothing is set
    names = ("alone", "beside_one", "beside_two")
    seconds = {name: timed(n, a.steps, environ) for n, name in enumerate(names)}
    if a.json:
        print(json.dumps(seconds))
        return
    print("| a step | seconds | against alone |\n| --- | --- | --- |")
    for name, value in seconds.items():
        print(f"| {name.replace('_', ' ')} | {value:.3f} | {value / seconds['alone']:.1f} |")


if __name__ == "__main__":
    main()
