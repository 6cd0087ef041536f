"""Multiple-choice questions through lm-eval: an offline process with a task file and local data.

lm-eval asks and scores the questions. Its log per question is read back, so that the report can
compare arms question by question. The accuracy is the one that its command line prints.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from policyalign_assets.evaluation.benchmarks import LETTERS, BenchmarkCase
from policyalign_assets.files import parse_shipped_yaml, replacing_file, temporary_folder

HOURS = 12
_GRACE = 10  # seconds to wait for the output of a process that was killed


class HarnessFailed(RuntimeError):
    """lm-eval gave no answers. The message says why, with the last lines of its output."""


@dataclass(frozen=True)
class Weights:
    """What lm-eval loads: a folder or hub id, and the folder of a PEFT adapter, if any."""

    pretrained: str
    dtype: str
    device: str
    revision: str | None = None
    adapter: Path | None = None


def texts() -> object:
    """The task file, parsed, for fingerprints."""
    return parse_shipped_yaml(_template())


def installed() -> bool:
    return find_spec("lm_eval") is not None


def installed_version() -> str | None:
    """Another version of lm-eval may ask or score in another way."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        return None


def answered_correctly(
    identity: str, weights: Weights, cases: Sequence[BenchmarkCase], store: Path | None = None
) -> list[bool]:
    """For each case, whether the model finds the letter of the right choice the likeliest.

    identity: of the model, see `answers.Model`.
    store: folder in which the result is kept, as answers are.
    Raises HarnessFailed.
    """
    key = hashlib.sha256(
        json.dumps([identity, [_document(c) for c in cases], texts(), installed_version()]).encode()
    ).hexdigest()[:32]
    file = store / f"{key}.choices.json" if store else None
    if file and file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    correct = _ask(weights, cases)
    if file:
        with replacing_file(file) as aside:
            aside.write_text(json.dumps(correct), encoding="utf-8")
    return correct


def write_tasks(cases: Sequence[BenchmarkCase], folder: Path) -> list[str]:
    """Writes one data file and one task file per benchmark; returns the names of the tasks.

    lm-eval reads them with `--include_path folder`.
    """
    names = []
    for benchmark in dict.fromkeys(c.benchmark for c in cases):
        lines = "".join(json.dumps(_document(c)) + "\n" for c in cases if c.benchmark == benchmark)
        data = folder / f"{benchmark}.jsonl"
        data.write_text(lines, encoding="utf-8")
        name = benchmark.replace("-", "_")
        task = (
            _template()
            .replace("{id}", name)
            .replace("{file}", str(data))
            .replace("{version}", hashlib.sha256(lines.encode()).hexdigest()[:12])
        )
        (folder / f"{name}.yaml").write_text(task, encoding="utf-8")
        names.append(f"policyalign_{name}")
    return names


def command(weights: Weights, tasks: Sequence[str], folder: Path) -> list[str]:
    """The command line of lm-eval, which can also be run by hand."""
    model = {"pretrained": weights.pretrained, "dtype": weights.dtype, "trust_remote_code": False}
    model |= {"revision": weights.revision} if weights.revision else {}
    model |= {"peft": str(weights.adapter)} if weights.adapter else {}
    return [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--model_args",
        ",".join(f"{k}={v}" for k, v in model.items()),
        "--tasks",
        ",".join(tasks),
        "--include_path",
        str(folder),
        "--device",
        weights.device,
        "--batch_size",
        "16",
        "--apply_chat_template",
        "--log_samples",
        "--output_path",
        str(folder / "out"),
    ]


def _ask(weights: Weights, cases: Sequence[BenchmarkCase]) -> list[bool]:
    with temporary_folder() as folder:
        tasks = write_tasks(cases, folder)
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "HF_DATASETS_OFFLINE": "1",
        }
        _run(command(weights, tasks, folder), environment, HOURS * 3600)
        try:
            correct = _logged(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HarnessFailed(f"lm-eval's log cannot be read ({type(error).__name__})") from error
    if missing := [c.case_id for c in cases if c.case_id not in correct]:
        raise HarnessFailed(f"lm-eval logged no answer to {len(missing)} of {len(cases)} questions")
    return [correct[c.case_id] for c in cases]


def _run(arguments: Sequence[str], environment: dict[str, str], seconds: float) -> None:
    """Runs lm-eval to its end. Raises HarnessFailed, whatever kept it from ending well.

    lm-eval starts processes of its own, so it gets a process group, which a time-out kills whole.
    """
    try:
        process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise HarnessFailed(f"lm-eval cannot be started ({error})") from error
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        _kill(process)
        raise HarnessFailed(f"lm-eval did not end within {seconds / 3600:g} hours") from error
    except BaseException:
        _kill(process)
        raise
    if process.returncode:
        last_lines = (errors or output).strip().splitlines()[-3:]
        raise HarnessFailed("lm-eval failed: " + " / ".join(last_lines))


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_GRACE)


def _logged(folder: Path) -> dict[str, bool]:
    """{case id: whether the answer was right}, from lm-eval's log of samples."""
    correct = {}
    for log in folder.glob("out/**/samples_*.jsonl"):
        for line in log.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            correct[sample["doc"]["case_id"]] = sample["acc"] == 1.0
    return correct


def _document(case: BenchmarkCase) -> dict[str, Any]:
    letters = list(LETTERS[: len(case.choices)])
    options = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(letters, case.choices, strict=True)
    )
    return {
        "case_id": case.case_id,
        "text": f"{case.prompt}\n{options}\nAnswer with the letter alone.\nAnswer:",
        "letters": letters,
        "gold": case.right,
    }


def _template() -> str:
    return resources.files(__package__).joinpath("capability.yaml").read_text(encoding="utf-8")
