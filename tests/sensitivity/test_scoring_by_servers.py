"""Answers of many rows by several servers: saved in parts, the same whatever served them."""

import pyarrow as pa
import pytest
from fake_vllm import Weights, fake_replicas, settings_of
from helpers import REQUESTS, medical_policy, one_thread

from policyalign_assets.engine.generation import replicas
from policyalign_assets.engine.generation.opening import opened
from policyalign_assets.engine.generation.replicas import ServersDown
from policyalign_assets.sensitivity.partial_scores import PartialScores
from policyalign_assets.sensitivity.score import score_instructions
from policyalign_assets.settings import SensitivitySettings
from policyalign_assets.tables import INSTRUCTIONS

POLICY = medical_policy()
SETTINGS = SensitivitySettings(max_new_tokens=8, temperature=1.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(replicas, "FIRST_PAUSE", 0.05)
    with one_thread():
        yield


@pytest.fixture(scope="module")
def weights():
    return Weights()


def table(texts) -> pa.Table:
    row = {f.name: "x" if pa.types.is_string(f.type) else None for f in INSTRUCTIONS}
    rows = [row | {"instruction_id": f"i{n}", "text": t} for n, t in enumerate(texts)]
    return pa.Table.from_pylist(rows, schema=INSTRUCTIONS)


def score(weights, servers, folder=None, progress=None) -> pa.Table:
    with opened(settings_of(*servers), weights.loaded) as engine:
        return score_instructions(
            POLICY,
            table(REQUESTS[:10]),
            weights.loaded,
            engine,
            SETTINGS,
            16_384,
            progress,
            PartialScores(folder, rows=4),
        )


def test_scores_do_not_depend_on_the_servers_and_go_on_after_the_last_part(weights, tmp_path):
    with fake_replicas(weights, 1) as servers:
        whole = score(weights, servers)
    done = []
    with fake_replicas(weights, 3) as servers:

        def die(rows: int, _: int) -> None:
            done.append(rows)
            for server in servers[: 1 if rows == 4 else 3]:  # one after a part, then all
                server.stop()

        with pytest.raises(ServersDown, match="parts are kept"):
            score(weights, servers, tmp_path, die)
    assert done == [4, 8] and len(list(tmp_path.glob("*.arrow"))) == 2
    with fake_replicas(weights, 2) as servers:
        again = score(weights, servers, tmp_path, lambda rows, _: done.append(rows))
        assert [len(server.asked) for server in servers] == [2, 2]  # of both sides of rows 8 and 9
    assert done == [4, 8, 10]
    texts = ["student_response", "teacher_response"]
    assert again.select(texts) == whole.select(texts)
    for name in ("reverse_kl", "forward_kl"):
        assert again[name].to_pylist() == pytest.approx(whole[name].to_pylist(), abs=1e-5)
