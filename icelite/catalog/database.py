"""One connection to a catalog file, and the doors through which every statement goes.

Invariants
----------
- `Catalog.read` and `Catalog.write` are the only transactions on the repository; `Catalog.stage` is the third
  door and touches nothing but the session's private change set. A commit hook refuses any other commit.
- Every write begins IMMEDIATE, so it never fails half way for want of a lock; no object or network I/O
  happens inside it, but the publishing of a remote catalog, whose copy nobody else waits for. What must happen
  after it is durable is queued on the transaction (`after_commit`).
- No row leaves this module while its statement is open: a reader never holds a lock across user code.
- Each statement that reads or writes the repository runs under the connection's guard (`icelite.catalog.locks`),
  since other code in this process may drop SQLite's own locks by closing the file.
- A door is closed twice: an interrupt that falls into the first time does not fall into the second.
- What is read from another catalog that was copied over this one is never returned.
- apsw's exceptions become icelite's here (`icelite.catalog.statements`) and nowhere else.
- A catalog elsewhere is a `RemoteView`: a read first catches up with what this process knows, a write is published.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import apsw

from icelite.catalog import checks, connections, forks, remote
from icelite.catalog.connections import Spares, Watch, find_loss, prepare
from icelite.catalog.door import BEGUN
from icelite.catalog.locks import Guard, check_locks
from icelite.catalog.statements import FOREIGN, Bindings, Row, Transaction, translate, translated
from icelite.errors import ConflictError, ErrorKind, IceliteError, InternalError, ReadOnlyError, SessionStateError
from icelite.retry import Patience
from icelite.storage import StorageConfig

__all__ = ["Bindings", "Catalog", "Doorway", "Row", "Transaction", "repeat_write", "repeated"]

T = TypeVar("T")
P = ParamSpec("P")

BEGIN_READ = "BEGIN DEFERRED"
BEGIN_WRITE = "BEGIN IMMEDIATE"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"
VACUUM = "VACUUM"
INTEGRITY_CHECK = "PRAGMA main.integrity_check(1000)"
SECURE_STEPS = 100  # of SQLite's machine, between two looks
TURN_SECONDS = 0.001  # that an event loop may wait for another thread's statement


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
    strict_locking
        Refuse to write where locks may not be enough; see `icelite.catalog.locks`.

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
        strict_locking: bool = False,
    ) -> None:
        self.storage = storage
        self.busy_timeout = busy_timeout
        self.strict_locking = strict_locking
        self._lock = threading.RLock()
        self._holder: _Holder | None = None  # who has the door and the lock
        self._trusted = check != "never"
        self._options = change_set, check
        self._remote: remote.RemoteView | None = None
        with forks.SqliteCall():
            if spares is None:
                self._connect(whole=change_set)
            else:
                self._take(spares)
            forks.register(self)

    def _connect(self, *, whole: bool) -> None:
        self._remote = remote.view(self.storage, whole=whole, check=self._options[1], before=self._remote)
        self.path = self.storage.path if self._remote is None else self._remote.path
        with self._translated(is_open=False):
            if self.path is not None:
                checks.check_place(self.path)
            if self._remote is None:
                self._connection, guard = connections.connect(self.storage)
            else:
                self._connection, guard = self._remote.connect(), Guard(None)
            try:
                self._door = prepare(
                    self._connection,
                    guard,
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
                guard.close()
                raise
        self._watch = Watch(self._connection, guard, self.storage.name)
        read_only = self._connection.readonly("main") if self._remote is None else self._remote.read_only
        self._begin(bool(read_only), connections.release, self._connection, forks.count(), self._door)

    def _take(self, spares: Spares) -> None:
        self.path = self.storage.path
        with self._translated(is_open=False):
            taken = spares.take()
        self._connection, self._door, self._watch = taken.connection, taken.door, taken.watch
        self._begin(self._connection.readonly("main"), spares.give_back, taken)

    def _begin(self, read_only: bool, release: Callable[..., None], *arguments: object) -> None:
        self.read_only = read_only or not self._door.guard.is_writable
        self._forks = forks.count()
        self._transaction = Transaction(self._connection, self._watch.check)
        # Also when the program ends, or the catalog is dropped without close().
        self._release = weakref.finalize(self, release, *arguments)

    def _check_fork(self) -> None:
        """Open the file anew in a child of os.fork(): SQLite's handles do not survive it.

        Raises
        ------
        SessionStateError
            ``not-picklable`` for a connection with a change set, which stays with the parent; ``forked-in-use``.
        """
        if self._forks == forks.count():
            return
        forks.check_usable()
        if self._options[0]:
            raise SessionStateError(
                f"a session that writes to {self.storage.name} was carried over os.fork(); its changes stay with the"
                " parent process: give the child session.fork() by pickle, or open a session there",
                ErrorKind.NOT_PICKLABLE,
            )
        connections.abandon(self._connection)
        self._release.detach()
        self._holder = None
        self._lock = threading.RLock()  # another thread of the parent may have held the old one
        with forks.SqliteCall():
            self._connect(whole=self.path is not None)

    def pause(self, seconds: float) -> bool:
        """Before a fork: let no thread use the connection until `resume`; False where one does not stop."""
        if not self._lock.acquire(timeout=seconds):
            return False
        if self._door.name is None:
            return True
        self._lock.release()  # this thread itself is inside a door
        return False

    def resume(self) -> None:
        """After a fork."""
        self._lock.release()

    def read(self) -> Doorway:
        """A consistent view of the catalog over several statements."""
        return Doorway(self, "read", BEGIN_READ)

    def write(self) -> Doorway:
        """The one way to change the repository: all of the block is committed, or nothing.

        Raises
        ------
        ReadOnlyError, StorageError, ConflictError
            ``read-only-storage``; ``busy`` when another process held the file past the deadline;
            ``storage-full``, ``io``; ``commit-conflict`` when somebody else published a remote catalog meanwhile.
        """
        return Doorway(self, "write", BEGIN_WRITE)

    def check_writable(self) -> None:
        """Refuse where the file cannot be written.

        Raises
        ------
        ReadOnlyError, StorageError
            ``read-only-storage``; as `locks.check_locks`.
        """
        if self.read_only and self._remote is not None:
            raise self._remote.refusal()
        if self.read_only:
            raise ReadOnlyError(
                f"{self.storage.name} cannot be written: the file or its file system is read-only",
                ErrorKind.READ_ONLY_STORAGE,
            )
        if self.storage.path is not None:
            check_locks(self.storage.path, strict=self.strict_locking)

    def stage(self) -> Doorway:
        """Change the private change set; the repository is neither locked nor touched."""
        return Doorway(self, "stage", BEGIN_READ)

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

    def row(self, sql: str, bindings: Bindings = ()) -> Row | None:
        """The first row of one query that needs no wider view: a read transaction of its own."""
        if self._forks != forks.count():
            self._check_fork()
        with self._lock:
            try:
                if self._remote is not None:
                    self._catch_up()
                if self._door.name is None:
                    rows = self._read_alone(sql, bindings)
                else:
                    self._join()
                    rows = self._transaction.rows(sql, bindings)
            except FOREIGN:
                with self._translated():
                    raise
        return rows[0] if rows else None

    def _read_alone(self, sql: str, bindings: Bindings) -> list[Row]:
        guard = self._door.guard
        try:
            try:
                self._watch.look()
                if not guard.share():
                    self._door.enter_to_read()
                rows = self._connection.execute(sql, bindings).fetchall()
                if self._connection.data_version() != self._watch.seen:
                    self._watch.check()
                return rows
            finally:
                guard.release()
        finally:
            guard.release()  # again, should an interrupt have come before the first

    @property
    def version(self) -> int:
        """Another number after each commit, by whomever, that this connection has noticed by reading."""
        return self._watch.version

    def try_now(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call what uses this catalog, but rather than wait for a lock be refused.

        Raises
        ------
        StorageError
            ``busy``.
        """
        lock, door = self._lock, self._door
        if not lock.acquire(timeout=TURN_SECONDS):
            raise translate(apsw.BusyError(), self.storage.name, TURN_SECONDS)
        try:
            door.may_wait = False
            return function(*arguments)
        finally:
            door.may_wait = True
            lock.release()

    def vacuum(self) -> tuple[int, int]:
        """Rebuild the file without its free pages; its size before and after, in bytes.

        SQLite fills a temporary file first and copies it back in one transaction: when that fails, nothing happened.

        Raises
        ------
        ReadOnlyError, StorageError
            As `write`.
        """
        with Doorway(self, "vacuum"), checks.OpenDoors(self._connection):
            before = self._size()
            self._connection.set_progress_handler(self._door.secure, SECURE_STEPS)
            try:
                self._connection.execute(VACUUM)
            finally:
                self._connection.set_progress_handler(None)
                self._door.guard.yield_to_sqlite()
            after = self._size()
        return before, after

    def copy_into(self, empty: apsw.Connection, target: str) -> None:
        """Copy the whole repository as it is now into an empty database, page by page; nobody can commit meanwhile.

        Raises
        ------
        StorageError
            ``storage-full``, ``io``, with the name of the target.
        """
        with Doorway(self, "read"), empty.backup("main", self._connection, "main") as copying:
            try:
                copying.step(-1)
            except apsw.FullError as error:
                raise translate(error, target, self.busy_timeout) from error
            except apsw.IOError as error:  # of one or the other
                raise translate(error, f"{target}, a copy of {self.storage.name},", self.busy_timeout) from error

    def find_damage(self) -> list[str]:
        """What SQLite finds wrong with the pages, the indexes and the constraints of the file, each a sentence.

        Raises
        ------
        FormatError
            ``corrupt`` when it cannot read on.
        """
        with Doorway(self, "read"), checks.OpenDoors(self._connection):
            rows = self._connection.execute(INTEGRITY_CHECK).fetchall()
        return [str(text) for (text,) in rows if text != "ok"]

    def measure_free(self) -> tuple[int, int]:
        """Bytes of the file, and of the pages in it that are free."""
        with Doorway(self, "read"), checks.OpenDoors(self._connection):
            size = self._size()
            free = int(self._connection.pragma("freelist_count")) * int(self._connection.pragma("page_size"))
        return size, free

    def _size(self) -> int:
        return int(self._connection.pragma("page_count")) * int(self._connection.pragma("page_size"))

    # -- what a `Doorway` does, under the lock ------------------------------------------------------------------

    def _enter(self, name: str, begin: str | None) -> Transaction:
        if name in BEGUN:
            self.check_writable()
        if self._door.name is not None:
            raise InternalError(f"{name}() was opened inside {self._door.name}()")
        if name in BEGUN and self._remote is not None:
            if self.path is None:
                self._reconnect(whole=True)
            self._remote.begin()
        else:
            self._catch_up()
        if name != "stage":
            self._watch.look()
        if name == "vacuum":
            self._door.enter_alone()
        else:
            self._door.enter(name)
        if begin is not None:
            self._connection.execute(begin)
        self._door.begin()
        if name == "write":
            self._watch.check()
            return Transaction(self._connection, self._watch.check)
        return self._transaction

    def _finish(self, name: str, begin: str | None) -> None:
        if name in BEGUN and self._remote is not None:  # before COMMIT: what is not published is rolled back
            self._remote.publish(self._connection)
        if begin is not None:
            self._connection.execute(COMMIT)
        self._door.leave()
        if name in BEGUN and self._remote is not None:
            self._remote.settle()
        if name in BEGUN and self.path is not None and self._trusted:
            checks.remember(self.path, None if self._remote is None else self._remote.digest)

    def _join(self) -> None:
        """Inside another door: that of the change set has not looked at the repository yet."""
        if self._door.name == "stage" and not self._door.guard.is_held:
            self._watch.look()
            self._door.enter_to_read()

    def _leave(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute(ROLLBACK)
        finally:
            self._door.leave()

    def _translated(self, *, is_open: bool = True) -> AbstractContextManager[None]:
        if self._remote is None:
            return translated(self.storage, self.busy_timeout, self._find_loss if is_open else None)
        return self._remote.translated(self.storage, self.busy_timeout)

    def _find_loss(self) -> IceliteError | None:
        return None if self.path is None else find_loss(self.path, self._connection, self._door.guard.identity)

    def close(self) -> None:
        """Release the file; the catalog cannot be used afterwards."""
        with self._lock, self._translated():
            self._release()
        if self._remote is not None:
            self._remote.close()


class _Holder:
    """The mark that an `_Opening` leaves at its catalog, which must not keep it alive."""

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class _Opening:
    """A door that a ``with`` block holds: what has to be given up, however the block ends."""

    _lock: threading.RLock | None = None  # where an interrupt comes into `__init__`

    def __init__(self, catalog: Catalog, name: str, begin: str | None) -> None:
        self._catalog = catalog
        self._name = name
        self._begin = begin
        self._forks = 0
        self._holder = _Holder()
        self._transaction: Transaction | None = None

    def enter(self) -> Transaction:
        """Take the catalog's lock, then open the door; inside another door that of who reads is open."""
        catalog = self._catalog
        catalog._check_fork()
        outer = catalog._holder
        if outer is not None and outer.thread == self._holder.thread and self._name == "read" and self._begin:
            catalog._join()
            return catalog._transaction
        self._forks = forks.count()
        self._lock = catalog._lock  # first: an interrupt must not leave a lock that nobody knows of
        self._lock.acquire()
        if catalog._door.name is None:
            catalog._holder = self._holder
        self._transaction = catalog._enter(self._name, self._begin)
        return self._transaction

    def finish(self) -> None:
        """Commit."""
        if self._lock is not None:
            self._catalog._finish(self._name, self._begin)

    def leave(self) -> None:
        """Give up whatever is held; as often as one likes."""
        if self._lock is None:
            return
        try:
            # In a child of a fork inside the door all of it is the parent's.
            if self._catalog._holder is self._holder and self._forks == forks.count():
                self._catalog._leave()
        finally:
            if self._catalog._holder is self._holder:
                self._catalog._holder = None
            with contextlib.suppress(RuntimeError):  # an interrupt came before it was taken, or after it was released
                self._lock.release()
            self._lock = None

    def after(self) -> None:
        """What was queued for after the commit."""
        for action in self._transaction.after_commit if self._name == "write" and self._transaction else ():
            action()

    def __del__(self) -> None:
        self.leave()


class Doorway:
    """A door of a catalog, for one ``with`` statement.

    An interrupt may come before the first line of ``__exit__``. Then nothing of it runs; but what the ``with``
    statement holds is dropped with it, and only that refers to the `_Opening`: neither this object nor any frame of a
    traceback. So the door is closed at once, as it would not be if it were a generator's.
    """

    def __init__(self, catalog: Catalog, name: str, begin: str | None = None) -> None:
        self._arguments = catalog, name, begin
        self._opening: Callable[[], _Opening]

    @property
    def __exit__(self) -> Callable[..., None]:
        """What ends the block; asked for before ``__enter__`` is called."""
        opening = _Opening(*self._arguments)
        self._opening = cast("Callable[[], _Opening]", weakref.ref(opening))  # alive as long as the block
        closing: Any = functools.partial(_close, self._opening, self._arguments[0])
        closing.opening = opening
        return cast("Callable[..., None]", closing)

    def __enter__(self) -> Transaction:
        try:
            try:
                return self._opening().enter()
            except BaseException as error:
                self._opening().leave()
                _explain(self._arguments[0], error)
                raise
        except BaseException:
            self._opening().leave()  # again, should an interrupt have come before the first or into it
            raise


def _close(opening: Callable[[], _Opening], catalog: Catalog, *raised: Any) -> None:
    """End a block. No variable holds what ``opening`` refers to, weakly: see `Doorway`."""
    try:
        try:
            if raised[1] is None:
                opening().finish()
        except BaseException as fault:
            opening().leave()
            _explain(catalog, fault)
            raise
        opening().leave()
    except BaseException:
        opening().leave()  # again, should an interrupt have come before the first or into it
        raise
    if raised[1] is None:
        opening().after()
    else:
        _explain(catalog, raised[1])


def _explain(catalog: Catalog, error: BaseException) -> None:
    """Raise icelite's own error for one of apsw's."""
    if isinstance(error, Exception):
        with catalog._translated():
            raise error


# -- writes that begin anew when somebody else publishes a remote catalog first ---------------------------------------

# Of a write while others publish first; a version that nobody changed is never tried again.
PATIENCE = Patience(100, pause=0.05, factor=1.2, longest=1.0, jitter=0.9, seconds=120.0)


def repeat_write(catalog: Catalog, action: Callable[[Transaction], T]) -> T:
    """Run a write that does not depend on what others wrote; again, when they publish a remote catalog first.

    Raises
    ------
    ConflictError, ReadOnlyError, StorageError
        As `Catalog.write`, when the last try fails.
    """

    def write() -> T:
        with catalog.write() as txn:
            return action(txn)

    return _repeat(catalog, write)


def repeated(function: Callable[Concatenate[Catalog, P], T]) -> Callable[Concatenate[Catalog, P], T]:
    """A function that begins anew when others publish its remote catalog before its own write is."""

    @functools.wraps(function)
    def call(catalog: Catalog, /, *arguments: P.args, **options: P.kwargs) -> T:
        return _repeat(catalog, lambda: function(catalog, *arguments, **options))

    return call


def _repeat(catalog: Catalog, action: Callable[[], T]) -> T:
    for is_last in PATIENCE.tries():
        try:
            return action()
        except ConflictError as error:
            if is_last or catalog.storage.address is None or error.kind != ErrorKind.COMMIT_CONFLICT:
                raise
    raise AssertionError("the last try returns or raises")
