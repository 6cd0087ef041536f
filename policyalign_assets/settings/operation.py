"""Settings of the operation: automation and alerts. No stage reads them."""

from __future__ import annotations

from pydantic import (
    Field,
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
