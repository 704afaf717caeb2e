"""`Repository`: the door to one catalog; it opens sessions and keeps branches, tags and configuration."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any, Self

from icelite.catalog import refs, snapshots
from icelite.catalog.connections import Spares
from icelite.catalog.creation import create_catalog
from icelite.catalog.database import Catalog, Transaction
from icelite.catalog.locations import insert_inline_location, list_locations
from icelite.catalog.locks import check_locks
from icelite.catalog.operations import log_operation, now
from icelite.catalog.settings import find_setting, home_of, list_containers, load_config, save_config, save_setting
from icelite.config import RepositoryConfig
from icelite.errors import AlreadyExistsError, RepositoryNotFoundError
from icelite.repository.administration import Access
from icelite.repository.asynchronous import AsynchronousRepository
from icelite.repository.names import MAIN
from icelite.repository.native import (
    ObjectsFolder,
    ObjectStorage,
    default_objects,
    find_place,
    find_root,
    locate_objects,
    open_objects,
    own_folder,
    save_place,
)
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

    def __init__(
        self,
        catalog: Catalog,
        config: RepositoryConfig | None,
        access: Access | None,
        objects: ObjectStorage | None = None,
    ) -> None:
        self._catalog = catalog
        self._given = (config, access, objects)
        with catalog.read() as txn:
            root = find_root(txn)
            self._stored = load_config(txn)
            containers = list_containers(txn)
            at_home = find_setting(txn, "home") == home_of(catalog.storage)
        self._config = self._stored if config is None else self._stored.merge(config)
        catalog.strict_locking = self._config.strict_locking
        is_local, timeout = catalog.storage.address is None, self._config.busy_timeout_seconds
        self._spares = Spares(catalog.storage, timeout) if is_local else None
        self._commit_metadata: dict[str, Any] = {}
        given = (config.virtual_chunk_containers if config is not None else None) or {}
        declared = {prefix: container for prefix, container in given.items() if not container.from_catalog}
        place = find_place(root, objects, catalog.storage)
        self._objects = open_objects(place, root)
        access = dict(access or {})
        if place is not None and "://" in place.root:  # not under the catalog's directory: the caller allowed it
            declared[place.url] = place.container()
            access[place.url] = place.authorization()
        self._access = VirtualAccess(
            directory=catalog.storage.directory,
            at_home=at_home,
            containers=containers,
            declared=declared,
            access=access,
            catalog=catalog.storage.path,
            address=catalog.storage.address,
            signed=self._config.store_signed_urls,
        )

    # -- coming into being -------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
        *,
        objects: ObjectStorage | None = None,
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
        objects
            Where chunks larger than ``inline_chunk_threshold_bytes`` go, instead of into the catalog: a folder
            (relative to the catalog's), a URL such as ``s3://bucket/chunks``, or a `StorageConfig` in S3. By default
            the catalog holds everything. Each repository makes a folder of its own there.

        Raises
        ------
        AlreadyExistsError, RepositoryNotFoundError, StorageError
            ``repository-already-exists``; ``repository-not-found`` when the directory does not exist; ``io``.
        """
        place = as_storage(storage)
        objects = default_objects(place) if objects is None else objects
        native = None if objects is None else own_folder(locate_objects(objects, place))
        if place.path is not None:
            check_locks(place.path, strict=config is not None and config.strict_locking)
        create_catalog(place, lambda txn: _initialize(txn, place, config or RepositoryConfig.default(), native))
        return cls.open(place, config, authorize_virtual_chunk_access, objects=objects)

    @classmethod
    def open(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
        *,
        check: str = "auto",
        objects: ObjectStorage | None = None,
    ) -> Repository:
        """Open a repository; no file is created. In a ``with`` statement it is closed at the end.

        Parameters
        ----------
        config
            Laid over the stored configuration, for this object only.
        authorize_virtual_chunk_access
            URL prefix to credentials, for virtual chunks outside the catalog's own directory; `required_access`
            lists what a repository needs.
        check
            ``auto``: let SQLite check the whole file when this machine has not met it; ``always``; ``never``.
        objects
            Where the objects are, as `create`; needed, for their credentials, when they are not under the catalog's
            directory, and to say where they are now.

        Raises
        ------
        RepositoryNotFoundError, FormatError, StorageError
            ``repository-not-found``; ``not-a-catalog``, ``empty-file``, ``not-a-file``, ``other-application``,
            ``truncated-file``, ``unsupported-spec-version``, ``unexpected-schema``, ``corrupt``; ``busy``, ``io``.
        """
        timeout = (config or RepositoryConfig.default()).busy_timeout_seconds
        catalog = Catalog(as_storage(storage), check=check, busy_timeout=timeout)
        return cls(catalog, config, authorize_virtual_chunk_access, objects)

    @classmethod
    def open_or_create(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
        *,
        objects: ObjectStorage | None = None,
    ) -> Repository:
        """Open a repository, or make it where there is none; raises as `open` and `create`."""
        place = as_storage(storage)  # once: two memory storages are two repositories
        try:
            return cls.open(place, config, authorize_virtual_chunk_access, objects=objects)
        except RepositoryNotFoundError:
            try:
                return cls.create(place, config, authorize_virtual_chunk_access, objects=objects)
            except AlreadyExistsError:  # another process was quicker
                return cls.open(place, config, authorize_virtual_chunk_access, objects=objects)

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
        old_config, old_access, objects = self._given
        access = old_access if authorize_virtual_chunk_access is None else authorize_virtual_chunk_access
        config = old_config if config is None else config
        return _reopen(type(self), self.storage, config, access, objects, self._commit_metadata)

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
        if self._spares is not None:
            self._spares.close()
        self._catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # -- for event loops: as the methods without _async, in a thread -----------------------------------------

    @classmethod
    async def create_async(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
        *,
        objects: ObjectStorage | None = None,
    ) -> Repository:
        """See `create`."""
        return await asyncio.to_thread(cls.create, storage, config, authorize_virtual_chunk_access, objects=objects)

    @classmethod
    async def open_async(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
        *,
        check: str = "auto",
        objects: ObjectStorage | None = None,
    ) -> Repository:
        """See `open`."""
        return await asyncio.to_thread(
            cls.open, storage, config, authorize_virtual_chunk_access, check=check, objects=objects
        )

    @classmethod
    async def open_or_create_async(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
        *,
        objects: ObjectStorage | None = None,
    ) -> Repository:
        """See `open_or_create`."""
        return await asyncio.to_thread(
            cls.open_or_create, storage, config, authorize_virtual_chunk_access, objects=objects
        )

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
    objects: ObjectStorage | None,
    commit_metadata: dict[str, Any],
) -> Repository:
    repository = cls.open(storage, config, access, objects=objects)
    repository.set_default_commit_metadata(commit_metadata)
    return repository


def _initialize(
    txn: Transaction, storage: StorageConfig, config: RepositoryConfig, native: ObjectsFolder | None
) -> None:
    created_at = now()
    seq = log_operation(txn, "RepoInitialized", {}, created_at, with_snapshot=True)
    snapshots.insert_first_snapshot(txn, seq, created_at)
    refs.insert_branch(txn, MAIN, seq)
    insert_inline_location(txn)
    save_config(txn, config)
    save_setting(txn, "home", home_of(storage))
    if native is not None:
        save_place(txn, native)
