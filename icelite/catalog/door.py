"""What one connection waits for: who may read, who may write, and how long.

A door to the repository is opened under a `Guard`. What SQLite has to wait for comes through its busy handler:

- *A reader*, or a writer that begins, gives up its place in the guard while it waits, so that who waits for it gets on.
  A journal with something in it that nobody is writing was left by a crash: then SQLite waits for readers to leave,
  and the guard keeps them out while SQLite plays the journal back.
- *A writer* that has begun is asked when SQLite first wants to overwrite the file: at COMMIT, or before that when its
  page cache is full. Its own guard is in the way (`icelite.catalog.locks`), so SQLite always asks; then readers are
  shut out.
"""

from __future__ import annotations

import ctypes
import os
import random
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import apsw

from icelite.catalog.locks import Guard

PAUSE_SECONDS = (0.0002, 0.002)  # random, or one writer starves the others (docs/design.md)
SHORT_PAUSE_SECONDS = (0.00005, 0.0002)  # at first: who waits for a reader to leave waits for microseconds
SHORT_PAUSES = 3

BEGUN = ("write", "vacuum")  # doors that may overwrite the file
RESERVED, PENDING = 2, 3  # SQLite's states of a lock (os.h)


class Door:
    """Which door of a connection is open; apart from `Catalog`, so that what asks for it keeps no catalog alive.

    Parameters
    ----------
    guard
        Of the connection.
    path
        The catalog file; None in memory.
    busy_timeout
        Seconds to wait for other connections.
    connection
        Whose door it is.

    Attributes
    ----------
    name
        ``read``, ``write``, ``stage``, ``vacuum``; None while no door is open.
    may_wait
        Whether to wait at all, or to be refused as if the time were up.
    """

    def __init__(self, guard: Guard, path: Path | None, busy_timeout: float, connection: apsw.Connection) -> None:
        self.name: str | None = None
        self._connection = weakref.ref(connection)  # which holds the door, as its busy handler
        self.guard = guard
        self.may_wait = True
        self._journal = None if path is None else f"{path}-journal"
        self._seconds = busy_timeout
        self._deadline = 0.0
        self._written = False

    # -- opening and closing -----------------------------------------------------------------------------------

    def enter(self, name: str) -> None:
        """Open a door: wait for the guard.

        Raises
        ------
        apsw.BusyError
            When the time is up.
        """
        self.name = name
        if name == "stage":  # touches nothing that others see
            return
        if name != "read":
            self._wait_for(self.guard.write)
        self.enter_to_read()

    def enter_to_read(self) -> None:
        """Only the guard of a reader, for one statement or inside the door `stage`."""
        if not self.guard.share():
            self._wait_for(self.guard.share)

    def enter_alone(self) -> None:
        """Open a door while nobody reads: for what SQLite overwrites the file at once for. Raises as `enter`."""
        self.enter("vacuum")
        self.guard.pend()  # who begins to read steps aside
        self._wait_for(self.guard.exclude)
        self.guard.yield_to_sqlite()

    def secure(self) -> bool:
        """SQLite's progress handler in that door: once it has its locks, hold them for it; never stop it."""
        if self._lock_state() > PENDING and self.guard.reserve():
            self.guard.pend()
        return False

    def begin(self) -> None:
        """Note that the transaction has begun.

        Raises
        ------
        apsw.BusyError
            Where another program came between.
        """
        if self.name == "write":
            if self.guard.excludes:  # a journal was played back: readers may come again
                self.guard.share()
            if not self.guard.reserve():
                raise apsw.BusyError("another program writes")

    def leave(self) -> None:
        """Close the door; as often as one likes."""
        self.name = None
        self.guard.release()

    # -- what SQLite asks --------------------------------------------------------------------------------------

    def refuses_commit(self) -> bool:
        """SQLite's commit hook: what did not come through a door is rolled back."""
        self._written |= self.name in BEGUN
        return self.name not in ("stage", *BEGUN)

    def has_written(self) -> bool:
        """Whether the repository was written through this connection."""
        return self._written

    def wait(self, calls: int) -> bool:
        """SQLite's busy handler: whether to try again, after ``calls`` times in vain."""
        if calls == 0:
            self._deadline = time.monotonic() + self._seconds
        if self.guard.identity is None:
            return self._pause(calls)
        state = self._lock_state()
        if state == PENDING:
            return self._shut_out(calls)
        if state == RESERVED:  # somebody begins to read just now
            return self._pause(calls)
        self.guard.step_aside()
        if self._play_back(calls):
            return True
        while True:
            if not self._pause(calls):
                return False
            if self.guard.share():
                return True
            calls += 1

    def _shut_out(self, calls: int) -> bool:
        if self.guard.excludes:  # what is in the way knows no guard: another program that reads
            return self._pause(calls)
        while not self.guard.exclude():
            if not self._pause(calls):
                return False
            calls += 1
        if self.guard.reserve():
            self.guard.pend()
        return True

    def _lock_state(self) -> int:
        """Which of its locks SQLite believes to hold on the file."""
        connection, state = self._connection(), ctypes.c_int()
        if connection is not None:
            connection.file_control("main", apsw.SQLITE_FCNTL_LOCKSTATE, ctypes.addressof(state))
        return state.value

    def _play_back(self, calls: int) -> bool:
        """Keep others out while SQLite plays a journal back, if nobody is writing it.

        A reader is the one writer meanwhile, until its door closes.
        """
        is_writer = self.guard.writes
        if not self._has_journal() or not (is_writer or self.guard.write()):
            if is_writer and self.name not in BEGUN:
                self.guard.stop_writing()
            return False
        if calls and not self._pause(calls):
            return False
        while not self.guard.exclude():
            if not self._pause(calls):
                return False
            calls += 1
        return True

    def _has_journal(self) -> bool:
        try:
            return self._journal is not None and os.stat(self._journal).st_size > 0
        except OSError:
            return False

    # -- waiting -----------------------------------------------------------------------------------------------

    def _wait_for(self, attempt: Callable[[], bool]) -> None:
        self._deadline = time.monotonic() + self._seconds
        calls = 0
        while not attempt():
            if not self._pause(calls):
                raise apsw.BusyError("the guard of the file is held")
            calls += 1

    def _pause(self, calls: int) -> bool:
        """Wait a little, unless the time is up."""
        if not self.may_wait or time.monotonic() >= self._deadline:
            return False
        time.sleep(random.uniform(*(SHORT_PAUSE_SECONDS if calls < SHORT_PAUSES else PAUSE_SECONDS)))
        return True
