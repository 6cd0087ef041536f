"""Set up before any test module is imported."""

import os

# Threads that wait must not spin: the tests start several PyTorch processes on few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Side by side, several threads in each process wait for cores that the others hold.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Each of them loads the engine, and leaves out what a stage's worker leaves out.
    from policyalign_assets.runtime.fast_start import without_unused_libraries

    without_unused_libraries()
# The tests start hundreds of processes, and each would compile the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# matplotlib must not look for a screen.
os.environ.setdefault("MPLBACKEND", "Agg")

from quick_dagster import keep_what_stays_the_same

keep_what_stays_the_same()
