"""Runs pandoc, which reads Word and HTML. It is a program of its own, kept in its sandbox."""

import subprocess

from policyalign_assets.policy.errors import PolicyError

TIMEOUT = 120  # seconds
_LIMITS = ("+RTS", "-M1024m", "-RTS")  # memory of the process
INSTALL = "Install it with: pip install 'policyalign-assets[import]'."


def run_pandoc(path: str, data: bytes, source: str, target: str, *options: str) -> str:
    """Converts a document. Raises PolicyError where pandoc is missing, fails or takes too long."""
    command = [_program(path), *_LIMITS, "--sandbox", "-f", source, "-t", target, *options]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT, check=True)
    except subprocess.TimeoutExpired as error:
        problem = f"pandoc did not finish within {TIMEOUT} seconds"
        raise PolicyError(path, None, problem, "Split the document.") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        problem = f"pandoc cannot read it ({said[-1][:200] if said else 'no reason given'})"
        fix = "Open it in the program that made it, and save it again."
        raise PolicyError(path, None, problem, fix) from error
    return done.stdout.decode("utf-8").replace("\r\n", "\n")


def _program(path: str) -> str:
    try:
        import pypandoc

        return str(pypandoc.get_pandoc_path())
    except (ImportError, OSError) as error:
        raise PolicyError(
            path, None, "pandoc, which reads this format, is missing", INSTALL
        ) from error
