"""`Repository`: the door to one catalog; it opens sessions and keeps branches, tags and configuration."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from typing import Any

from icelite.catalog import refs, snapshots
from icelite.catalog.database import Catalog, Transaction, create_catalog
from icelite.catalog.locations import insert_inline_location, list_locations
from icelite.catalog.operations import log_operation, now
from icelite.catalog.settings import find_setting, list_containers, load_config, save_config, save_setting
from icelite.config import RepositoryConfig
from icelite.errors import AlreadyExistsError, RepositoryNotFoundError
from icelite.repository.administration import Access
from icelite.repository.asynchronous import AsynchronousRepository
from icelite.repository.names import MAIN
from icelite.session.asynchronous import in_thread
from icelite.storage import StorageConfig, as_storage
from icelite.types import SpecVersion
from icelite.virtual import VirtualAccess

Storage = str | os.PathLike[str] | StorageConfig


class Repository(AsynchronousRepository):
    """A version-controlled Zarr repository in one SQLite file.

    Made by `create`, `open` and `open_or_create`. Threads may share one; processes open the file each for itself.
    It pickles: the copy opens the file again.
    """

    def __init__(self, catalog: Catalog, config: RepositoryConfig | None, access: Access | None) -> None:
        self._catalog = catalog
        self._given = (config, access)
        with catalog.read() as txn:
            self._stored = load_config(txn)
            containers = list_containers(txn)
            at_home = find_setting(txn, "home") == _home(catalog.storage)
        self._config = self._stored if config is None else self._stored.merge(config)
        self._commit_metadata: dict[str, Any] = {}
        given = (config.virtual_chunk_containers if config is not None else None) or {}
        declared = {prefix: container for prefix, container in given.items() if not container.from_catalog}
        self._access = VirtualAccess(
            directory=catalog.storage.directory,
            at_home=at_home,
            containers=containers,
            declared=declared,
            access=access or {},
            catalog=catalog.storage.path,
        )

    # -- coming into being -------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
    ) -> Repository:
        """Make a repository with an empty branch ``main``.

        Parameters
        ----------
        storage
            Path of the file to be, such as ``"ocean.icelite"``, or a `StorageConfig`.
        config
            Kept in the file for whoever opens it.
        authorize_virtual_chunk_access
            URL prefix to credentials: what this object may read; see `open`.

        Raises
        ------
        AlreadyExistsError, RepositoryNotFoundError, StorageError
            ``repository-already-exists``; ``repository-not-found`` when the directory does not exist; ``io``.
        """
        place = as_storage(storage)
        create_catalog(place, lambda txn: _initialize(txn, place, config or RepositoryConfig.default()))
        return cls.open(place, config, authorize_virtual_chunk_access)

    @classmethod
    def open(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
        *,
        check: str = "auto",
    ) -> Repository:
        """Open a repository; no file is created.

        Parameters
        ----------
        config
            Laid over the stored configuration, for this object only.
        authorize_virtual_chunk_access
            URL prefix to credentials, for virtual chunks outside the catalog's own directory; `required_access`
            lists what a repository needs.
        check
            ``auto``: let SQLite check the whole file when this machine has not met it; ``always``; ``never``.

        Raises
        ------
        RepositoryNotFoundError, FormatError, StorageError
            ``repository-not-found``; ``not-a-catalog``, ``empty-file``, ``not-a-file``, ``other-application``,
            ``truncated-file``, ``unsupported-spec-version``, ``unexpected-schema``, ``corrupt``; ``busy``, ``io``.
        """
        timeout = (config or RepositoryConfig.default()).busy_timeout_seconds
        catalog = Catalog(as_storage(storage), check=check, busy_timeout=timeout)
        return cls(catalog, config, authorize_virtual_chunk_access)

    @classmethod
    def open_or_create(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
    ) -> Repository:
        """Open a repository, or make it where there is none; raises as `open` and `create`."""
        place = as_storage(storage)  # once: two memory storages are two repositories
        try:
            return cls.open(place, config, authorize_virtual_chunk_access)
        except RepositoryNotFoundError:
            try:
                return cls.create(place, config, authorize_virtual_chunk_access)
            except AlreadyExistsError:  # another process was quicker
                return cls.open(place, config, authorize_virtual_chunk_access)

    @staticmethod
    def exists(storage: Storage) -> bool:
        """Whether there is a repository that `open` would open.

        Raises
        ------
        FormatError
            As `open`, for a file that is there but is no usable catalog.
        """
        try:
            Catalog(as_storage(storage)).close()
        except RepositoryNotFoundError:
            return False
        return True

    @staticmethod
    def fetch_config(storage: Storage) -> RepositoryConfig | None:
        """The persisted configuration of a repository, with its containers; raises as `open`."""
        with contextlib.closing(Catalog(as_storage(storage))) as catalog, catalog.read() as txn:
            return load_config(txn)

    @staticmethod
    def fetch_spec_version(storage: Storage) -> SpecVersion | None:
        """Version of the format of a repository, or None where there is none; raises as `exists`."""
        return SpecVersion.current() if Repository.exists(storage) else None

    def reopen(
        self, config: RepositoryConfig | None = None, authorize_virtual_chunk_access: Access | None = None
    ) -> Repository:
        """The same repository in a new object, with another configuration or other credentials.

        Parameters
        ----------
        config, authorize_virtual_chunk_access
            As `open`; by default what this object was given.
        """
        old_config, old_access = self._given
        access = old_access if authorize_virtual_chunk_access is None else authorize_virtual_chunk_access
        return _reopen(
            type(self), self.storage, old_config if config is None else config, access, self._commit_metadata
        )

    @property
    def storage(self) -> StorageConfig:
        """Where it is."""
        return self._catalog.storage

    def required_access(self) -> dict[str, str]:
        """What to pass as ``authorize_virtual_chunk_access`` to read every virtual chunk.

        Returns
        -------
        dict
            URL prefix to a Python expression; empty when all references are relative.
        """
        with self._catalog.read() as txn:
            locations = list_locations(txn)
        return self._access.required(locations)

    def close(self) -> None:
        """Release the file. Sessions opened for writing keep their own hold on it."""
        self._catalog.close()

    # -- for event loops: as the methods without _async, in a thread -----------------------------------------

    @classmethod
    async def create_async(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
    ) -> Repository:
        """See `create`."""
        return await asyncio.to_thread(cls.create, storage, config, authorize_virtual_chunk_access)

    @classmethod
    async def open_async(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
        *,
        check: str = "auto",
    ) -> Repository:
        """See `open`."""
        return await asyncio.to_thread(cls.open, storage, config, authorize_virtual_chunk_access, check=check)

    @classmethod
    async def open_or_create_async(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
    ) -> Repository:
        """See `open_or_create`."""
        return await asyncio.to_thread(cls.open_or_create, storage, config, authorize_virtual_chunk_access)

    @staticmethod
    async def exists_async(storage: Storage) -> bool:
        """See `exists`."""
        return await asyncio.to_thread(Repository.exists, storage)

    @staticmethod
    async def fetch_config_async(storage: Storage) -> RepositoryConfig | None:
        """See `fetch_config`."""
        return await asyncio.to_thread(Repository.fetch_config, storage)

    @staticmethod
    async def fetch_spec_version_async(storage: Storage) -> SpecVersion | None:
        """See `fetch_spec_version`."""
        return await asyncio.to_thread(Repository.fetch_spec_version, storage)

    reopen_async = in_thread(reopen)

    # -- as a Python object ------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<icelite.Repository {self._catalog.storage.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.storage, *self._given, self._commit_metadata)


def _reopen(
    cls: type[Repository],
    storage: StorageConfig,
    config: RepositoryConfig | None,
    access: Access | None,
    commit_metadata: dict[str, Any],
) -> Repository:
    repository = cls.open(storage, config, access)
    repository.set_default_commit_metadata(commit_metadata)
    return repository


def _initialize(txn: Transaction, storage: StorageConfig, config: RepositoryConfig) -> None:
    created_at = now()
    seq = log_operation(txn, "RepoInitialized", {}, created_at)
    snapshots.insert_first_snapshot(txn, seq, created_at)
    refs.insert_branch(txn, MAIN, seq)
    insert_inline_location(txn)
    save_config(txn, config)
    save_setting(txn, "home", _home(storage))


def _home(storage: StorageConfig) -> str | None:
    """A fingerprint of the catalog's directory: tells a copied folder without telling the name of the first one."""
    return None if storage.directory is None else hashlib.sha256(str(storage.directory).encode()).hexdigest()[:32]
