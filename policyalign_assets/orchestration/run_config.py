"""The settings as typed run config: the launchpad completes sections, fields and choices.

The classes are made from the sections of `settings`, so a new setting is there at once, with its
description. A field that is left out has the value of the deployment. Endpoints and their keys
belong to the deployment alone.
"""

from __future__ import annotations

from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, create_model

from policyalign_assets.settings import Settings

# Whoever starts a run must not send a key of the deployment to a server of their own
ENDPOINTS = {"api_key_variable", "base_url", "extra_parameters"}
# Dagster's config has no type for a mapping of mixed values.
UNTYPED = {"template_arguments"}
# chosen beside the overrides, or read by no run
NOT_BY_RUN = {"profile", "automation", "alerts", "release"}


def _type(name: str, annotation: Any) -> Any:
    """The type in Dagster's config that corresponds to a field's type."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        (annotation,) = (a for a in args if a is not NoneType)
        return _type(name, annotation)
    if origin is Literal:
        return Enum(name, {value: value for value in args})
    if origin is tuple:
        return list[_type(name, args[0])]  # type: ignore[misc]
    return annotation


def _section(name: str, section: type[BaseModel]) -> type[dg.Config]:
    fields: dict[str, Any] = {
        field: (
            _type(f"{name}_{field}", info.annotation) | None,
            Field(default=None, description=info.description),
        )
        for field, info in section.model_fields.items()
        if field not in ENDPOINTS | UNTYPED
    }
    return create_model(f"{name.title()}Overrides", __base__=dg.Config, **fields)


def _sections() -> dict[str, Any]:
    fields = {}
    for name, info in Settings.model_fields.items():
        if name not in NOT_BY_RUN and isinstance(info.annotation, type):
            kind = _section(name, info.annotation)
            fields[name] = (kind, Field(default_factory=kind, description=kind.__doc__))
    return fields


class _Overrides(dg.Config):
    def values_set(self) -> dict[str, dict[str, Any]]:
        """{section: {field: value}} of what was given."""
        given = self.model_dump(mode="json", exclude_none=True)
        return {section: values for section, values in given.items() if values}


Overrides: type[_Overrides] = create_model("Overrides", __base__=_Overrides, **_sections())
