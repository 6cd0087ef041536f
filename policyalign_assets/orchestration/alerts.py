"""Tells people of a failed run or a failed release gate, by webhook or e-mail. Off by default.

An alert names the partition, the run and the reason. It never quotes a request or an answer.
"""

from __future__ import annotations

import json
import os
import smtplib
import urllib.request
from collections.abc import Callable, Mapping
from email.message import EmailMessage

import dagster as dg

from policyalign_assets.orchestration.partitions import PARTITION_TAG
from policyalign_assets.orchestration.resources import deployed_settings
from policyalign_assets.settings import AlertSettings

TIMEOUT = 10.0  # seconds
LONGEST = 1500  # characters of a reason


def send_alert(
    settings: AlertSettings,
    subject: str,
    text: str,
    warn: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> list[str]:
    """Sends by every way that is configured, and returns those that worked.

    A way that fails is warned of, without the address or the password, and stops nothing.
    """
    ways = {"webhook": settings.webhook_variable, "e-mail": settings.email_to}
    sent = []
    for way, configured in ways.items():
        if not configured:
            continue
        try:
            (_post if way == "webhook" else _mail)(settings, subject, text[:LONGEST], environ)
            sent.append(way)
        except (OSError, ValueError, KeyError, smtplib.SMTPException) as error:
            warn(f"the alert '{subject}' could not be sent by {way} ({type(error).__name__})")
    return sent


def _post(settings: AlertSettings, subject: str, text: str, environ: Mapping[str, str]) -> None:
    """JSON with one field `text`, as chat services take it."""
    url = environ[settings.webhook_variable or ""]
    if not url.startswith(("https://", "http://localhost", "http://127.0.0.1")):
        raise ValueError("a webhook must begin with https://")
    body = json.dumps({"text": f"{subject}\n{text}"}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
        reply.read(1)


def _mail(settings: AlertSettings, subject: str, text: str, environ: Mapping[str, str]) -> None:
    message = EmailMessage()
    message["Subject"] = " ".join(subject.split())
    message["From"], message["To"] = settings.email_from, settings.email_to
    message.set_content(text)
    with smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=TIMEOUT) as server:
        if settings.smtp_tls:
            server.starttls()
        if settings.smtp_password_variable:
            server.login(settings.smtp_user or "", environ[settings.smtp_password_variable])
        server.send_message(message)


_ALERTS = deployed_settings().alerts


@dg.run_failure_sensor(
    name="run_failures",
    default_status=dg.DefaultSensorStatus.RUNNING if _ALERTS.on else dg.DefaultSensorStatus.STOPPED,
    description="Sends an alert for each failed run. Set POLICYALIGN_ALERTS__WEBHOOK_VARIABLE or "
    "POLICYALIGN_ALERTS__EMAIL_TO.",
)
def run_failures(context: dg.RunFailureSensorContext) -> None:
    run, settings = context.dagster_run, _ALERTS
    partition = run.tags.get(PARTITION_TAG, "no partition")
    reasons = [context.failure_event.message or ""]
    reasons += [
        event.step_failure_data.error_display_string for event in context.get_step_failure_events()
    ]
    send_alert(
        settings,
        f"PolicyAlign: a run of {partition} failed",
        f"run {run.run_id}\n" + "\n".join(filter(None, reasons)),
        context.log.warning,
    )
