"""One connection to a catalog file, and the doors through which every statement goes.

Invariants
----------
- `Catalog.read` and `Catalog.write` are the only transactions on the repository; `Catalog.stage` is the third
  door and touches nothing but the session's private change set. A commit hook refuses any other commit.
- Every write begins IMMEDIATE, so it never fails half way for want of a lock; no object or network I/O
  happens inside it, but the publishing of a remote catalog, whose copy nobody else waits for. What must happen
  after it is durable is queued on the transaction (`after_commit`).
- No row leaves this module while its statement is open: a reader never holds a lock across user code.
- The file is never opened by another route in this process: closing such a handle would drop SQLite's POSIX
  locks (https://sqlite.org/howtocorrupt.html, section 2.2).
- apsw's exceptions become icelite's here (`icelite.catalog.failures`) and nowhere else.
- A catalog elsewhere is a `RemoteView`: a read first catches up with what this process knows, a write is published.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import apsw

from icelite.catalog import checks, connections, known, remote
from icelite.catalog.failures import FOREIGN, translate, translated
from icelite.catalog.prepared import Spares, prepare
from icelite.errors import ErrorKind, FormatError, InternalError, ReadOnlyError, SessionStateError
from icelite.storage import StorageConfig

Row = tuple[Any, ...]
Bindings = Sequence[Any]

BEGIN_READ = "BEGIN DEFERRED"
BEGIN_WRITE = "BEGIN IMMEDIATE"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"
VACUUM = "VACUUM"
INTEGRITY_CHECK = "PRAGMA main.integrity_check(1000)"


class Transaction:
    """The verbs for statements; valid only inside the door that made it."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.after_commit: list[Callable[[], None]] = []

    def rows(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """All rows of a query, its statement closed."""
        return self._connection.execute(sql, bindings).fetchall()

    def row(self, sql: str, bindings: Bindings = ()) -> Row | None:
        """The first row of a query, or None."""
        rows = self._connection.execute(sql, bindings).fetchall()
        return rows[0] if rows else None

    def run(self, sql: str, bindings: Bindings = ()) -> int:
        """Execute one statement; the number of rows it changed."""
        self._connection.execute(sql, bindings)
        return self._connection.changes()

    def run_many(self, sql: str, bindings: Iterable[Bindings]) -> None:
        """Execute one statement for each sequence of bindings."""
        self._connection.executemany(sql, bindings)

    def insert(self, sql: str, bindings: Bindings = ()) -> int:
        """Execute an INSERT; the rowid of the new row."""
        self._connection.execute(sql, bindings)
        return self._connection.last_insert_rowid()

    def read_blob(self, table: str, column: str, rowid: int, start: int, length: int) -> bytes:
        """``length`` bytes from ``start`` of one value, without loading the rest of it.

        Raises
        ------
        FormatError
            ``corrupt`` where the value ends before.
        """
        blob = self._connection.blob_open("main", table, column, rowid, False)
        try:
            if start + length > blob.length():
                raise FormatError(
                    f"{table} {rowid} has {blob.length()} bytes, and its reference names {start + length};"
                    " restore the file from a copy",
                    ErrorKind.CORRUPT,
                )
            blob.seek(start)
            return blob.read(length)
        finally:
            blob.close()


class Catalog:
    """A connection to one catalog; shared by threads, one at a time.

    Parameters
    ----------
    storage
        Which file (or which in-memory database).
    change_set
        Attach a private change set, for a writable session.
    check
        ``always``, ``auto`` (only a file this machine has not met) or ``never``: whether SQLite's
        ``integrity_check`` reads the whole file first.
    busy_timeout
        Seconds to wait for another process's write.
    spares
        Where a session's connection to a catalog on this machine comes from and goes back to.

    Raises
    ------
    RepositoryNotFoundError, FormatError, StorageError
        ``repository-not-found``, or what `icelite.catalog.checks` found wrong with the file.
    """

    def __init__(
        self,
        storage: StorageConfig,
        *,
        change_set: bool = False,
        check: str = "auto",
        busy_timeout: float = 30.0,
        spares: Spares | None = None,
    ) -> None:
        self.storage = storage
        self.busy_timeout = busy_timeout
        self._lock = threading.RLock()
        self._trusted = check != "never"
        self._options = change_set, check
        self._remote: remote.RemoteView | None = None
        if spares is None:
            self._connect(whole=change_set)
        else:
            self._take(spares)

    def _connect(self, *, whole: bool) -> None:
        self._remote = remote.view(self.storage, whole=whole, check=self._options[1], before=self._remote)
        self.path = self.storage.path if self._remote is None else self._remote.path
        with self._translated():
            if self.path is not None:
                checks.check_place(self.path)
            self._connection = connections.connect(self.storage) if self._remote is None else self._remote.connect()
            try:
                self._door = prepare(
                    self._connection,
                    self.path,
                    change_set=self._options[0],
                    check=self._options[1],
                    digest=None if self._remote is None else self._remote.digest,
                    busy_timeout=self.busy_timeout,
                )
                if self._remote is not None:
                    self._remote.identify(self._connection)
            except BaseException:
                self._connection.close()
                raise
        read_only = self._connection.readonly("main") if self._remote is None else self._remote.read_only
        self._begin(bool(read_only), connections.release, self._connection, os.getpid(), self._door.has_written)

    def _take(self, spares: Spares) -> None:
        self.path = self.storage.path
        with self._translated():
            taken = spares.take()
        self._connection, self._door = taken.connection, taken.door
        self._begin(self._connection.readonly("main"), spares.give_back, taken)

    def _begin(self, read_only: bool, release: Callable[..., None], *arguments: object) -> None:
        self.read_only = read_only
        self._forks = connections.forks()
        self._transaction = Transaction(self._connection)
        # Also when the program ends, or the catalog is dropped without close().
        self._release = weakref.finalize(self, release, *arguments)

    def _check_fork(self) -> None:
        """Open the file anew in a child of os.fork(): SQLite's handles do not survive it.

        Raises
        ------
        SessionStateError
            ``not-picklable`` for a connection with a change set, which stays with the parent.
        """
        if self._forks == connections.forks():
            return
        if self._options[0]:
            raise SessionStateError(
                f"a session that writes to {self.storage.name} was carried over os.fork(); its changes stay with the"
                " parent process: give the child session.fork() by pickle, or open a session there",
                ErrorKind.NOT_PICKLABLE,
            )
        connections.abandon(self._connection)
        self._release.detach()
        self._lock = threading.RLock()  # another thread of the parent may have held the old one
        self._connect(whole=self.path is not None)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent view of the catalog over several statements."""
        self._check_fork()
        with self._lock, self._translated():
            if self._door.name is not None:  # inside another door: its transaction is the view
                yield self._transaction
                return
            self._catch_up()
            with self._transact(BEGIN_READ, "read"):
                yield self._transaction

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """The one way to change the repository: all of the block is committed, or nothing.

        Raises
        ------
        ReadOnlyError, StorageError, ConflictError
            ``read-only-storage``; ``busy`` when another process held the file past the deadline;
            ``storage-full``, ``io``; ``commit-conflict`` when somebody else published a remote catalog meanwhile.
        """
        self._check_fork()
        with self._lock, self._translated():
            self.check_writable()
            with self._up_to_date():
                transaction = Transaction(self._connection)
                with self._transact(BEGIN_WRITE, "write"):
                    yield transaction
                    if self._remote is not None:  # before COMMIT: what is not published is rolled back
                        self._remote.publish(self._connection)
        for action in transaction.after_commit:
            action()

    def check_writable(self) -> None:
        """Refuse where the file cannot be written.

        Raises
        ------
        ReadOnlyError
            ``read-only-storage``.
        """
        if self.read_only and self._remote is not None:
            raise self._remote.refusal()
        if self.read_only:
            raise ReadOnlyError(
                f"{self.storage.name} cannot be written: the file or its file system is read-only",
                ErrorKind.READ_ONLY_STORAGE,
            )

    @contextmanager
    def stage(self) -> Iterator[Transaction]:
        """Change the private change set; the repository is neither locked nor touched."""
        self._check_fork()
        with self._lock, self._translated():
            self._catch_up()
            with self._transact(BEGIN_READ, "stage"):
                yield self._transaction

    def refresh(self) -> None:
        """Learn of commits that others published to a remote catalog; a local one needs no asking."""
        if self._remote is not None:
            self._remote.refresh()

    def _catch_up(self) -> None:
        if self._remote is None or self._door.name is not None or not self._remote.is_behind():
            return
        if self.path is not None:
            self._remote.catch_up()
        else:
            self._reconnect(whole=False)

    def _reconnect(self, *, whole: bool) -> None:
        release, before = self._release, (self._remote, self.path, self._connection, self._door)
        try:
            self._connect(whole=whole)
        except BaseException:  # while that fails, the old connection serves
            self._remote, self.path, self._connection, self._door = before
            raise
        release()

    @contextmanager
    def _up_to_date(self) -> Iterator[None]:
        """Around a write: begin it on the newest version, and remember what it made."""
        if self._remote is not None:
            if self.path is None:
                self._reconnect(whole=True)
            self._remote.begin()
        yield
        if self._remote is not None:
            self._remote.settle()
        if self.path is not None and self._trusted:
            known.remember(self.path, None if self._remote is None else self._remote.digest)

    def row(self, sql: str, bindings: Bindings = ()) -> Row | None:
        """The first row of one query that needs no wider view: a read transaction of its own."""
        self._check_fork()
        with self._lock:
            self._catch_up()
            try:
                rows = self._connection.execute(sql, bindings).fetchall()
            except FOREIGN as error:
                raise translate(error, self.storage.name, self.busy_timeout) from error
        return rows[0] if rows else None

    def data_version(self) -> int:
        """A number that is another one after each commit, by whomever, that this connection has noticed by reading."""
        with self._lock:
            return self._connection.data_version()

    def vacuum(self) -> tuple[int, int]:
        """Rebuild the file without its free pages; its size before and after, in bytes.

        SQLite fills a temporary file first and copies it back in one transaction: when that fails, nothing happened.

        Raises
        ------
        ReadOnlyError, StorageError
            As `write`.
        """
        self._check_fork()
        with self._lock, self._translated():
            self.check_writable()
            with self._up_to_date(), self._between_transactions("write"), checks.doors_open(self._connection):
                before = self._size()
                self._connection.execute(VACUUM)
                after = self._size()
                if self._remote is not None:
                    self._remote.publish(self._connection)
        return before, after

    def copy_into(self, empty: apsw.Connection) -> None:
        """Copy the whole repository as it is now into an empty database, page by page; nobody can commit meanwhile."""
        self._check_fork()
        with (
            self._lock,
            self._translated(),
            self._between_transactions("read"),
            empty.backup("main", self._connection, "main") as copying,
        ):
            copying.step(-1)

    def find_damage(self) -> list[str]:
        """What SQLite finds wrong with the pages, the indexes and the constraints of the file, each a sentence.

        Raises
        ------
        FormatError
            ``corrupt`` when it cannot read on.
        """
        self._check_fork()
        with self._lock, self._translated(), self._between_transactions("read"), checks.doors_open(self._connection):
            rows = self._connection.execute(INTEGRITY_CHECK).fetchall()
        return [str(text) for (text,) in rows if text != "ok"]

    def _size(self) -> int:
        return int(self._connection.pragma("page_count")) * int(self._connection.pragma("page_size"))

    @contextmanager
    def _between_transactions(self, door: str) -> Iterator[None]:
        if self._door.name is not None:
            raise InternalError(f"{door}() was opened inside {self._door.name}()")
        self._door.name = door
        try:
            yield
        finally:
            self._door.name = None

    @contextmanager
    def _transact(self, begin: str, door: str) -> Iterator[None]:
        if self._door.name is not None:
            raise InternalError(f"{door}() was opened inside {self._door.name}()")
        self._connection.execute(begin)
        self._door.name = door
        try:
            yield
            self._connection.execute(COMMIT)
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute(ROLLBACK)
            raise
        finally:
            self._door.name = None

    def _translated(self) -> AbstractContextManager[None]:
        if self._remote is None:
            return translated(self.storage, self.busy_timeout)
        return self._remote.translated(self.storage, self.busy_timeout)

    def close(self) -> None:
        """Release the file; the catalog cannot be used afterwards."""
        with self._lock, self._translated():
            self._release()
        if self._remote is not None:
            self._remote.close()


def create_catalog(storage: StorageConfig, initialize: Callable[[Transaction], None]) -> None:
    """Make a catalog with its first rows: all of it, or with an error nothing.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError, StorageError
        ``repository-already-exists``; ``repository-not-found`` when the directory does not exist; ``io``,
        ``storage-full``.
    """
    with translated(storage, 0):
        make = connections.create if storage.place is None else remote.create
        make(storage, lambda connection: initialize(Transaction(connection)))
    if storage.path is not None:
        known.remember(storage.path)
