"""The latest events of an asset: one record for each partition, in two queries however many."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg


def latest_materializations(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> Sequence[dg.EventLogRecord]:
    """The latest materialization of each partition of an asset."""
    ids = _ids(instance, key, dg.DagsterEventType.ASSET_MATERIALIZATION)
    if not ids:
        return ()
    return instance.fetch_materializations(
        dg.AssetRecordsFilter(key, storage_ids=ids), limit=len(ids)
    ).records


def latest_observations(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> Sequence[dg.EventLogRecord]:
    """The latest observation of each partition of an asset."""
    ids = _ids(instance, key, dg.DagsterEventType.ASSET_OBSERVATION)
    if not ids:
        return ()
    return instance.fetch_observations(
        dg.AssetRecordsFilter(key, storage_ids=ids), limit=len(ids)
    ).records


def _ids(instance: dg.DagsterInstance, key: dg.AssetKey, kind: dg.DagsterEventType) -> list[int]:
    storage = instance.event_log_storage
    return list(storage.get_latest_storage_id_by_partition(key, kind).values())
