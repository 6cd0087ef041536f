"""Threads wait politely, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({}, "PASSIVE"),
        ({"GOMP_SPINCOUNT": "7"}, None),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"KMP_BLOCKTIME": "1"}, None),
    ],
)
def test_importing_the_package_lets_threads_sleep_and_the_users_variables_win(given, policy):
    code = "import os, policyalign_assets; print(os.environ.get('OMP_WAIT_POLICY'))"
    environ = {k: v for k, v in os.environ.items() if k not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environ | given | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(policy)
