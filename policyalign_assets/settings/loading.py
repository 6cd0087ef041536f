"""Settings from profile, environment and overrides, with errors in plain words."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, get_origin

from pydantic import (
    BaseModel,
    ValidationError,
)

from policyalign_assets.settings.base import BUNDLED, ENGLISH, ENV_PREFIX, LOCAL, SettingsError
from policyalign_assets.settings.endpoints import KEY_VARIABLE
from policyalign_assets.settings.pipeline import Settings
from policyalign_assets.settings.profiles import PROFILES

# Variables that are read elsewhere, or that are not settings of the pipeline itself.
PLAIN_VARIABLES = {
    "PROFILE",
    "DATA_DIR",
    "DEPLOYMENTS_DIR",
    "DOMAINS",
    "POLICIES_DIR",
    "SCRATCH_DIR",
    "LAUNCHER",
    "EXCHANGE",
    "IMAGE",
    "SHARED_DATA",
    "STUDY",
    "KEY_VARIABLES",
    "ENDPOINT_HOSTS",
}
# Fields into which somebody may put a secret by mistake.
NEVER_SHOWN = {
    "api_key_variable",
    "base_url",
    "servers",
    "server_key_variable",
    "webhook_variable",
    "smtp_password_variable",
    "smtp_user",
}
# By type of pydantic's errors, whose messages say what is wrong but not what to do.
_FIXES = {
    "greater_than": ". Fix: set it to more than {gt}.",
    "greater_than_equal": ". Fix: set it to {ge} or more.",
    "less_than": ". Fix: set it to less than {lt}.",
    "less_than_equal": ". Fix: set it to {le} or less.",
    "literal_error": ". Fix: set it to {expected}.",
    "int_parsing": ". Fix: write a whole number.",
    "int_from_float": ". Fix: write a whole number.",
    "int_type": ". Fix: write a whole number.",
    "float_parsing": ". Fix: write a number.",
    "float_type": ". Fix: write a number.",
    "bool_parsing": ". Fix: write true or false.",
    "bool_type": ". Fix: write true or false.",
    "extra_forbidden": ". Fix: remove it, or correct its name.",
}
_LIKE_A_SECRET = re.compile(r"://|[\w+/=.-]{24}|^(?:sk|hf|pk|gh[a-z]|xox[a-z])[-_]", re.IGNORECASE)


def _merge(base: Mapping, extra: Mapping) -> dict:
    out = dict(base)
    for key, value in extra.items():
        old = out.get(key)
        out[key] = (
            _merge(old if isinstance(old, Mapping) else {}, value)
            if isinstance(value, Mapping)
            else value
        )
    return out


def _from_environment(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in environ.items():
        if not name.startswith(ENV_PREFIX):
            continue
        path = name.removeprefix(ENV_PREFIX)
        if path in PLAIN_VARIABLES or KEY_VARIABLE.fullmatch(name):
            continue
        section, dot, field = path.lower().partition("__")
        known = Settings.model_fields.get(section)
        fields = getattr(known.annotation, "model_fields", {}) if known else {}
        if not dot or field not in fields:
            # The value is not repeated, because a variable with a mistyped name may hold a key.
            sections_there = ", ".join(k for k in Settings.model_fields if k != "profile")
            raise SettingsError(
                f"the environment variable {name} names no setting. Fix: use "
                f"{ENV_PREFIX}<SECTION>__<FIELD>, for example {ENV_PREFIX}DISTILLATION__STEPS=60; "
                f"the sections are {sections_there}."
            )
        kind = get_origin(fields[field].annotation)
        sections.setdefault(section, {})[field] = _parsed(name, value, kind)
    return sections


def _parsed(name: str, value: str, kind: Any) -> Any:
    """Split lists at commas, and read mappings as JSON; other values stay text for pydantic."""
    if kind is tuple:
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        if not all(parts):
            raise SettingsError(
                f"the environment variable {name} has an empty item. Fix: separate items by one "
                "comma, or set it to nothing at all for no item."
            )
        return parts
    if kind is not dict:
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        # The value is not repeated, because a parameter of an endpoint may be a secret.
        raise SettingsError(
            f"the environment variable {name} is no JSON object. Fix: write, for example, "
            f'{name}=\'{{"reasoning_effort": "low"}}\'.'
        )
    return parsed


def _profile_of_the_model(overrides: Mapping[str, Any] | None, environ: Mapping[str, str]) -> str:
    """Return the profile if none is named; another model never gets that of the bundled model."""
    section = (overrides or {}).get("model")
    given = section.get("id") if isinstance(section, Mapping) else getattr(section, "id", None)
    model_id = given or environ.get(ENV_PREFIX + "MODEL__ID") or BUNDLED
    profile = {BUNDLED: BUNDLED, ENGLISH: ENGLISH}.get(model_id, LOCAL)
    if profile == LOCAL:
        _say_that_local_was_chosen(model_id)
    return profile


@cache
def _say_that_local_was_chosen(model_id: str) -> None:
    logging.getLogger(__name__).warning(
        "profile 'local' is used, because model.id=%r is set and no profile is named; to use "
        "another one, set %sPROFILE to one of %s",
        model_id,
        ENV_PREFIX,
        ", ".join(sorted(PROFILES)),
    )


def load_settings(
    profile: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Load the settings of `profile`, overridden by environment variables and by `overrides`.

    `overrides` are nested by section. Without a profile, the model decides: `bundled` and `english`
    have profiles of their own, any other model gets `local`, and the log says so. Raises
    SettingsError, which names each wrong value.
    """
    environ = os.environ if environ is None else environ
    named = profile or environ.get(ENV_PREFIX + "PROFILE")
    profile = named or _profile_of_the_model(overrides, environ)
    if profile not in PROFILES:
        raise SettingsError(
            f"profile {profile!r} does not exist. Fix: use one of {', '.join(sorted(PROFILES))}."
        )
    if overrides and "profile" in overrides:
        raise SettingsError(
            f"overrides cannot choose the profile ({overrides['profile']!r}). Fix: give it as "
            f"`profile`, or set {ENV_PREFIX}PROFILE."
        )
    values = _merge(_merge(PROFILES[profile], _from_environment(environ)), overrides or {})
    if profile == LOCAL and values.get("model", {}).get("id", BUNDLED) == BUNDLED:
        raise SettingsError(
            "profile 'local' is for a model of your own, but model.id does not name one. Fix: set "
            f"{ENV_PREFIX}MODEL__ID to its folder or hub id."
        )
    try:
        return Settings.model_validate({**values, "profile": profile})
    except ValidationError as error:
        lines = [_line(dict(fault)) for fault in error.errors()]
        raise SettingsError("Wrong settings:\n  " + "\n  ".join(lines)) from None


def _line(fault: dict[str, Any]) -> str:
    """Describe one of pydantic's errors. A value is repeated only if it cannot be a secret."""
    name = ".".join(map(str, fault["loc"])) or "settings"
    message = fault["msg"].removeprefix("Value error, ")
    shown = f" (got {fault['input']!r})" if _may_be_shown(fault) else ""
    fix = "" if "Fix:" in message else _FIXES.get(fault["type"], "")
    return f"{name}: {message}{shown}" + fix.format(**fault.get("ctx", {}))


def _may_be_shown(fault: dict[str, Any]) -> bool:
    value = fault["input"]
    if isinstance(value, (dict, BaseModel)) or fault["type"] == "extra_forbidden":
        return False
    if not fault["loc"] or fault["loc"][-1] in NEVER_SHOWN:
        return False
    return not isinstance(value, str) or not _LIKE_A_SECRET.search(value)
