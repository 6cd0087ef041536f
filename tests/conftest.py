"""Set up before any test module is imported."""

import os

# Threads that wait must not spin: the tests start several PyTorch processes on few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# matplotlib must not look for a screen.
os.environ.setdefault("MPLBACKEND", "Agg")
