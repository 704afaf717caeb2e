"""How a catalog comes to be: with its first rows, in a draft, or as a copy; and how one goes that nothing came of.

A catalog appears under its name complete, or not at all: it is written under a draft name, then linked to its own.
So neither a crash nor a second process finds half of one; what a crash leaves, the next writer there removes.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw

from icelite import drafts, vfs
from icelite.catalog import checks, forks
from icelite.catalog.connections import CACHE_KIB, anchors, open_connection
from icelite.catalog.database import BEGIN_WRITE, COMMIT, Catalog
from icelite.catalog.operations import END, list_operations
from icelite.catalog.sidecars import find_stale
from icelite.catalog.statements import Transaction, translated
from icelite.errors import (
    AlreadyExistsError,
    ErrorKind,
    FormatError,
    IceliteError,
    RepositoryNotFoundError,
    StorageError,
    disk_kind,
)
from icelite.storage import StorageConfig

PAGE_BYTES = 4096


def create_catalog(storage: StorageConfig, initialize: Callable[[Transaction], None]) -> None:
    """Make a catalog with its first rows: all of it, or with an error nothing.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError, FormatError, StorageError
        ``repository-already-exists``; ``repository-not-found`` when the directory does not exist; ``unsafe-sidecar``;
        ``io``, ``storage-full``; elsewhere also ``unsafe-storage``, and `ReadOnlyError` of ``read-only-storage``.
    """
    with forks.SqliteCall(), translated(storage, 0):
        if storage.address is not None:
            _create_remote(storage, initialize)
        elif storage.path is None:
            _create_in_memory(storage.name, initialize)
        else:
            with _draft(storage.path) as connection:
                _write_first_rows(connection, initialize)
    if storage.path is not None:
        checks.remember(storage.path)


def _create_in_memory(name: str, initialize: Callable[[Transaction], None]) -> None:
    if name in anchors:
        raise already_exists(name)
    anchor = open_connection(None, name, apsw.SQLITE_OPEN_CREATE)
    _write_first_rows(anchor, initialize)
    anchors[name] = anchor


def _create_remote(storage: StorageConfig, initialize: Callable[[Transaction], None]) -> None:
    """Make a catalog on this machine, then put it where none is."""
    assert storage.address is not None
    mirror = vfs.lookup_mirror(storage.address)
    mirror.check_safe()
    with tempfile.TemporaryDirectory(prefix="icelite-") as folder:
        path = Path(folder) / "new.icelite"
        with _draft(path) as connection:
            _write_first_rows(connection, initialize)
        mirror.create(path.read_bytes())  # no connection is open any more
        checks.remember(path, mirror.digest)


def _write_first_rows(connection: apsw.Connection, initialize: Callable[[Transaction], None]) -> None:
    connection.pragma("page_size", PAGE_BYTES)
    connection.pragma("journal_mode", "memory")  # a crash leaves a draft, whatever is in it
    connection.pragma("synchronous", "full")
    connection.execute(BEGIN_WRITE)
    connection.pragma("application_id", checks.APPLICATION_ID)
    connection.pragma("user_version", checks.FORMAT_VERSION)
    connection.execute(checks.schema_text())
    initialize(Transaction(connection))
    connection.execute(COMMIT)


def create_copy(catalog: Catalog, path: Path, finish: Callable[[Transaction], None]) -> None:
    """Make a catalog from a copy of another one as it is now: complete once ``finish`` returns, or not at all.

    Until then nobody sees it, so it has no journal and no doors. The other catalog is not held meanwhile.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError, StorageError
        As `create_catalog`.
    """
    with translated(StorageConfig.filesystem(path), 0), _draft(path) as connection:
        catalog.copy_into(connection, str(path))
        connection.pragma("journal_mode", "off")  # which a hardened connection may not
        checks.harden(connection)
        connection.pragma("synchronous", "off")
        connection.pragma("cache_size", -CACHE_KIB)
        connection.execute(BEGIN_WRITE)
        finish(Transaction(connection))
        connection.execute(COMMIT)
        connection.pragma("synchronous", "full")
        connection.execute(BEGIN_WRITE)
        connection.pragma("user_version", checks.FORMAT_VERSION)  # any change: its COMMIT syncs the whole file
        connection.execute(COMMIT)
    checks.remember(path)


# -- drafts ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
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
    with _drafted(storage.path) as path:
        yield StorageConfig.filesystem(path)
    checks.remember(storage.path)


@contextlib.contextmanager
def _drafted(path: Path) -> Iterator[Path]:
    """Yield a path under which to write what becomes a catalog of another name; raises as `drafted`."""
    try:
        with drafts.draft(path, lambda: _check_free(path)) as draft:
            yield draft
    except IceliteError:  # some are OSErrors too
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RepositoryNotFoundError(
            f"directory {path.parent} does not exist, so {path.name} cannot be created in it; make it first",
            ErrorKind.REPOSITORY_NOT_FOUND,
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be created: {error.strerror}", disk_kind(error)) from error


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[apsw.Connection]:
    """A connection to an empty file, which becomes the catalog when the block ends."""
    with _drafted(path) as draft:
        draft.touch(exist_ok=False)
        with contextlib.closing(open_connection(draft)) as connection:
            yield connection


def _check_free(path: Path) -> None:
    """Refuse a place where there is a file already, or a journal that would be played back into a new one.

    Raises
    ------
    AlreadyExistsError, FormatError, StorageError
        ``repository-already-exists``; ``unsafe-sidecar``; ``io``.
    """
    stale = find_stale(path)  # before the file: whoever writes a journal has the file already
    if os.path.lexists(path):
        raise already_exists(path)
    if stale is not None:
        raise FormatError(
            f"{stale} was left by a catalog that is gone, and would be played back into a new {path.name};"
            " remove it first",
            ErrorKind.UNSAFE_SIDECAR,
        )


def already_exists(path: Path | str) -> AlreadyExistsError:
    """The error for a `create` on a taken path."""
    return AlreadyExistsError(
        f"{path} already exists; open it with Repository.open, or choose another path",
        ErrorKind.REPOSITORY_ALREADY_EXISTS,
    )


def remove_unused(storage: StorageConfig) -> None:
    """Remove a catalog in which nothing happened after it was made; one that anybody wrote to stays.

    Nobody can commit between the look and the end: who waits to write to it finds that its file is gone.
    """
    if storage.path is None:
        return
    with contextlib.closing(Catalog(storage)) as catalog, catalog.write() as txn:
        if len(list_operations(txn, END, 2)[0]) == 1:
            os.unlink(storage.path)
