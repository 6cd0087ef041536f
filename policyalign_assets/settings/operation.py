"""Settings of the operation: automation and alerts. No stage reads them."""

from __future__ import annotations

import re

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from policyalign_assets.settings.base import VARIABLE, Section


class AutomationSettings(Section):
    """When automatic re-alignment looks for work. No stage reads these settings."""

    enabled: bool = Field(
        False,
        description="whether the sensor and the schedule are on from the start, without a click in "
        "the UI",
    )
    sensor_seconds: int = Field(30, ge=1, description="seconds between two checks of the policies")
    nightly: str = Field(
        "0 2 * * *", description="cron of the schedule, which also retries what has failed"
    )


def approver_parts(named: str) -> tuple[str, str]:
    """Name of an approver, and the beginning of their key id: "Eve Hall sha256:3f9c2b1a".

    The key is empty where none is named. Raises ValueError for a text that is no approver.
    """
    found = re.fullmatch(r"(?P<name>[^:]*\w[^:]*?)(?:\s+sha256:(?P<key>[0-9a-f]{8,64}))?", named)
    if found is None:
        raise ValueError(
            f"{named[:80]!r} names no approver. Fix: write a name, or a name and a key id, such as "
            "'Eve Hall sha256:3f9c2b1a'"
        )
    return found["name"].strip(), found["key"] or ""


class ReleaseSettings(Section):
    """Who may approve a release, beside those that a policy names itself. No stage reads this."""

    approvers: tuple[str, ...] = Field(
        (),
        description="names, each with the beginning of a key id if wanted: 'Eve Hall "
        "sha256:3f9c2b1a'; they may approve releases of every policy",
    )

    @field_validator("approvers")
    @classmethod
    def _each_is_a_person(cls, named: tuple[str, ...]) -> tuple[str, ...]:
        for one in named:
            approver_parts(one)
        return named


class AlertSettings(Section):
    """Who is told of failed runs and failed release gates: nobody, unless an address is set."""

    webhook_variable: str | None = Field(
        None,
        pattern=VARIABLE,
        description="environment variable that holds the URL of a webhook that accepts {'text': …}",
    )
    email_to: str | None = Field(None, description="address to which alerts are sent")
    email_from: str = Field("policyalign@localhost", description="sender's address of alerts")
    smtp_host: str = "localhost"
    smtp_port: int = Field(25, ge=1, le=65535)
    smtp_tls: bool = Field(False, description="use STARTTLS; required if a password is sent")
    smtp_user: str | None = None
    smtp_password_variable: str | None = Field(
        None, pattern=VARIABLE, description="environment variable that holds the password"
    )

    @property
    def on(self) -> bool:
        return bool(self.webhook_variable or self.email_to)

    @model_validator(mode="after")
    def _no_password_in_the_clear(self) -> AlertSettings:
        if self.smtp_password_variable and not self.smtp_tls:
            raise ValueError(
                "alerts.smtp_password_variable is set, but alerts.smtp_tls is not, so the password "
                "would be sent unencrypted. Fix: set alerts.smtp_tls=true"
            )
        return self
