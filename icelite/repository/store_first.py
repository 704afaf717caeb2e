"""How `IceliteStore.create` and its siblings open a repository: the store-first API, a floor below the repository."""

from __future__ import annotations

from icelite.config import StoreConfig
from icelite.repository.names import MAIN
from icelite.repository.repository import Repository, Storage
from icelite.session import Session


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
