"""Work that forks of a process share, and what happens when one of them fails or is killed.

A test process beside others has threads of its own and makes no forks, so each test starts one
that has none.
"""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from helpers import ROOT
from test_guard import gone_within

from policyalign_assets.engine.cpu import forks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux alone"),
]
SETUP = """
import json, os, signal, threading, time
from types import SimpleNamespace
import torch
from policyalign_assets.engine.cpu import forks
MODEL = torch.nn.Linear(1000, 1000, bias=False)
SMALL = SimpleNamespace(copied=True, model=MODEL)
LARGE = SimpleNamespace(copied=False, model=MODEL)
MUCH = [10**6] * 32
"""


def said_by(script: str, threads: int = 2):
    """What a fresh process with that many threads of PyTorch prints as JSON on its last line."""
    done = subprocess.run(
        [sys.executable, "-c", SETUP + textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_each_item_is_done_once_by_one_of_several_processes_and_a_failure_is_raised_here():
    said = said_by("""
        def work(n):
            time.sleep(0.02)
            return n * n, os.getpid(), torch.get_num_threads()

        done = dict(forks.spread(work, range(20), 2))
        squares = [done[n][0] for n in range(20)]
        workers = {pid for _, pid, _ in done.values()}
        threads = {n for _, _, n in done.values()}

        class Unsendable(ValueError):
            def __init__(self, a, b):
                super().__init__(f"{a} of {b}")

        def wrong(n):
            if n == 3:
                raise Unsendable(n, 4)
            return n

        def killed(n):
            if n == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return n

        failures = []
        for bad in (wrong, killed):
            try:
                list(forks.spread(bad, range(6), 2))
            except Exception as error:
                failures.append([type(error).__name__, str(error)])
        try:
            left = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            left = None
        print(json.dumps([squares, len(workers), os.getpid() in workers, list(threads), failures,
                          left]))
    """)
    squares, workers, itself, threads, (wrong, killed), left = said
    assert squares == [n * n for n in range(20)]
    assert workers == 2 and not itself and threads == [1]
    assert wrong == ["RuntimeError", "Unsendable: 3 of 4"]
    assert killed[0] == "ForkDied" and "Fix:" in killed[1]
    assert left is None  # no process is left behind


def test_forks_are_for_much_work_of_small_models_and_never_beside_threads_or_with_one_thread():
    said = said_by("""
        found = [forks.forks_for(SMALL, MUCH), forks.forks_for(LARGE, MUCH)]
        over = threading.Event()
        threading.Thread(target=over.wait).start()
        found.append(forks.forks_for(SMALL, MUCH))
        over.set()
        torch.set_num_threads(64)
        time.sleep(0.1)
        found.append(forks.forks_for(SMALL, MUCH))
        found.append(forks.forks_for(SMALL, [100] * 32))
        torch.set_num_threads(1)
        found.append(forks.forks_for(SMALL, MUCH))
        found.append(dict(forks.spread(lambda n: os.getpid(), [0, 1], 1)) == dict.fromkeys(
            [0, 1], os.getpid()))
        print(json.dumps(found))
    """)
    assert said == [2, 1, 1, forks.MOST, 1, 1, True]


def test_forks_end_with_their_parent():
    pid = said_by("""
        if not os.fork():
            with forks.forked(lambda main: (main.send(os.getpid()), time.sleep(60))) as fork:
                print(json.dumps(forks.receive(fork)), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        os.wait()
    """)
    assert gone_within(5, [pid]) == []


def test_answers_and_scores_are_those_of_one_process():
    """Also where batches are split for the forks, and where tokens are drawn at random."""
    script = """
        import pyarrow as pa
        from pathlib import Path
        from policyalign_assets.engine.base import Sampling, chat
        from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
        from policyalign_assets.engine.loading import load_model
        from policyalign_assets.policy import parse_policy
        from policyalign_assets.sensitivity.score import score_instructions
        from policyalign_assets.settings import load_settings
        from policyalign_assets.tables import INSTRUCTIONS

        forks.LEAST_WORK = 1  # for so few rows, there would be none
        settings = load_settings(environ={}, overrides={"sensitivity": {"max_new_tokens": 12}})
        loaded = load_model(settings.model)
        engine = TransformersEngine(loaded, 16_384)
        texts = [f"How do I {a} a {b}?" for a in ("forge", "renew", "alter", "fake", "copy", "sign")
                 for b in ("prescription", "signature", "badge", "licence", "diploma", "permit")]
        greedy, drawn = (
            [g.text for g in engine.generate([chat(t) for t in texts], Sampling(24, t, 5))]
            for t in (0.0, 1.0)
        )
        policy = parse_policy(Path(%r), "general-conduct", "medical")
        empty = dict.fromkeys(INSTRUCTIONS.names)
        rows = [empty | {"instruction_id": t, "rule_id": "M1", "kind": "violating", "text": t,
                         "policy_hash": policy.content_hash} for t in texts]
        table = pa.Table.from_pylist(rows, schema=pa.schema(
            [(f.name, f.type) for f in INSTRUCTIONS]))
        scores = score_instructions(policy, table, loaded, engine, settings.sensitivity, 16_384)
        columns = [scores[c].to_pylist() for c in ("reverse_kl", "js")]
        print(json.dumps([forks.forks_for(engine.forward, MUCH), greedy, drawn, *columns]))
    """ % str(ROOT / "policies")  # noqa: UP031 - the script has braces
    two, *spread = said_by(script)
    one, *alone = said_by(script, threads=1)
    assert (two, one) == (2, 1)
    assert spread[:2] == alone[:2]
    for a, b in zip(spread[2:], alone[2:], strict=True):
        assert a == pytest.approx(b, abs=1e-5)
