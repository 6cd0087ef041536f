"""How the threads of PyTorch wait for each other, so that a busy laptop stays usable.

OpenMP threads spin at barriers by default. Beside another PyTorch process on the same cores, each
then burns the time that the other needs, and both become 10 to 25 times slower. A thread that
sleeps at once costs some percent on idle cores, and a bounded spin was measured to have no
advantage left where it is short enough to help (`benchmarks/contention.py`).
"""

from __future__ import annotations

from collections.abc import MutableMapping

_USERS_OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def wait_politely(environ: MutableMapping[str, str]) -> None:
    """Lets OpenMP threads sleep at barriers. Variables that the user has set win.

    It takes effect in processes that load PyTorch afterwards, and in those that they start.
    """
    if not any(name in environ for name in _USERS_OWN):
        environ["OMP_WAIT_POLICY"] = "PASSIVE"
