"""A catalog that appears when it is whole, and one that goes again because nothing came of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from icelite.catalog import connections, known
from icelite.catalog.database import Catalog
from icelite.catalog.operations import END, list_operations
from icelite.storage import StorageConfig


@contextmanager
def drafted(storage: StorageConfig) -> Iterator[StorageConfig]:
    """Yield where to make what becomes a catalog at a place: beside it, or there if that is in memory.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError, FormatError, StorageError
        ``repository-already-exists``; ``repository-not-found`` for the directory; ``unsafe-sidecar``; ``io``.
    """
    if storage.path is None:
        yield storage
        return
    with connections.drafted(storage.path) as path:
        yield StorageConfig.filesystem(path)
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
