"""How other parts of icelite open a repository: for one call that writes to it, and for `IceliteStore`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from icelite.catalog.creation import remove_unused
from icelite.config import RepositoryConfig, StoreConfig
from icelite.credentials import AnyCredential
from icelite.errors import AlreadyExistsError, RepositoryNotFoundError
from icelite.repository.names import MAIN
from icelite.repository.native import Storage
from icelite.repository.repository import Repository
from icelite.session import Session
from icelite.storage import StorageConfig


@contextmanager
def open_or_make(
    storage: StorageConfig,
    config: RepositoryConfig | None = None,
    access: Mapping[str, AnyCredential | None] | None = None,
    *,
    create: bool = True,
) -> Iterator[Repository]:
    """The repository at a place, closed afterwards; one that was made for this goes after an error, if nobody used it.

    Parameters
    ----------
    create
        Whether to make it where there is none.

    Raises
    ------
    RepositoryNotFoundError, FormatError, StorageError
        As `Repository.open` and `Repository.create`.
    """
    made = False
    try:
        repository = Repository.open(storage, config, access)
    except RepositoryNotFoundError:
        if not create:
            raise
        try:
            repository, made = Repository.create(storage, config, access), True
        except AlreadyExistsError:  # another process was quicker
            repository = Repository.open(storage, config, access)
    try:
        yield repository
    except BaseException:
        repository.close()
        if made:
            remove_unused(storage)
        raise
    repository.close()


class StoreOpener:
    """Opens a repository for the store-first API of `IceliteStore`."""

    def create(self, storage: Storage, config: StoreConfig | None) -> Session:
        """A writable session on a new repository."""
        given = config or StoreConfig()
        return Repository.create(storage, given.repository_config(), given.authorizations()).writable_session(MAIN)

    def open(self, storage: Storage, config: StoreConfig | None) -> Session:
        """A writable session on an existing repository."""
        given = config or StoreConfig()
        return Repository.open(storage, given.repository_config(), given.authorizations()).writable_session(MAIN)

    def open_or_create(self, storage: Storage, config: StoreConfig | None) -> Session:
        """A writable session on a repository that is made where there is none."""
        given = config or StoreConfig()
        repository = Repository.open_or_create(storage, given.repository_config(), given.authorizations())
        return repository.writable_session(MAIN)
