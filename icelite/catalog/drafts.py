"""A catalog that appears when it is whole, and one that goes again because nothing came of it."""

from __future__ import annotations

import os
from contextlib import closing

from icelite.catalog import connections, known
from icelite.catalog.database import Catalog
from icelite.catalog.operations import END, list_operations
from icelite.errors import ErrorKind, InternalError, RepositoryNotFoundError
from icelite.storage import StorageConfig


def check_free(storage: StorageConfig) -> None:
    """Refuse a place where there is something already, or no directory to put it into.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError, FormatError, StorageError
        ``repository-already-exists``; ``repository-not-found`` for the directory; ``unsafe-sidecar``; ``io``.
    """
    if storage.path is None:
        return
    if not storage.path.parent.is_dir():
        raise RepositoryNotFoundError(
            f"directory {storage.path.parent} does not exist, so {storage.path.name} cannot be created in it; make it"
            " first",
            ErrorKind.REPOSITORY_NOT_FOUND,
        )
    connections.check_free(storage.path)


def publish(draft: StorageConfig, storage: StorageConfig) -> None:
    """Give a finished catalog, which nobody has open, its name in the same directory; raises as `check_free`."""
    if draft.path is None or storage.path is None:
        raise InternalError(f"{draft.name} and {storage.name} are not both files")
    connections.publish(draft.path, storage.path)
    known.remember(storage.path)


def remove_unused(storage: StorageConfig) -> None:
    """Remove a catalog in which nothing happened after it was made; one that anybody wrote to stays.

    Nobody can commit between the look and the end: who waits to write to it finds that its file is gone.
    """
    if storage.path is None:
        return
    with closing(Catalog(storage)) as catalog, catalog.write() as txn:
        if len(list_operations(txn, END, 2)[0]) == 1:
            os.unlink(storage.path)
