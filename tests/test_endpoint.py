"""The one client for endpoints: an untrusted server can neither exhaust nor mislead it, and no
secret leaves the request."""

from __future__ import annotations

import datetime
import gzip
import ipaddress
import json
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_judge import FakeJudge, Reply, fake_judge

from policyalign_assets.endpoint import (
    MAX_REPLY,
    Completion,
    Endpoint,
    EndpointDown,
    EndpointRefuses,
    NotACompletion,
    check_host,
    loads,
    read_completion,
)
from policyalign_assets.settings import JudgeSettings, SettingsError, load_settings

MESSAGES = [{"role": "user", "content": "Is it safe?"}]
KEY = "sk-hunter2hunter2"


def endpoint(url: str, **settings: object) -> Endpoint:
    values = {"kind": "policy", "base_url": url, "model": "m", "timeout": 5, "retries": 0}
    return Endpoint(JudgeSettings.model_validate(values | settings), "judge", "the judge")


def ask(url: str, **settings: object) -> Completion:
    return endpoint(url, **settings).run(lambda asker: asker.ask(MESSAGES, 50, 0.0, seed=3))


def body(content: object, **message: object) -> bytes:
    choice = {"finish_reason": "stop", "message": {"content": content} | message}
    return json.dumps({"choices": [choice]}).encode()


@contextmanager
def replies(reply: Reply) -> Iterator[FakeJudge]:
    with fake_judge(lambda messages, attempt: reply) as server:
        yield server


# ---- a hostile server ----------------------------------------------------------------------------
def packed(size: int) -> bytes:
    """A body of `size` bytes, packed a thousandfold."""
    return gzip.compress(b'{"choices": [' + b" " * size + b"]}")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (
            Reply(body=packed(200 * 2**20), headers=(("Content-Encoding", "gzip"),)),
            "larger than",
        ),
        (Reply(body=b" " * (MAX_REPLY + 9)), "larger than"),
        (Reply(body=b"[" * 100_000), "not that of a chat completion"),
        (Reply(body=b'{"choices":' + b"[" * 1500 + b"]" * 1500 + b"}"), "not that of a chat"),
        (Reply(body=b"\xff\xfe\x00", headers=(("Content-Encoding", "gzip"),)), "not compressed"),
        (Reply(body=b"abc", headers=(("Content-Encoding", "br"),)), "compressed as 'br'"),
        (Reply(body=b'{"choices": [null]}'), "not that of a chat completion"),
        (Reply(body=b'{"choices": [{"message": {"content": 7}}]}'), "not that of a chat"),
        (Reply(body=b'"a string"'), "not that of a chat completion"),
        (Reply(body=b""), "not that of a chat completion"),
    ],
)
def test_a_reply_that_cannot_be_read_says_why(reply: Reply, reason: str) -> None:
    with replies(reply) as server, pytest.raises(NotACompletion, match=reason):
        ask(server.url)


def test_a_packed_reply_of_common_size_is_read() -> None:
    for pack, name in ((gzip.compress, "gzip"), (zlib.compress, "deflate")):
        reply = Reply(body=pack(body("fine")), headers=(("Content-Encoding", name),))
        with replies(reply) as server:
            assert ask(server.url).text == "fine"


def test_a_reply_that_drips_is_ended() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        while True:
            try:
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(100):
                    connection.sendall(b" ")
                    time.sleep(0.1)
            except OSError:
                return

    threading.Thread(target=drip, daemon=True).start()
    started = time.monotonic()
    with listener, pytest.raises(EndpointDown, match="no reply in time"):
        ask(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.5)
    assert time.monotonic() - started < 8


def test_redirects_are_not_followed() -> None:
    with replies(Reply(body=body("stolen"))) as other:
        moved = Reply(status=307, headers=(("Location", other.url + "/chat/completions"),))
        with replies(moved) as server, pytest.raises(EndpointRefuses, match="redirects"):
            ask(server.url)
        assert not other.requests


# ---- what messages show --------------------------------------------------------------------------
def test_the_beginning_of_an_error_is_shown_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POLICYALIGN_JUDGE_KEY", KEY)
    said = f"<b>bad</b>\x1b[31m model 'm' for key {KEY} and Bearer abcdef123456 \x00" + "x" * 900
    with (
        replies(Reply(status=400, body=said.encode())) as server,
        pytest.raises(EndpointRefuses) as caught,
    ):
        ask(server.url, api_key_variable="POLICYALIGN_JUDGE_KEY")
    message = str(caught.value)
    assert "HTTP 400: <b>bad</b>" in message and len(message) < 300
    assert KEY not in message and "abcdef123456" not in message
    assert not any(ord(c) < 32 for c in message)
    assert server.keys == {f"Bearer {KEY}"}


def test_equal_faults_read_alike_whatever_the_number_of_the_request() -> None:
    shown = endpoint("http://localhost/v1").shown
    assert shown("no model, request req_8f3a9c1b2d4e5f") == shown(
        "no model, request req_77aa11bb22cc"
    )


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        (
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "judge.token_parameter=max_completion_tokens",
        ),
        (
            "Unsupported value: 'temperature' does not support 0 with this model.",
            'judge.omit_parameters=["temperature"]',
        ),
    ],
)
def test_a_refused_parameter_comes_with_the_setting(said: str, fix: str) -> None:
    with (
        replies(Reply(status=400, body=json.dumps({"error": said}).encode())) as server,
        pytest.raises(EndpointRefuses) as caught,
    ):
        ask(server.url)
    assert said[:20] in str(caught.value) and f"Fix: {fix}" in str(caught.value)


def test_parameters_are_named_left_out_and_added_as_the_settings_say() -> None:
    with replies(Reply("ok")) as server:
        ask(server.url)
        ask(
            server.url,
            token_parameter="max_completion_tokens",
            omit_parameters=["temperature", "seed"],
            extra_parameters={"reasoning_effort": "low"},
        )
    plain, changed = server.requests
    assert (plain["max_tokens"], plain["temperature"], plain["seed"]) == (50, 0.0, 3)
    assert changed["max_completion_tokens"] == 50 and changed["reasoning_effort"] == "low"
    assert not {"max_tokens", "temperature", "seed"} & set(changed)


def test_extra_parameters_cannot_replace_the_request() -> None:
    with pytest.raises(SettingsError, match="messages"):
        load_settings(overrides={"judge": {"extra_parameters": {"messages": "x"}}})


# ---- TLS -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of 127.0.0.1, signed by itself."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "own.pem"
    pem = serialization.Encoding.PEM
    file.write_bytes(
        made.public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


def test_a_self_signed_certificate_is_named_and_can_be_trusted(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with fake_judge(lambda m, a: Reply("ok"), tls=context) as server:
        with pytest.raises(EndpointDown, match=r"not trusted \(self.signed certificate.*ca_file"):
            ask(server.url)
        assert ask(server.url, ca_file=str(certificate)).text == "ok"


def test_http_and_https_are_not_mixed_up() -> None:
    with replies(Reply("ok")) as server, pytest.raises(EndpointDown, match="TLS"):
        ask(server.url.replace("http://", "https://"))


def test_a_file_that_holds_no_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="ca_file"):
        endpoint("https://localhost/v1", ca_file=str(tmp_path / "none.pem"))


# ---- keys and hosts ------------------------------------------------------------------------------
def test_run_config_cannot_send_any_secret_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://hunter2")
    with pytest.raises(SettingsError) as caught:
        endpoint("http://localhost/v1", api_key_variable="DATABASE_URL")
    assert "POLICYALIGN_KEY_VARIABLES" in str(caught.value) and "hunter2" not in str(caught.value)
    monkeypatch.setenv("POLICYALIGN_KEY_VARIABLES", "OTHER, DATABASE_URL")
    endpoint("http://localhost/v1", api_key_variable="DATABASE_URL")


def test_a_key_in_the_environment_is_no_unknown_setting() -> None:
    load_settings(environ={"POLICYALIGN_JUDGE_KEY": KEY, "POLICYALIGN_KEY_VARIABLES": "A"})
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={"POLICYALIGN_JUDGE__API_KEY": KEY})
    assert "POLICYALIGN_JUDGE__API_KEY" in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "metadata.google.internal",
        "[fd00:ec2::254]",
    ],
)
def test_link_local_hosts_are_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="link-local"):
        endpoint(f"http://{host}/v1")


def test_the_deployment_can_list_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICYALIGN_ENDPOINT_HOSTS", "api.example.org, *.models.local")
    for allowed in ("https://api.example.org/v1", "http://a.models.local:8000/v1"):
        endpoint(allowed)
    for refused in ("http://localhost/v1", "http://api.example.org.evil.net/v1"):
        with pytest.raises(SettingsError, match="does not allow"):
            endpoint(refused)
    check_host("http://anywhere.net", "judge", environ={})


# ---- how completions are read --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("made", "text", "cut", "declined"),
    [
        (body("yes"), "yes", False, False),
        (
            body([{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]),
            "yes",
            False,
            False,
        ),
        (body(None), None, False, False),
        (body(None, refusal="no"), "no", False, True),
        (b'{"choices":[{"finish_reason":"length","message":{"content":"y"}}]}', "y", True, False),
        (
            b'{"choices":[{"finish_reason":"content_filter","message":{"content":""}}]}',
            "",
            False,
            True,
        ),
        (body("a", reasoning_content="thought"), "a", False, False),
    ],
)
def test_completions(made: bytes, text: str | None, cut: bool, declined: bool) -> None:
    assert read_completion(made) == Completion(text, cut, declined)


def test_brackets_in_strings_do_not_nest() -> None:
    assert loads(json.dumps({"a": "[" * 500 + '"{{'})) == {"a": "[" * 500 + '"{{'}
    with pytest.raises(ValueError, match="deep"):
        loads("[" * 65 + "]" * 65)
