"""The repository as a whole: the part of `Repository` about its metadata, status, feature flags and configuration.

What is set here is in the catalog and counts for every process from that moment; only the default commit metadata
belongs to one `Repository` object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from icelite.catalog.database import Catalog, Transaction, repeated
from icelite.catalog.operations import log_operation
from icelite.catalog.settings import (
    check_online,
    find_setting,
    find_status,
    list_flags,
    load_config,
    save_config,
    save_flag,
    save_setting,
    save_status,
)
from icelite.config import RepositoryConfig, normalize_prefix
from icelite.credentials import AnyCredential
from icelite.errors import ConflictError, ErrorKind, InvalidInputError
from icelite.repository.native import ObjectStorage
from icelite.types import FeatureFlag, RepoStatus, SpecVersion

Access = Mapping[str, AnyCredential | None]


class Administration:
    """What `Repository` knows about itself."""

    _catalog: Catalog
    _config: RepositoryConfig
    _stored: RepositoryConfig  # what was persisted when this object read it
    _given: tuple[RepositoryConfig | None, Access | None, ObjectStorage | None]
    _commit_metadata: dict[str, Any]

    # -- metadata ----------------------------------------------------------------------------------------------

    def get_metadata(self) -> dict[str, Any]:
        """The metadata of the repository: a JSON object, empty until it is set."""
        with self._catalog.read() as txn:
            return _metadata(txn)

    @property
    def metadata(self) -> dict[str, Any]:
        """See `get_metadata`."""
        return self.get_metadata()

    @repeated
    def set_metadata(self, metadata: dict[str, Any]) -> None:
        """Replace the metadata of the repository.

        Raises
        ------
        InvalidInputError, ReadOnlyError
            ``invalid-argument`` for what is not a JSON object; ``read-only-repository``, ``read-only-storage``.
        """
        check_json_object(metadata, "repository metadata")
        with self._catalog.write() as txn:
            check_online(txn)
            save_setting(txn, "metadata", metadata)
            log_operation(txn, "MetadataChanged", {})

    @repeated
    def update_metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Set some keys of the metadata, and leave the others; the whole of it. Raises as `set_metadata`."""
        check_json_object(metadata, "repository metadata")
        with self._catalog.write() as txn:
            check_online(txn)
            merged = {**_metadata(txn), **metadata}
            save_setting(txn, "metadata", merged)
            log_operation(txn, "MetadataChanged", {})
        return merged

    def default_commit_metadata(self) -> dict[str, Any]:
        """A copy of what commits of sessions from this object have as metadata, unless they say otherwise."""
        return dict(self._commit_metadata)

    def set_default_commit_metadata(self, metadata: dict[str, Any]) -> None:
        """Set what commits of sessions opened from now on have as metadata; what a commit itself is given wins.

        Raises
        ------
        InvalidInputError
            ``invalid-argument`` for what is not a JSON object.
        """
        check_json_object(metadata, "commit metadata")
        self._commit_metadata = dict(metadata)

    # -- what is allowed ---------------------------------------------------------------------------------------

    def get_status(self) -> RepoStatus:
        """Whether the repository may be changed."""
        with self._catalog.read() as txn:
            return find_status(txn)

    @property
    def status(self) -> RepoStatus:
        """See `get_status`."""
        return self.get_status()

    @repeated
    def set_status(self, status: RepoStatus) -> None:
        """Make the repository read-only, or writable again.

        While it is read-only every change is refused, in every process and from every session, also those opened
        before: `ReadOnlyError` ``read-only-repository``. Only this method works.
        """
        if status.set_at is None:
            status = replace(status, set_at=datetime.now(UTC))
        with self._catalog.write() as txn:  # no check_online: this is how it comes online again
            save_status(txn, status)
            log_operation(txn, "RepoStatusChanged", {"status": status.to_dict()})

    def feature_flags(self) -> list[FeatureFlag]:
        """Every feature flag: ``move_node``, ``create_tag``, ``delete_tag``."""
        with self._catalog.read() as txn:
            return list_flags(txn)

    def enabled_feature_flags(self) -> list[FeatureFlag]:
        """The flags of what is allowed."""
        return [flag for flag in self.feature_flags() if flag.enabled]

    def disabled_feature_flags(self) -> list[FeatureFlag]:
        """The flags of what is forbidden: trying it is a `SessionStateError` ``feature-flag-disabled``."""
        return [flag for flag in self.feature_flags() if not flag.enabled]

    @repeated
    def set_feature_flag(self, name: str, setting: bool | None) -> None:
        """Allow something, forbid it, or (None) leave it to its default.

        Raises
        ------
        InvalidInputError, ReadOnlyError
            ``invalid-feature-flag``; ``read-only-repository``, ``read-only-storage``.
        """
        with self._catalog.write() as txn:
            check_online(txn)
            flag = save_flag(txn, name, setting)
            log_operation(txn, "FeatureFlagChanged", {"id": flag.id, "new_value": flag.setting})

    # -- configuration -----------------------------------------------------------------------------------------

    @property
    def config(self) -> RepositoryConfig:
        """A copy of the configuration in force: the persisted one, with what was passed laid over it."""
        return self._config.merge(RepositoryConfig.default())

    @repeated
    def save_config(self) -> None:
        """Persist the configuration in force, for whoever opens the repository from now on.

        Containers that were taken out of it are removed, those that others have added meanwhile stay.

        Raises
        ------
        ConflictError, InvalidInputError, ReadOnlyError
            ``config-updated`` when somebody else has saved another one since this object read it; ``storage-config``
            when a removed container is needed by references, which are named; ``read-only-repository``,
            ``read-only-storage``. Nothing is saved then.
        """
        with self._catalog.write() as txn:
            check_online(txn)
            stored = load_config(txn)
            changed = _changed_by_others(self._stored, stored, self._config)
            if changed:
                raise ConflictError(
                    f"the stored configuration was changed by another session ({', '.join(changed)}); nothing was"
                    " saved: reopen() the repository with the configuration you want, and save that",
                    ErrorKind.CONFIG_UPDATED,
                )
            save_config(txn, self._config, self._stored)
            log_operation(txn, "ConfigChanged", {})
            saved = load_config(txn)
        self._stored = saved
        given = self._given[0]
        if given is not None:  # what it took away is gone; reopen() must not take away what others add from now on
            self._given = (given.without_removals(), *self._given[1:])
        self._config = self._config.without_removals()

    @property
    def authorized_virtual_container_prefixes(self) -> set[str]:
        """The URL prefixes that were authorised for this object."""
        return {normalize_prefix(prefix) for prefix in self._given[1] or {}}

    @property
    def spec_version(self) -> SpecVersion:
        """Version of the catalog's format."""
        return SpecVersion.current()  # opening refuses every other


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
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{what} is not JSON: {error}", ErrorKind.INVALID_ARGUMENT) from error


def _metadata(txn: Transaction) -> dict[str, Any]:
    found = find_setting(txn, "metadata")
    return found if isinstance(found, dict) else {}


def _changed_by_others(before: RepositoryConfig, now: RepositoryConfig, ours: RepositoryConfig) -> list[str]:
    """What somebody else has saved meanwhile and we would overwrite; containers they added are no conflict."""
    old, new = before.to_dict(), now.to_dict()
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    for prefix, container in (now.virtual_chunk_containers or {}).items():
        mine = ours.get_virtual_chunk_container(prefix)
        if mine not in (None, container) and before.get_virtual_chunk_container(prefix) != container:
            changed.append(prefix)
    return changed
