"""Which model answers at an endpoint: released A, released B, the base, and what nobody knows."""

import json
import random
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import ScriptedEngine, answer
from served_engine import serving
from test_export import ROWS
from test_release_bundle import TARGET, Desk

from policyalign_assets.cli.main import main
from policyalign_assets.endpoint import Token, read_completion
from policyalign_assets.evaluation.suites import ALIGNED, BASE
from policyalign_assets.files import sha256_files
from policyalign_assets.releases.attestation import ANOTHER, Given, error_rates, judge
from policyalign_assets.releases.canaries import (
    OF_BASE,
    PREVIOUS,
    THIS,
    Canary,
    canaries_file,
    choose,
    read_canaries,
    write_canaries,
)
from policyalign_assets.releases.closeness import gap_to
from policyalign_assets.releases.current import current_bundle, remember_released_report
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.record import bundle_id
from policyalign_assets.releases.serving import alias_of
from policyalign_assets.report.folders import partition_folder
from policyalign_assets.report.last_released import last_released

pytestmark = pytest.mark.slow

ALIAS = alias_of(TARGET)
# the second release declines in other words
NEWER = [
    r | {"response": r["response"].replace("I can't help with that", "I can't help with this")}
    if r["arm"] == ALIGNED
    else r
    for r in ROWS
]


def engine(rows, arm: str = ALIGNED, slips: float = 0.0) -> ScriptedEngine:
    """Gives the stored answers of an arm; a share of them otherwise, as another engine would."""
    stored = {r["prompt"]: r["response"] for r in rows if r["arm"] == arm}

    def reply(prompt: str, number: int, sampling):
        slipped = random.Random(prompt).random() < slips
        return answer("Something else." if slipped else stored.get(prompt, "What?"))

    return ScriptedEngine(reply)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Desk, Path, Path]:
    """Released A, then released B, each with canaries."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"base")
    desk = Desk(tmp_path)
    desk.base_digest = sha256_files(base)
    first = desk.release(desk.evidence(b"a", ROWS))
    write_canaries(first, None, desk.key)
    second = desk.evidence(b"b", NEWER)
    previous = current_bundle(desk.releases, TARGET)
    assert previous == first
    bundle = desk.release(second)
    write_canaries(bundle, previous, desk.key)
    return desk, first, bundle


def look(desk: Desk, url: str, bundle: Path, *more: str, code: int) -> dict:
    keys = ["--key", str(desk.public), "--key", str(desk.other_public)]
    arguments = ["attest", url, "--bundle", str(bundle), *keys, "--json", *more]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if result.stdout.startswith("{") else {"said": result.output}


def test_each_model_is_known_by_its_answers(two):
    desk, first, second = two
    models = {
        THIS: engine(NEWER),
        PREVIOUS: engine(ROWS),
        OF_BASE: engine(ROWS, BASE),
        ANOTHER: ScriptedEngine(lambda *_: answer("As you wish.")),
    }
    with serving() as server:
        for name, model in models.items():
            server.models[ALIAS] = model
            made = look(desk, server.url, second, code=0 if name == THIS else 1)
            assert made["verdict"] == name and made["asked"] == 30
            assert max(made["errors"].values()) < 0.01
        server.models[ALIAS] = engine(NEWER, slips=0.08)  # another engine rounds otherwise
        assert look(desk, server.url, second, code=0)["verdict"] == THIS
        # seen from the first release, the second is a model that nobody knew then
        assert look(desk, server.url, first, code=1)["verdict"] in (ANOTHER, f"{THIS} or {ANOTHER}")


def test_an_endpoint_that_cannot_be_asked_is_not_attested(two):
    desk, _, second = two
    with serving() as server:
        said = look(desk, server.url, second, code=1)["said"]
        assert "could not be asked" in said and "Fix:" in said
        server.models["other"] = engine(NEWER)
        assert look(desk, server.url, second, "--model", "other", code=0)["verdict"] == THIS
    assert "could not be asked" in look(desk, server.url, second, code=1)["said"]


def test_watch_looks_again_until_another_model_answers(two):
    desk, _, second = two
    good, bad = engine(NEWER), engine(ROWS, BASE)
    with serving() as server:

        def switching(prompt: str, number: int, sampling):
            model = good if server.asked <= 60 else bad
            return model.reply(prompt, number, sampling)

        server.models[ALIAS] = ScriptedEngine(switching)
        keys = ["--key", str(desk.public), "--key", str(desk.other_public)]
        arguments = ["attest", server.url, "--bundle", str(second), *keys, "--watch", "0.0001"]
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.output.count("ATTESTED") == 2 and "answers as the base model" in result.output


def test_canaries_are_secret_signed_and_of_one_release(two):
    desk, first, second = two
    file = canaries_file(second)
    assert file.stat().st_mode & 0o077 == 0 and file.parent == second.parent
    found = read_canaries(file, second, [desk.public])
    assert found.previous == bundle_id(first)
    other = read_canaries(canaries_file(first), first, [desk.public])
    prompts = [{c.prompt for c in f.canaries} for f in (found, other)]
    assert prompts[0] != prompts[1] and len(prompts[0]) == 60
    with pytest.raises(ReleaseError, match="belongs to another bundle"):
        read_canaries(canaries_file(first), second, [desk.public])
    with pytest.raises(ReleaseError, match="not signed by a trusted key"):
        read_canaries(file, second, [desk.other_public])
    signed = json.loads(file.read_text())
    signed["canaries"] = signed["canaries"].replace("clear goal", "goal").replace("help", "hlp")
    file.write_text(json.dumps(signed))
    with pytest.raises(ReleaseError, match="not signed by a trusted key"):
        read_canaries(file, second, [desk.public])
    file.write_text("[]")
    with pytest.raises(ReleaseError, match="cannot be read"):
        read_canaries(file, second, [desk.public])
    file.unlink()
    with pytest.raises(ReleaseError, match=r"is missing.*--canaries"):
        read_canaries(file, second, [desk.public])


def test_a_model_that_answers_as_its_base_gets_no_canaries():
    rows = [r | {"unanswered": None, "conversation": None} for r in ROWS]
    same = [r | {"response": "Yes.", "arm": arm} for r in rows for arm in (BASE, ALIGNED)]
    assert choose(same, [], random.Random(0)) is None
    assert len(choose(rows, [], random.Random(0))) == 60


def test_error_rates_say_what_cannot_be_told_apart():
    def canaries(apart: int) -> list[Canary]:
        return [
            Canary(f"p{i}", {THIS: "t", OF_BASE: "b", PREVIOUS: "o" if i < apart else "t"})
            for i in range(30)
        ]

    assert max(error_rates(canaries(20)).values()) < 0.01
    none = canaries(0)
    assert error_rates(none)[THIS] == 1.0
    assert judge(none, [Given("t")] * 30).verdict == f"{THIS} or {PREVIOUS}"
    assert judge(canaries(20), [Given("t")] * 30).is_this_release


def words_of(kept: dict[str, str], gap: float):
    """Log-probabilities word by word: where an answer leaves the kept one, the kept word is less
    likely by `gap`."""

    def likeliest(prompt: str, text: str) -> list[tuple[str, float, dict[str, float]]]:
        wanted = re.findall(r"\S+\s*", kept.get(prompt, ""))
        made = []
        for n, word in enumerate(re.findall(r"\S+\s*", text)):
            other = wanted[n] if n < len(wanted) else "</s>"
            made.append((word, -0.1, {} if other == word else {other: -0.1 - gap, "zzz": -9.0}))
        return [*made, ("</s>", -0.1, {"zzz": -9.0})]

    return likeliest


def test_log_probabilities_tell_rounding_from_another_model(two):
    """More than half of the answers differ: by rounding if the kept word was nearly as likely."""
    desk, _, second = two
    kept = {r["prompt"]: r["response"] for r in NEWER if r["arm"] == ALIGNED}
    with serving() as server:
        server.models[ALIAS] = engine(NEWER, slips=0.55)
        every = ("--asked", "60")
        alone = look(desk, server.url, second, *every, code=1)
        assert alone["verdict"] == ANOTHER and alone["with_log_probabilities"] == 0
        assert "the server gives no log-probabilities" in alone["decided_from"]
        server.strict = True  # a server that refuses the parameter is asked without it
        refused = look(desk, server.url, second, *every, code=1)
        assert refused["verdict"] == ANOTHER and refused["asked"] == 60
        server.likeliest = words_of(kept, 0.3)
        rounding = look(desk, server.url, second, *every, code=0)
        assert rounding["verdict"] == THIS and rounding["with_log_probabilities"] == 60
        hits, of = rounding["matches"][THIS]
        assert rounding["near"][THIS] == of - hits > 5
        server.likeliest = words_of(kept, 6.0)
        other = look(desk, server.url, second, *every, code=1)
        assert other["verdict"] == ANOTHER and other["near"][THIS] == 0


def spelled(*tokens: str, **others: dict[str, float]) -> list[Token]:
    """Tokens of log-probability -0.1; `others` by position, as t2={"x": -0.5}."""
    return [Token(t, -0.1, {t: -0.1, **others.get(f"t{n}", {})}) for n, t in enumerate(tokens)]


@pytest.mark.parametrize(
    ("kept", "tokens", "gap"),
    [
        ("I can not", spelled("I", " can", " do", t2={" not": -0.5}), 0.4),
        ("I can not", spelled("\n", "I", " can", " do", t3={" not": -0.5}), 0.4),
        ("I can not", spelled("I", " can", " do", t2={" no": -0.7, " not": -0.5}), 0.4),
        # the kept answer went on by a longer token where this one seems to agree with it
        ("forge it", spelled("for", " me", t0={"forge": -0.3}, t1={"ge": -7.0}), 0.2),
        ("Yes", spelled("Yes", ",", " do", t1={"<|im_end|>": -0.2}), 0.1),
        ("Yes, do", spelled("Yes", "<|im_end|>", t1={",": -0.4}), 0.3),
        ("Yes", spelled("No", t0={"Maybe": -5.0}), 4.9),  # at least
        ("Yes", spelled("No", t0={"Maybe": -0.5}), None),  # all are nearly as likely
        ("Yes", spelled("No"), None),
        ("Yes", spelled("Y\ufffd", "es"), None),
        ("Yes", spelled("Yes", "\n", "</s>"), None),  # it did not leave the kept answer
        ("Yes", [], None),
    ],
)
def test_the_gap_to_a_kept_answer(kept: str, tokens: list[Token], gap: float | None):
    found = gap_to(kept, tokens)
    assert found is None if gap is None else found == pytest.approx(gap)


def test_what_is_no_log_probability_is_not_used():
    def body(content: object) -> bytes:
        message = {"content": "Yes."}
        return json.dumps({"choices": [{"message": message, "logprobs": content}]}).encode()

    good = {"token": "Yes", "logprob": -0.1, "top_logprobs": [{"token": "No", "logprob": -2.0}]}
    (token,) = read_completion(body({"content": [good]})).tokens
    assert token == Token("Yes", -0.1, {"No": -2.0})
    for bad in (
        None,
        [],
        {"content": None},
        {"content": []},
        {"content": [{"token": 7, "logprob": 0}]},
        {"content": [good | {"logprob": 3.0}]},
        {"content": [good | {"logprob": float("nan")}]},
        {"content": [good | {"top_logprobs": [5]}]},
    ):
        said = read_completion(body(bad))
        assert said.text == "Yes." and said.tokens is None


def test_the_rollback_drill(two):
    """Released A, released B, revoked B: alias, verification, attestation and report say A."""
    desk, first, second = two
    reports = partition_folder(desk.folder, *TARGET.split("|"))
    reports.mkdir(parents=True)
    base = desk.folder / "base"
    keys = ["--key", str(desk.public), "--key", str(desk.other_public)]

    def released_report() -> Path | None:
        remember_released_report(desk.releases, TARGET)
        found = last_released(desk.folder, *TARGET.split("|"))
        return Path(str(found[0])) if found else None

    def served() -> ScriptedEngine:
        """What the operator serves: the ledger's current bundle, under the alias."""
        bundle = current_bundle(desk.releases, TARGET)
        return engine(ROWS if bundle == first else NEWER)

    def served_name() -> str:
        """What `policyalign serve` serves as the target, by the name that holds the hash."""
        arguments = ["serve", TARGET, "--base", str(base), *keys]
        done = CliRunner().invoke(main, arguments, env={"POLICYALIGN_DATA_DIR": str(desk.folder)})
        assert done.exit_code == 0, done.output
        return done.output

    def verified(bundle: Path) -> bool:
        return CliRunner().invoke(main, ["verify", str(bundle), *keys]).exit_code == 0

    with serving() as server:
        server.models[ALIAS] = served()
        assert look(desk, server.url, second, code=0)["verdict"] == THIS
        assert verified(first) and verified(second)
        assert released_report() == second / "report" and f"{ALIAS}@{second.name}" in served_name()
        as_bob = ["--by", "Bob", "--key", str(desk.other), "--reason", "answers forged signatures"]
        assert CliRunner().invoke(main, ["revoke", str(second), *as_bob]).exit_code == 0
        # the server still answers with B: each look says so
        assert look(desk, server.url, first, code=1)["verdict"] != THIS
        assert "revoked by Bob" in look(desk, server.url, second, code=1)["said"]
        server.models[ALIAS] = served()
        assert look(desk, server.url, first, code=0)["verdict"] == THIS
    assert current_bundle(desk.releases, TARGET) == first
    assert verified(first) and not verified(second)
    refused = CliRunner().invoke(main, ["serve", str(second), *keys])
    assert refused.exit_code == 1 and "answers forged signatures" in refused.output
    assert released_report() == first / "report" and f"{ALIAS}@{first.name}" in served_name()
    nothing = CliRunner().invoke(main, ["verify", "legal|absent", *keys])
    assert nothing.exit_code == 2 and "is released in" in nothing.output
