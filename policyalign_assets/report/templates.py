"""Renders the HTML templates. Whatever they show passes through `visible` and HTML escaping.

Prompts, responses, policies and names are untrusted text.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from policyalign_assets.report import formatting


def rendered(template: str, **values: Any) -> str:
    """`template`: a file name in this package."""
    return _environment().get_template(template).render(**values)


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        finalize=_visible,
        loader=FunctionLoader(
            lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        ),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": formatting.percent,
        "rate": formatting.share_with_interval,
        "moment": formatting.moment,
        "points": formatting.points,
        "p_value": formatting.p_value,
        "value": _setting,
    }
    return environment


def _visible(value: Any) -> Any:
    """Jinja calls this on whatever an expression yields, just before it is escaped."""
    # What a macro returns is markup whose parts passed through here already.
    is_markup = hasattr(value, "__html__")
    return formatting.visible(value) if isinstance(value, str) and not is_markup else value


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
