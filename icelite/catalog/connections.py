"""Connections to a catalog that exists: opened, tuned and checked, watched, and kept for a repository's next session.

Opening a connection for a session costs as much as a small commit: the checks, a change set, an authorizer. So a
connection that its session no longer needs serves the next session of the same repository (`Spares`), as long as

- its change set is empty and small, and no transaction is open;
- the file under the path is still the same one, with the header and the schema that were checked.

It waits without a lock on the file. A child of os.fork() and a closed repository have none.

While it is open, another catalog may be copied over its file (``cp``), which keeps the file and changes its content.
The file may be deleted, replaced or cut as well; then SQLite fails, and says something else. So a `Watch` looks at it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import urllib.parse
import weakref
from collections import deque
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from icelite.catalog import checks, forks
from icelite.catalog.door import Door
from icelite.catalog.locks import Guard
from icelite.errors import ErrorKind, FormatError, IceliteError, RepositoryNotFoundError, StorageError
from icelite.storage import StorageConfig

CACHE_KIB = 16 * 1024
ATTEMPTS = 5  # to open a file that is being replaced

_abandoned: list[apsw.Connection] = []  # of the parent: kept, since closing them would drop the parent's locks
anchors: dict[str, apsw.Connection] = {}  # SQLite drops an in-memory database with its last connection


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
    if storage.path is None and storage.name not in anchors:
        raise RepositoryNotFoundError(
            f"no repository in memory under {storage.name!r}: it was not created with this storage object, or"
            " not in this process",
            ErrorKind.REPOSITORY_NOT_FOUND,
        )
    if storage.path is None:
        return open_connection(None, storage.name), Guard(None)
    for _ in range(ATTEMPTS):
        guard = Guard(storage.path)  # first: what is opened without a guard may not be closed beside others
        connection = open_connection(storage.path)
        status = storage.path.stat()
        if guard.identity in (None, (status.st_dev, status.st_ino)):
            return connection, guard
        connection.close()  # replaced between the two
        guard.close()
    raise StorageError(
        f"{storage.path} is being replaced again and again; try again when it is left alone", ErrorKind.CATALOG_REPLACED
    )


def open_connection(path: Path | None, name: str = "", flags: int = 0) -> apsw.Connection:
    """A bare connection to a file, or to the database in memory that has a name; ``flags`` besides those of writing."""
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
    with forks.SqliteCall():
        try:
            with contextlib.suppress(apsw.Error):  # a journal that stays is empty and does no harm
                if door.has_written() and door.guard.write():
                    connection.authorizer = None
                    connection.set_busy_handler(None)
                    connection.pragma("journal_mode", "delete")
        finally:
            connection.close()
            door.guard.close()


def set_pragmas(connection: apsw.Connection) -> None:
    """Journal, durability and cache of a connection to an existing catalog."""
    # TRUNCATE keeps the header in rollback mode, so that the file at rest opens on read-only media and can be
    # copied as it is; with FULL, no acknowledged commit was lost in any simulated power cut (docs/design.md).
    # Set explicitly even though others are defaults: apsw.bestpractice may have put this connection in WAL mode.
    if not connection.readonly("main"):
        connection.pragma("journal_mode", "truncate")
    connection.pragma("synchronous", "full")
    connection.pragma("cache_size", -CACHE_KIB)


# -- whether the file is still the one that was opened --------------------------------------------------------------

# A repository is told from others by when it began: the id of its first snapshot is everybody's.
SELECT_BEGINNING = "SELECT id, written_at FROM snapshot WHERE seq = (SELECT min(seq) FROM snapshot)"

UNKNOWN = -1  # a version that no file has
LOOK_SECONDS = 0.0001  # nobody copies a file between two reads that follow each other so closely


class Watch:
    """What one connection knows of its file.

    Attributes
    ----------
    version
        Another one after each change of the file, by whomever, that the connection has noticed by reading.
    """

    def __init__(self, connection: apsw.Connection, guard: Guard, name: str) -> None:
        self.version = 0
        self.seen: int = UNKNOWN  # SQLite's version of the file when it was last checked
        self._connection = connection
        self._guard = guard
        self._name = name
        self._stamp: tuple[int, int, int] | None = None
        self._next_look = 0.0
        self._beginning: list[tuple[Any, ...]] | None = None

    def look(self) -> None:
        """Before a read: notice that the file was written to, also where SQLite would not.

        SQLite compares a counter, which two files may have in common, and then goes on with the pages that it has.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        stamp = self._guard.stamp()
        if stamp != self._stamp:
            if self._connection.data_version() == self.seen:
                self._connection.release_memory()
            self.seen, self._stamp = UNKNOWN, stamp

    def check(self) -> None:
        """After a read, and in its transaction: refuse what came from another catalog.

        Raises
        ------
        StorageError
            ``catalog-replaced``.
        """
        seen = self._connection.data_version()
        if seen == self.seen:
            return
        beginning = self._read_beginning()
        if self._beginning is None:
            self._beginning = beginning
        elif self._beginning != beginning:
            raise StorageError(
                f"{self._name} was overwritten with another file while it was open; open it again",
                ErrorKind.CATALOG_REPLACED,
            )
        self.version += 1
        self.seen = seen

    def _read_beginning(self) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(SELECT_BEGINNING).fetchall()
        except apsw.SQLError:
            if not self._connection.read("main", 0, 0, 1)[0]:  # the file is empty, which `find_loss` says
                raise
            return []  # another application's file


def find_loss(path: Path, connection: apsw.Connection, identity: tuple[int, int] | None) -> IceliteError | None:
    """What became of a file that is open, where it is no longer there as it was.

    Parameters
    ----------
    identity
        Device and inode of the file that is open, if known.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return StorageError(
            f"{path} was deleted or moved away while it was open, so nothing more is written to it; put it back, and"
            " open it again",
            ErrorKind.CATALOG_DELETED,
        )
    except OSError:
        return None
    if identity not in (None, (status.st_dev, status.st_ino)):
        return StorageError(
            f"{path} was replaced by another file while it was open, so nothing more is written to it; open it again",
            ErrorKind.CATALOG_REPLACED,
        )
    if status.st_size == 0:
        return FormatError(
            f"{path} was truncated while it was open: it is empty now; restore it from a copy", ErrorKind.TRUNCATED_FILE
        )
    return _find_overwritten(path, connection)


def _find_overwritten(path: Path, connection: apsw.Connection) -> IceliteError | None:
    try:
        if connection.read("main", 0, 0, len(checks.SQLITE_MAGIC))[1] != checks.SQLITE_MAGIC:
            return StorageError(
                f"{path} was overwritten while it was open and is no SQLite file now; restore it from a copy",
                ErrorKind.CATALOG_REPLACED,
            )
        checks.check_length(connection, path)
    except FormatError as error:
        return error
    except apsw.Error:
        return None
    return None


# -- checked, and kept ---------------------------------------------------------------------------------------------

IS_CHANGE_SET_USED = "SELECT EXISTS (SELECT 1 FROM staged.chunk_ref)"
_STAGING = (files("icelite.catalog") / "staging.sql").read_text()
ATTACH_CHANGE_SET = "ATTACH '' AS staged"  # an empty name: private, and spilled to disk by SQLite itself
WAL_MARK = 18, 2, b"\2\2"  # place, length and content in the header (https://sqlite.org/fileformat2.html, 1.3.3)
SPARE_CONNECTIONS = 2  # sessions that follow each other need one, each keeps up to CACHE_KIB of memory
SPARE_PAGES = 256  # of a change set that is kept: SQLite does not give back what it has grown to


class Prepared(NamedTuple):
    """A connection, its door and watch, what its file was when it was checked, and in which child it was opened."""

    connection: apsw.Connection
    door: Door
    watch: Watch
    state: tuple[object, ...]
    forks: int


def prepare(
    connection: apsw.Connection,
    guard: Guard,
    path: Path | None,
    *,
    change_set: bool,
    check: str,
    digest: str | None,
    busy_timeout: float,
) -> Door:
    """Check a bare connection, attach a change set where asked, and leave two doors open.

    Raises
    ------
    FormatError, InvalidInputError
        As `checks.check_header` and `checks.check_content`.
    """
    door = Door(guard, path, busy_timeout, connection)
    connection.set_busy_handler(door.wait)
    checks.harden(connection)
    try:
        door.enter_to_read()
        checks.check_header(connection, path)
        if connection.read("main", 0, *WAL_MARK[:2])[1] == WAL_MARK[2] and not connection.readonly("main"):
            door.enter_alone()  # leaving that mode overwrites the file
        _check(connection, path, check, digest)
    finally:
        door.leave()
    if change_set:
        connection.execute(ATTACH_CHANGE_SET)
        connection.execute(_STAGING)
    checks.close_doors(connection, change_set)
    connection.set_commit_hook(door.refuses_commit)
    return door


def _check(connection: apsw.Connection, path: Path | None, check: str, digest: str | None) -> None:
    try:
        set_pragmas(connection)
        checks.check_content(connection, path, check, digest)
    except apsw.CorruptError:
        if path is not None:
            checks.check_length(connection, path)  # a truncated file says so
        raise


class Spares:
    """The connections with a change set that wait for the next session of one repository on this machine."""

    def __init__(self, storage: StorageConfig, busy_timeout: float) -> None:
        self._storage = storage
        self._busy_timeout = busy_timeout
        self._idle: deque[Prepared] = deque()  # no lock: connections come back in finalizers, at any moment
        self._is_open = threading.Event()
        self._is_open.set()
        weakref.finalize(self, _release_all, self._idle)

    def take(self) -> Prepared:
        """A connection that waited, or a new one.

        Raises
        ------
        RepositoryNotFoundError, FormatError, StorageError
            As `icelite.catalog.database.Catalog`.
        """
        path = self._storage.path
        status = None if path is None else checks.check_place(path)
        for spare in _drain(self._idle):
            if spare.forks == forks.count() and _is_current(spare, status):
                return spare
            _release(spare)
        connection, guard = connect(self._storage)
        try:
            door = prepare(
                connection, guard, path, change_set=True, check="auto", digest=None, busy_timeout=self._busy_timeout
            )
            watch = Watch(connection, guard, self._storage.name)
            return Prepared(connection, door, watch, _state(connection, status), forks.count())
        except BaseException:
            connection.close()
            guard.close()
            raise

    def give_back(self, spare: Prepared) -> None:
        """Keep a connection whose session is gone, or close it."""
        with forks.SqliteCall() if spare.forks == forks.count() else contextlib.nullcontext():
            is_wanted = self._is_open.is_set() and len(self._idle) < SPARE_CONNECTIONS and _is_clean(spare)
        if is_wanted:
            self._idle.append(spare)
        else:
            _release(spare)
        if not self._is_open.is_set():  # closed meanwhile
            _release_all(self._idle)

    def close(self) -> None:
        """Close the connections that wait, and those that come back later."""
        self._is_open.clear()
        _release_all(self._idle)


def _state(connection: apsw.Connection, status: os.stat_result | None) -> tuple[object, ...]:
    """What must not have changed: which file it is, and in its header format, schema and who it belongs to."""
    header = connection.read("main", 0, 0, checks.HEADER_BYTES)[1]
    file = None if status is None else (status.st_dev, status.st_ino)
    return file, header[:24], header[40:72]


def _is_current(spare: Prepared, status: os.stat_result | None) -> bool:
    try:
        spare.door.enter_to_read()
        return _state(spare.connection, status) == spare.state
    except apsw.BusyError:
        raise
    except apsw.Error:
        return False
    finally:
        spare.door.leave()


def _is_clean(spare: Prepared) -> bool:
    connection = spare.connection
    try:
        if spare.forks != forks.count() or connection.in_transaction or spare.door.name is not None:
            return False
        # not with OpenDoors: another authorizer lets SQLite forget every statement that is prepared
        if connection.pragma("page_count", schema="staged") > SPARE_PAGES:
            return False
        return connection.execute(IS_CHANGE_SET_USED).fetchall() == [(0,)]
    except apsw.Error:
        return False


def _drain(idle: deque[Prepared]) -> Iterator[Prepared]:
    while idle:
        with contextlib.suppress(IndexError):  # another thread took the last one
            yield idle.popleft()


def _release_all(idle: deque[Prepared]) -> None:
    for spare in _drain(idle):
        _release(spare)


def _release(spare: Prepared) -> None:
    release(spare.connection, spare.forks, spare.door)
