"""How connections to a catalog come about: opened, tuned and, for a new catalog, filled before anyone sees it.

A catalog appears under its name complete, or not at all: it is written under a draft name, then linked to its own.
So neither a crash nor a second process finds half of one; what a crash leaves, the next writer there removes.
"""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw

from icelite import drafts
from icelite.catalog import checks, forks
from icelite.catalog.door import Door
from icelite.catalog.locks import Guard
from icelite.catalog.sidecars import find_stale
from icelite.errors import ErrorKind, FormatError, IceliteError, RepositoryNotFoundError, StorageError, disk_kind
from icelite.storage import StorageConfig

BEGIN_WRITE = "BEGIN IMMEDIATE"
COMMIT = "COMMIT"
PAGE_BYTES = 4096
CACHE_KIB = 16 * 1024
ATTEMPTS = 5  # to open a file that is being replaced

_abandoned: list[apsw.Connection] = []  # of the parent: kept, since closing them would drop the parent's locks
_anchors: dict[str, apsw.Connection] = {}  # SQLite drops an in-memory database with its last connection


def abandon(connection: apsw.Connection) -> None:
    """Keep a parent's connection from ever being closed here (https://sqlite.org/howtocorrupt.html, section 2.6)."""
    _abandoned.append(connection)


def connect(storage: StorageConfig) -> tuple[apsw.Connection, Guard]:
    """A bare connection to a catalog that exists, and its guard.

    Raises
    ------
    RepositoryNotFoundError, StorageError, FormatError
        ``repository-not-found`` for one in memory; no file is ever created here. As `Guard`.
    """
    if storage.path is None and storage.name not in _anchors:
        raise RepositoryNotFoundError(
            f"no repository in memory under {storage.name!r}: it was not created with this storage object, or"
            " not in this process",
            ErrorKind.REPOSITORY_NOT_FOUND,
        )
    if storage.path is None:
        return _open(None, storage.name, 0), Guard(None)
    for _ in range(ATTEMPTS):
        guard = Guard(storage.path)  # first: what is opened without a guard may not be closed beside others
        connection = _open(storage.path, storage.name, 0)
        status = storage.path.stat()
        if guard.identity in (None, (status.st_dev, status.st_ino)):
            return connection, guard
        connection.close()  # replaced between the two
        guard.close()
    raise StorageError(
        f"{storage.path} is being replaced again and again; try again when it is left alone", ErrorKind.CATALOG_REPLACED
    )


def _open(path: Path | None, name: str, flags: int) -> apsw.Connection:
    # In memory: a database that every connection of this process shares by its name.
    uri = f"file:/{urllib.parse.quote(name)}?vfs=memdb" if path is None else "file:" + urllib.parse.quote(str(path))
    return apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI | flags)


def release(connection: apsw.Connection, forks_then: int, door: Door) -> None:
    """Close a connection, and remove the empty journal that TRUNCATE mode leaves beside the catalog.

    SQLite removes it only while it can have the lock; where somebody else writes, it stays for them. A connection
    inherited through fork() is left alone: closing it would drop its parent's locks
    (https://sqlite.org/howtocorrupt.html, section 2.6).
    """
    if forks_then != forks.count():
        abandon(connection)
        return
    with forks.in_sqlite():
        try:
            with contextlib.suppress(apsw.Error):  # a journal that stays is empty and does no harm
                if door.has_written() and door.guard.write():
                    connection.authorizer = None
                    connection.set_busy_handler(None)
                    connection.pragma("journal_mode", "delete")
        finally:
            connection.close()
            door.guard.close()


def create(storage: StorageConfig, initialize: Callable[[apsw.Connection], None]) -> None:
    """Make a catalog with its first rows, in one transaction.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError, StorageError, FormatError
        ``repository-already-exists``; ``repository-not-found`` when the directory does not exist; ``io``;
        ``unsafe-sidecar``.
    """
    if storage.path is None:
        if storage.name in _anchors:
            raise checks.already_exists(storage.name)
        anchor = _open(None, storage.name, apsw.SQLITE_OPEN_CREATE)
        _write_first_rows(anchor, initialize)
        _anchors[storage.name] = anchor
        return
    with _draft(storage.path) as connection:
        _write_first_rows(connection, initialize)


def create_filled(path: Path, fill: Callable[[apsw.Connection], None]) -> None:
    """Make a catalog from whatever ``fill`` puts into an empty database; it need not make anything durable.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError, StorageError, FormatError
        As `create`.
    """
    with _draft(path) as connection:
        fill(connection)
        connection.pragma("synchronous", "full")
        connection.execute(BEGIN_WRITE)
        connection.pragma("user_version", checks.FORMAT_VERSION)  # any change: its COMMIT syncs the whole file
        connection.execute(COMMIT)


@contextlib.contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Yield a path under which to write what becomes a catalog of another name; raises as `create`."""
    try:
        with drafts.draft(path, lambda: check_free(path)) as draft:
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
    with drafted(path) as draft:
        draft.touch(exist_ok=False)
        with contextlib.closing(_open(draft, "", 0)) as connection:
            yield connection


def check_free(path: Path) -> None:
    """Refuse a place where there is a file already, or a journal that would be played back into a new one.

    Raises
    ------
    AlreadyExistsError, FormatError, StorageError
        ``repository-already-exists``; ``unsafe-sidecar``; ``io``.
    """
    stale = find_stale(path)  # before the file: whoever writes a journal has the file already
    if os.path.lexists(path):
        raise checks.already_exists(path)
    if stale is not None:
        raise FormatError(
            f"{stale} was left by a catalog that is gone, and would be played back into a new {path.name};"
            " remove it first",
            ErrorKind.UNSAFE_SIDECAR,
        )


def _write_first_rows(connection: apsw.Connection, initialize: Callable[[apsw.Connection], None]) -> None:
    connection.pragma("page_size", PAGE_BYTES)
    connection.pragma("journal_mode", "memory")  # a crash leaves a draft, whatever is in it
    connection.pragma("synchronous", "full")
    connection.execute(BEGIN_WRITE)
    connection.pragma("application_id", checks.APPLICATION_ID)
    connection.pragma("user_version", checks.FORMAT_VERSION)
    connection.execute(checks.schema_text())
    initialize(connection)
    connection.execute(COMMIT)


def set_pragmas(connection: apsw.Connection) -> None:
    """Journal, durability and cache of a connection to an existing catalog."""
    # TRUNCATE keeps the header in rollback mode, so that the file at rest opens on read-only media and can be
    # copied as it is; with FULL, no acknowledged commit was lost in any simulated power cut (docs/design.md).
    # Set explicitly even though others are defaults: apsw.bestpractice may have put this connection in WAL mode.
    if not connection.readonly("main"):
        connection.pragma("journal_mode", "truncate")
    connection.pragma("synchronous", "full")
    connection.pragma("cache_size", -CACHE_KIB)
