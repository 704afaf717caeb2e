"""The `setting` and `container` tables: the persisted configuration, and what the repository allows.

Its status and its feature flags are checked inside every write transaction, so that they hold for every session of
every process from the moment they are set. The only write that does not ask is the one that sets the status.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from icelite.budget import MAX_LOCATION_CHARACTERS
from icelite.catalog.checksums import row_crc
from icelite.catalog.database import Transaction
from icelite.catalog.values import check_text, check_types, damaged, read_json, read_json_object, types
from icelite.config import RepositoryConfig, VirtualChunkContainer
from icelite.errors import ErrorKind, InvalidInputError, ReadOnlyError, SessionStateError, shown
from icelite.storage import StorageConfig
from icelite.types import FeatureFlag, RepoAvailability, RepoStatus

SELECT_SETTING = "SELECT value FROM setting WHERE name = ?"
UPSERT_SETTING = """
INSERT INTO setting (name, value, crc32c) VALUES (?1, ?2, ?3)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, crc32c = excluded.crc32c
"""
CONTAINER = types(str, str, str)
SELECT_CONTAINERS = "SELECT name, url_prefix, options FROM container ORDER BY id"
SELECT_CONTAINER_NUMBER = "SELECT id FROM container WHERE url_prefix = ?"
SELECT_LAST_CONTAINER = "SELECT coalesce(max(id), 0) FROM container"
INSERT_CONTAINER = "INSERT INTO container (id, name, url_prefix, options, crc32c) VALUES (?, ?, ?, ?, ?)"
UPDATE_CONTAINER = "UPDATE container SET name = ?2, url_prefix = ?3, options = ?4, crc32c = ?5 WHERE id = ?1"
DELETE_CONTAINER = "DELETE FROM container WHERE id = ?"
SELECT_SOME_OF_CONTAINER = "SELECT path FROM location WHERE container_id = ? LIMIT 1"
DELETE_SETTING = "DELETE FROM setting WHERE name = ?"


def find_setting(txn: Transaction, name: str) -> Any:
    """The value of a setting, or None when it was never set.

    Raises
    ------
    FormatError
        ``corrupt`` when the value is not JSON.
    """
    row = txn.row(SELECT_SETTING, (name,))
    return None if row is None else read_json(row[0], f"setting {name!r}")


def save_setting(txn: Transaction, name: str, value: Any) -> None:
    """Set a setting to a JSON-able value."""
    text = json.dumps(value)
    txn.run(UPSERT_SETTING, (name, text, row_crc(name, text)))


def drop_setting(txn: Transaction, name: str) -> None:
    """Forget a setting."""
    txn.run(DELETE_SETTING, (name,))


def home_of(storage: StorageConfig) -> str | None:
    """A fingerprint of a catalog's directory: tells a copied folder without telling the name of the first one."""
    return None if storage.home is None else hashlib.sha256(storage.home.encode()).hexdigest()[:32]


def list_containers(txn: Transaction) -> dict[str, VirtualChunkContainer]:
    """The persisted containers by name.

    Raises
    ------
    FormatError
        ``corrupt`` when a row does not describe a container.
    """
    containers: dict[str, VirtualChunkContainer] = {}
    for row in txn.rows(SELECT_CONTAINERS):
        check_types(row, CONTAINER, "a container")
        name, url_prefix, options = row
        for text in (name, url_prefix):
            check_text(text, "a container", MAX_LOCATION_CHARACTERS)
        try:
            described = read_json_object(options, f"container {shown(name)}")
            containers[name] = VirtualChunkContainer.from_options(url_prefix, described, name)
        except (ValueError, TypeError, AttributeError) as error:  # InvalidInputError is a ValueError
            raise damaged(f"container {shown(name)}", str(error)) from error
    return containers


def save_container(txn: Transaction, container: VirtualChunkContainer) -> None:
    """Add a container, or replace the one with the same prefix; the one with the same name gets its prefix.

    Raises
    ------
    InvalidInputError
        ``storage-config`` when name and prefix belong to two containers that are there.
    """
    known = list_containers(txn)
    same = known.get(str(container.name))
    taken = next((other for other in known.values() if other.url_prefix == container.url_prefix), None)
    if same is not None and same.url_prefix != container.url_prefix:
        if taken is not None:
            raise InvalidInputError(
                f"container {container.name!r} stands for {same.url_prefix!r} and cannot stand for"
                f" {container.url_prefix!r}, which is container {taken.name!r}; move the references with"
                f" relocate({f'vcc://{container.name}/'!r}, {f'vcc://{taken.name}/'!r})",
                ErrorKind.STORAGE_CONFIG,
            )
        move_container(txn, same.url_prefix, container)
    elif taken is not None:
        move_container(txn, container.url_prefix, container)
    else:
        last = txn.row(SELECT_LAST_CONTAINER)
        txn.run(INSERT_CONTAINER, _row(1 if last is None else last[0] + 1, container))


def move_container(txn: Transaction, url_prefix: str, moved: VirtualChunkContainer) -> None:
    """Let a container stand for another place; the references through it follow."""
    row = txn.row(SELECT_CONTAINER_NUMBER, (url_prefix,))
    if row is not None:
        txn.run(UPDATE_CONTAINER, _row(row[0], moved))


def drop_container(txn: Transaction, container: VirtualChunkContainer) -> None:
    """Remove a container that no reference needs.

    Raises
    ------
    InvalidInputError
        ``storage-config`` when there are references through it, in whatever snapshot.
    """
    row = txn.row(SELECT_CONTAINER_NUMBER, (container.url_prefix,))
    if row is None:
        return
    needed = txn.row(SELECT_SOME_OF_CONTAINER, row)
    if needed is not None:
        raise InvalidInputError(
            f"container {container.name!r} ({container.url_prefix}) cannot be removed: references such as"
            f" {shown(f'vcc://{container.name}/{needed[0]}')} need it, in some snapshot; keep it, or move them with"
            f" relocate({f'vcc://{container.name}/'!r}, ...); nothing was saved",
            ErrorKind.STORAGE_CONFIG,
        )
    txn.run(DELETE_CONTAINER, row)


def _row(number: int, container: VirtualChunkContainer) -> tuple[Any, ...]:
    row = number, container.name, container.url_prefix, json.dumps(container.options())
    return *row, row_crc(*row)


def load_config(txn: Transaction) -> RepositoryConfig:
    """The persisted configuration, with its containers.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    stored = find_setting(txn, "config") or {}
    try:
        config = RepositoryConfig.from_dict(stored)
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged("setting 'config'", str(error)) from error
    for container in list_containers(txn).values():
        config.set_virtual_chunk_container(container)
    return config


def save_config(txn: Transaction, config: RepositoryConfig, known: RepositoryConfig | None = None) -> None:
    """Persist a configuration, with its containers.

    Parameters
    ----------
    known
        What was read before: containers of it that ``config`` has no more are removed, all others stay.

    Raises
    ------
    InvalidInputError
        ``storage-config`` for a container that references need, and as `save_container`.
    """
    kept = config.virtual_chunk_containers or {}
    names = {container.name for container in kept.values()}
    for prefix, container in (known.virtual_chunk_containers or {} if known else {}).items():
        if prefix not in kept and container.name not in names:  # one whose name is kept has moved
            drop_container(txn, container)
    save_setting(txn, "config", config.to_dict())
    stored = {container.url_prefix: container for container in list_containers(txn).values()}
    for container in (config.virtual_chunk_containers or {}).values():
        if stored.get(container.url_prefix) != container:
            save_container(txn, container)


# -- what the repository allows ------------------------------------------------------------------------------------

STATUS = "status"
FEATURE_FLAGS = "feature_flags"

# Names and numbers are Icechunk's.
FLAGS = {
    "move_node": FeatureFlag(3, "move_node", default_enabled=True),
    "create_tag": FeatureFlag(4, "create_tag", default_enabled=True),
    "delete_tag": FeatureFlag(5, "delete_tag", default_enabled=True),
}


def find_status(txn: Transaction) -> RepoStatus:
    """The status of the repository; online since ever where none was set.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    stored = find_setting(txn, STATUS)
    if stored is None:
        return RepoStatus(RepoAvailability.online)
    try:
        return RepoStatus.from_dict(stored)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise damaged(f"setting {STATUS!r}", shown(stored)) from error


def save_status(txn: Transaction, status: RepoStatus) -> None:
    """Set the status."""
    save_setting(txn, STATUS, status.to_dict())


def check_online(txn: Transaction) -> None:
    """Refuse to change a repository that was made read-only.

    Raises
    ------
    ReadOnlyError
        ``read-only-repository``.
    """
    status = find_status(txn)
    if status.availability == RepoAvailability.read_only:
        because = status.limited_availability_reason
        since = "" if status.set_at is None else f" since {status.set_at:%Y-%m-%d %H:%M:%S} UTC"
        raise ReadOnlyError(
            f"the repository is read-only{since}{'' if because is None else f' ({because})'}; nothing was changed."
            " set_status(RepoStatus(RepoAvailability.online)) allows changes again",
            ErrorKind.READ_ONLY_REPOSITORY,
        )


def list_flags(txn: Transaction) -> list[FeatureFlag]:
    """Every feature flag, as it is set.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    stored = find_setting(txn, FEATURE_FLAGS) or {}
    if not isinstance(stored, dict) or not all(isinstance(setting, bool) for setting in stored.values()):
        raise damaged(f"setting {FEATURE_FLAGS!r}", shown(stored))
    return [FeatureFlag(f.id, f.name, f.default_enabled, stored.get(f.name)) for f in FLAGS.values()]


def save_flag(txn: Transaction, name: str, setting: bool | None) -> FeatureFlag:
    """Allow a feature, forbid it, or (None) leave it to its default.

    Raises
    ------
    InvalidInputError
        ``invalid-feature-flag``.
    """
    if name not in FLAGS:
        raise InvalidInputError(
            f"there is no feature flag {name!r}; the flags are {', '.join(map(repr, FLAGS))}",
            ErrorKind.INVALID_FEATURE_FLAG,
        )
    if not isinstance(setting, bool | None):
        raise InvalidInputError(
            f"feature flag {name!r} cannot be set to {setting!r}: pass True, False, or None for its default",
            ErrorKind.INVALID_FEATURE_FLAG,
        )
    stored = {flag.name: flag.setting for flag in list_flags(txn) if flag.setting is not None}
    stored.pop(name, None)
    save_setting(txn, FEATURE_FLAGS, stored if setting is None else {**stored, name: setting})
    return next(flag for flag in list_flags(txn) if flag.name == name)


def check_feature(txn: Transaction, name: str) -> None:
    """Refuse what a feature flag forbids.

    Raises
    ------
    SessionStateError
        ``feature-flag-disabled``.
    """
    if not next(flag.enabled for flag in list_flags(txn) if flag.name == name):
        raise SessionStateError(
            f"this repository forbids {name!r}; set_feature_flag({name!r}, True) allows it",
            ErrorKind.FEATURE_FLAG_DISABLED,
        )
