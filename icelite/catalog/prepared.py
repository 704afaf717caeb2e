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

from icelite.catalog import checks, connections
from icelite.storage import StorageConfig

IS_CHANGE_SET_USED = "SELECT EXISTS (SELECT 1 FROM staged.chunk_ref)"
ATTACH_CHANGE_SET = "ATTACH '' AS staged"  # an empty name: private, and spilled to disk by SQLite itself
SPARE_CONNECTIONS = 2  # sessions that follow each other need one, each keeps up to CACHE_KIB of memory
SPARE_PAGES = 256  # of a change set that is kept: SQLite does not give back what it has grown to


class Prepared(NamedTuple):
    """A connection that may be used in ``process``, its door, and what its file was when it was checked."""

    connection: apsw.Connection
    door: connections.Door
    state: tuple[object, ...]
    process: int


def prepare(
    connection: apsw.Connection,
    path: Path | None,
    *,
    change_set: bool,
    check: str,
    digest: str | None,
    busy_timeout: float,
) -> connections.Door:
    """Check a bare connection, attach a change set where asked, and leave two doors open.

    Raises
    ------
    FormatError, InvalidInputError
        As `checks.check_header` and `checks.check_content`.
    """
    connection.set_busy_handler(connections.busy_handler(busy_timeout))
    checks.harden(connection)
    checks.check_header(connection, path)
    try:
        connections.set_pragmas(connection)
        checks.check_content(connection, path, check, digest)
    except apsw.CorruptError:
        if path is not None:
            checks.check_length(connection, path)  # a truncated file says so
        raise
    if change_set:
        connection.execute(ATTACH_CHANGE_SET)
        connection.execute((files("icelite.catalog") / "staging.sql").read_text())
    checks.close_doors(connection, change_set)
    door = connections.Door()
    connection.set_commit_hook(door.refuses_commit)
    return door


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
            with contextlib.suppress(apsw.Error):
                if spare.process == os.getpid() and _state(spare.connection, status) == spare.state:
                    return spare
            _release(spare)
        connection = connections.connect(self._storage)
        try:
            door = prepare(
                connection, path, change_set=True, check="auto", digest=None, busy_timeout=self._busy_timeout
            )
            return Prepared(connection, door, _state(connection, status), os.getpid())
        except BaseException:
            connection.close()
            raise

    def give_back(self, spare: Prepared) -> None:
        """Keep a connection whose session is gone, or close it."""
        if self._is_open.is_set() and len(self._idle) < SPARE_CONNECTIONS and _is_clean(spare):
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


def _is_clean(spare: Prepared) -> bool:
    connection = spare.connection
    try:
        if spare.process != os.getpid() or connection.in_transaction or spare.door.name is not None:
            return False
        with checks.doors_open(connection):
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
    if spare.process == os.getpid():
        connections.release(spare.connection, spare.process, spare.door.has_written)
    else:
        connections.abandon(spare.connection)
