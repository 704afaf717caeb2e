"""Connections that passed the checks: made by `prepare`, and kept by `Spares` for a repository's next session.

Opening a connection for a session costs as much as a small commit: the checks, a change set, an authorizer. So a
connection that its session no longer needs serves the next session of the same repository, as long as

- its change set is empty and small, and no transaction is open;
- the file under the path is still the same one, with the header and the schema that were checked.

It waits without a lock on the file. A child of os.fork() and a closed repository have none.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import apsw

from icelite.catalog import checks, connections, forks
from icelite.catalog.door import Door
from icelite.catalog.locks import Guard
from icelite.catalog.watch import Watch
from icelite.storage import StorageConfig

IS_CHANGE_SET_USED = "SELECT EXISTS (SELECT 1 FROM staged.chunk_ref)"
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
        connection.execute((files("icelite.catalog") / "staging.sql").read_text())
    checks.close_doors(connection, change_set)
    connection.set_commit_hook(door.refuses_commit)
    return door


def _check(connection: apsw.Connection, path: Path | None, check: str, digest: str | None) -> None:
    try:
        connections.set_pragmas(connection)
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
        connection, guard = connections.connect(self._storage)
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
        with forks.in_sqlite() if spare.forks == forks.count() else contextlib.nullcontext():
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
        # not with doors_open: another authorizer lets SQLite forget every statement that is prepared
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
    connections.release(spare.connection, spare.forks, spare.door)
