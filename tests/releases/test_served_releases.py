"""Releases behind a real vLLM server on the bundled model: `make test-vllm`. Skipped elsewhere."""

import json
import shlex
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch
from click.testing import CliRunner
from helpers import REQUESTS, one_thread
from peft import LoraConfig, PeftModel, get_peft_model

pytest.importorskip("vllm")
pytest.importorskip("model_signing", reason="needs the extra `release`")
from test_release_bundle import EVALUATION, TARGET, Desk
from vllm_server import free_port, vllm_serving

from policyalign_assets.cli.main import main
from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.engine.shipped_models import SHIPPED_MODELS
from policyalign_assets.evaluation.suites import ALIGNED, BASE
from policyalign_assets.files import sha256_files
from policyalign_assets.releases.canaries import OF_BASE, THIS, write_canaries
from policyalign_assets.releases.current import current_bundle
from policyalign_assets.releases.serving import alias_of
from policyalign_assets.settings import BUNDLED, ModelSettings

pytestmark = [pytest.mark.served, pytest.mark.slow]

ALIAS = alias_of(TARGET)


def trained(folder: Path, seed: int) -> Path:
    """An adapter with random weights, which changes most answers."""
    base = load_model(ModelSettings(device="cpu"))
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base.model, config).save_pretrained(str(folder))
    return folder


def answers(adapter: Path | None) -> dict[str, str]:
    """What our own engine answers with an adapter, or with the base model."""
    base = load_model(ModelSettings(device="cpu"))
    model = base.model
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    engine = TransformersEngine(
        LoadedModel(model, base.tokenizer, base.model_id, base.revision), 16_384
    )
    with one_thread():
        made = engine.generate([chat(r) for r in REQUESTS], Sampling(64))
    return dict(zip(REQUESTS, [g.text for g in made], strict=True))


def rows_with(aligned: dict[str, str], base: dict[str, str]) -> list[dict]:
    """A good evaluation, in which some requests have the answers of real models."""
    said = {ALIGNED: aligned, BASE: base}
    taken = dict.fromkeys(said, 0)
    rows = []
    for row in EVALUATION:
        arm = row["arm"]
        if row["suite"] == "violations" and arm in said and taken[arm] < len(REQUESTS):
            request = REQUESTS[taken[arm]]
            taken[arm] += 1
            row = row | {"prompt": request, "response": said[arm][request]}
        else:
            row = row | {"prompt": None}  # no canary
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Desk, Path, Path]:
    """Released A and released B, with the answers that their models really give."""
    folder = tmp_path_factory.mktemp("served")
    desk = Desk(folder)
    desk.base_digest = sha256_files(SHIPPED_MODELS[BUNDLED])
    revision = load_model(ModelSettings(device="cpu")).revision
    base = answers(None)
    made: list[Path] = []
    for seed in (0, 1):
        adapter = trained(folder / f"adapter-{seed}", seed)
        desk.revision = revision
        rows = rows_with(answers(adapter), base)
        evidence = desk.evidence(str(seed).encode(), rows, adapter=adapter)
        made.append(desk.release(evidence))
        assert write_canaries(made[-1], made[0] if seed else None, desk.key)
    return desk, made[0], made[1]


def command(desk: Desk, *arguments: object, code: int = 0) -> str:
    environ = {"POLICYALIGN_DATA_DIR": str(desk.folder)}
    done = CliRunner().invoke(main, [str(a) for a in arguments], env=environ)
    assert done.exit_code == code, done.output
    return done.stdout


def test_the_rollback_drill_against_vllm(two):
    """Released A, released B, revoked B: the server follows, and each look says where it is."""
    desk, first, second = two
    keys = ("--key", desk.public, "--key", desk.other_public)
    port = free_port()
    said = command(desk, "serve", TARGET, *keys, "--port", port)
    arguments = shlex.split(said.strip().splitlines()[-1])[2:]
    assert str(second / "adapter") in said
    options = ("--max-model-len", "1024", "--enforce-eager")
    runtime = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true", "OMP_NUM_THREADS": "1"}
    with vllm_serving(sys.executable, [*arguments, *options], port, **runtime) as url:

        def look(bundle: Path, *more: str, code: int) -> dict:
            asked = ("attest", url, "--bundle", bundle, *keys, "--json", *more)
            return json.loads(command(desk, *asked, code=code))

        def post(what: str, **content: str) -> None:
            body = json.dumps(content).encode()
            headers = {"Content-Type": "application/json"}
            with urlopen(Request(f"{url}/{what}", body, headers), timeout=120) as reply:
                assert reply.status == 200

        served = look(second, code=0)
        assert served["verdict"] == THIS
        assert served["with_log_probabilities"] == served["asked"]
        assert look(second, "--model", f"{ALIAS}@{second.name}", code=0)["verdict"] == THIS
        # the base has a name of its own; an adapter that is not there is an error, never the base
        assert look(second, "--model", f"{ALIAS}.base", code=1)["verdict"] == OF_BASE
        with pytest.raises(HTTPError, match="404"):
            post("chat/completions", model=f"{ALIAS}@{first.name}", messages=[])
        as_bob = ("--by", "Bob", "--key", desk.other, "--reason", "answers about doses")
        command(desk, "revoke", second, *as_bob)
        assert current_bundle(desk.releases, TARGET) == first
        assert look(first, code=1)["verdict"] != THIS  # the server still has B
        post("unload_lora_adapter", lora_name=ALIAS)
        post("load_lora_adapter", lora_name=ALIAS, lora_path=str(first / "adapter"))
        assert look(first, code=0)["verdict"] == THIS
        assert str(first / "adapter") in command(desk, "serve", TARGET, *keys)
        command(desk, "verify", second, *keys, code=1)
