"""What a repository keeps about itself: metadata, status, feature flags and configuration, and what it begins with.

What is set here is in the catalog and counts for every process from that moment. Raises as the method of `Repository`
that has its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from icelite.catalog import refs, snapshots
from icelite.catalog.database import Catalog, Transaction, repeated
from icelite.catalog.locations import insert_inline_location
from icelite.catalog.operations import log_operation, now
from icelite.catalog.settings import (
    check_online,
    find_setting,
    find_status,
    home_of,
    load_config,
    save_flag,
    save_setting,
    save_status,
)
from icelite.catalog.settings import save_config as store_config
from icelite.config import RepositoryConfig
from icelite.errors import ConflictError, ErrorKind, InvalidInputError
from icelite.repository.names import MAIN
from icelite.repository.native import ObjectsFolder, save_place
from icelite.storage import StorageConfig
from icelite.types import RepoStatus


def initialize(
    txn: Transaction, storage: StorageConfig, config: RepositoryConfig, native: ObjectsFolder | None
) -> None:
    """What a new repository has: the first snapshot, the branch ``main``, and its configuration."""
    created_at = now()
    seq = log_operation(txn, "RepoInitialized", {}, created_at, with_snapshot=True)
    snapshots.insert_first_snapshot(txn, seq, created_at)
    refs.insert_branch(txn, MAIN, seq)
    insert_inline_location(txn)
    store_config(txn, config)
    save_setting(txn, "home", home_of(storage))
    if native is not None:
        save_place(txn, native)


def load_metadata(catalog: Catalog) -> dict[str, Any]:
    """The metadata of the repository; empty until it is set."""
    with catalog.read() as txn:
        return _metadata(txn)


def load_status(catalog: Catalog) -> RepoStatus:
    """Whether the repository may be changed."""
    with catalog.read() as txn:
        return find_status(txn)


def _metadata(txn: Transaction) -> dict[str, Any]:
    found = find_setting(txn, "metadata")
    return found if isinstance(found, dict) else {}


@repeated
def set_metadata(catalog: Catalog, metadata: dict[str, Any]) -> None:
    """Replace the metadata of the repository."""
    check_json_object(metadata, "repository metadata")
    with catalog.write() as txn:
        check_online(txn)
        save_setting(txn, "metadata", metadata)
        log_operation(txn, "MetadataChanged", {})


@repeated
def update_metadata(catalog: Catalog, metadata: dict[str, Any]) -> dict[str, Any]:
    """Set some keys of the metadata; the whole of it."""
    check_json_object(metadata, "repository metadata")
    with catalog.write() as txn:
        check_online(txn)
        merged = {**_metadata(txn), **metadata}
        save_setting(txn, "metadata", merged)
        log_operation(txn, "MetadataChanged", {})
    return merged


@repeated
def set_status(catalog: Catalog, status: RepoStatus) -> None:
    """Make the repository read-only, or writable again."""
    if status.set_at is None:
        status = replace(status, set_at=datetime.now(UTC))
    with catalog.write() as txn:  # no check_online: this is how it comes online again
        save_status(txn, status)
        log_operation(txn, "RepoStatusChanged", {"status": status.to_dict()})


@repeated
def set_feature_flag(catalog: Catalog, name: str, setting: bool | None) -> None:
    """Allow something, forbid it, or leave it to its default."""
    with catalog.write() as txn:
        check_online(txn)
        flag = save_flag(txn, name, setting)
        log_operation(txn, "FeatureFlagChanged", {"id": flag.id, "new_value": flag.setting})


@repeated
def save_config(catalog: Catalog, config: RepositoryConfig, before: RepositoryConfig) -> RepositoryConfig:
    """Persist a configuration that was read as ``before``; what the catalog has then."""
    with catalog.write() as txn:
        check_online(txn)
        stored = load_config(txn)
        changed = _changed_by_others(before, stored, config)
        if changed:
            raise ConflictError(
                f"the stored configuration was changed by another session ({', '.join(changed)}); nothing was"
                " saved: reopen() the repository with the configuration you want, and save that",
                ErrorKind.CONFIG_UPDATED,
            )
        store_config(txn, config, before)
        log_operation(txn, "ConfigChanged", {})
        return load_config(txn)


def check_json_object(value: object, what: str) -> None:
    """Refuse what is not a JSON object.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``.
    """
    if not isinstance(value, dict):
        raise InvalidInputError(f"{what} {value!r} is not a dict", ErrorKind.INVALID_ARGUMENT)
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{what} is not JSON: {error}", ErrorKind.INVALID_ARGUMENT) from error


def _changed_by_others(before: RepositoryConfig, now: RepositoryConfig, ours: RepositoryConfig) -> list[str]:
    """What somebody else has saved meanwhile and we would overwrite; containers they added are no conflict."""
    old, new = before.to_dict(), now.to_dict()
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    for prefix, container in (now.virtual_chunk_containers or {}).items():
        mine = ours.get_virtual_chunk_container(prefix)
        if mine not in (None, container) and before.get_virtual_chunk_container(prefix) != container:
            changed.append(prefix)
    return changed


def with_moved(config: RepositoryConfig, moved: Mapping[str, str]) -> RepositoryConfig:
    """A configuration whose containers are at their new prefixes."""
    if not moved:
        return config
    after = config.merge(RepositoryConfig.default())
    after.clear_virtual_chunk_containers()
    for prefix, container in (config.virtual_chunk_containers or {}).items():
        after.set_virtual_chunk_container(container.at(moved[prefix]) if prefix in moved else container)
    return after
