"""Threads wait politely, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, "100000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
        ({"KMP_BLOCKTIME": "1"}, None),
    ],
)
def test_importing_the_package_bounds_the_spinning_and_the_users_variables_win(given, count):
    code = "import os, policyalign_assets; print(os.environ.get('GOMP_SPINCOUNT'))"
    environ = {k: v for k, v in os.environ.items() if k not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environ | given | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(count)
