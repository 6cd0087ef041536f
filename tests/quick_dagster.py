"""Makes Dagster cheaper in tests, without a change of what it does.

Whenever an instance, a sensor or a query begins, it makes anew what stays the same: an engine of
SQLAlchemy, which takes longer than the query and compiles every statement again; Alembic's folder
of migrations; the schema of a resource. Here they are kept.
"""

import multiprocessing
from functools import cache, lru_cache
from multiprocessing.context import ForkServerProcess, SpawnContext

import sqlalchemy
from alembic.script import ScriptDirectory
from dagster._config.pythonic_config import resource
from dagster._core.storage import sql
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from sqlalchemy.pool import NullPool


def keep_what_stays_the_same() -> None:
    for module in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
        module.create_engine = _engine_of
    sql.ScriptDirectory = _KeptMigrations
    resource.infer_schema_from_config_class = _schema_of


def fork_runs(*preloaded: str) -> None:
    """The runs that this code server starts are forks of a process that has imported `preloaded`.

    Otherwise each imports Dagster and the definitions first: four seconds.
    """
    multiprocessing.set_forkserver_preload(list(preloaded))
    SpawnContext.Process = ForkServerProcess


def _engine_of(url: str, poolclass: type, connect_args: dict[str, object] | None = None):
    assert poolclass is NullPool  # the engine holds no connection that outlives a query
    return _engine(url, tuple((connect_args or {}).items()))


@lru_cache(maxsize=1_000)
def _engine(url: str, arguments: tuple[tuple[str, object], ...]):
    return sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=dict(arguments))


class _KeptMigrations:
    known: dict[str, ScriptDirectory] = {}

    @classmethod
    def from_config(cls, config):
        folder = config.get_main_option("script_location")
        if folder not in cls.known:
            cls.known[folder] = ScriptDirectory.from_config(config)
        return cls.known[folder]


_infer = resource.infer_schema_from_config_class


def _schema_of(model_cls, description=None, fields_to_omit=None, default=None):
    if default is not None:
        return _infer(model_cls, description, fields_to_omit, default)
    return _schema(model_cls, description, frozenset(fields_to_omit or ()))


@cache
def _schema(model_cls, description, fields_to_omit):
    return _infer(model_cls, description, set(fields_to_omit))
