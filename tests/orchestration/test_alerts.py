"""Alerts reach a webhook or a mail server, say nothing secret when they do not, and are off."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from policyalign_assets.orchestration import alerts
from policyalign_assets.orchestration.alerts import send_alert
from policyalign_assets.settings import AlertSettings, SettingsError, load_settings


@pytest.fixture()
def webhook():
    got: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/secret-path", got
    server.shutdown()
    thread.join()


def test_nothing_is_sent_unless_a_way_is_set():
    assert not AlertSettings().on and send_alert(AlertSettings(), "s", "t", pytest.fail) == []


def test_a_webhook_gets_subject_and_reason(webhook):
    url, got = webhook
    settings = AlertSettings(webhook_variable="HOOK")
    assert send_alert(settings, "failed", "because", pytest.fail, {"HOOK": url}) == ["webhook"]
    assert got == [{"text": "failed\nbecause"}]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HOOK": "http://127.0.0.1:9/secret"},
        {"HOOK": "http://evil.example/secret"},
        {"HOOK": "file:///etc/secret"},
    ],
)
def test_an_alert_that_cannot_be_sent_is_warned_of_without_the_address(environ):
    said: list[str] = []
    assert send_alert(AlertSettings(webhook_variable="HOOK"), "s", "t", said.append, environ) == []
    assert len(said) == 1 and "secret" not in said[0] and "webhook" in said[0]


def test_a_mail_is_sent_with_the_password_only_over_tls(monkeypatch):
    log: list = []

    class Server:
        def __init__(self, host, port, timeout):
            log.append((host, port))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def starttls(self):
            log.append("tls")

        def login(self, user, password):
            log.append((user, password))

        def send_message(self, message):
            log.append((message["To"], message["Subject"], message.get_content().strip()))

    monkeypatch.setattr(alerts.smtplib, "SMTP", Server)
    settings = AlertSettings(
        email_to="officer@example.org",
        smtp_host="mail",
        smtp_port=587,
        smtp_tls=True,
        smtp_user="u",
        smtp_password_variable="PASSWORD",
    )
    sent = send_alert(settings, "two\nlines", "text", pytest.fail, {"PASSWORD": "p"})
    assert sent == ["e-mail"]
    assert log == [("mail", 587), "tls", ("u", "p"), ("officer@example.org", "two lines", "text")]
    with pytest.raises(SettingsError, match="smtp_tls"):
        load_settings(overrides={"alerts": {"smtp_password_variable": "PASSWORD"}}, environ={})
