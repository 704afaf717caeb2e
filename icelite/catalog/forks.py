"""os.fork() beside SQLite, whose locks and mutexes in the process a child inherits as they were at that moment.

Before a fork icelite waits until none of its calls is inside SQLite, and lets no new one begin; so the child finds
everything at rest, and opens every file anew. Where that takes too long, or the fork itself came from inside a call,
the child cannot use SQLite at all: it would read without a lock, or hang. There each use is a clear error.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Protocol

from icelite.errors import ErrorKind, SessionStateError

WAIT_SECONDS = 5.0
TRY_SECONDS = 0.1  # for one connection; then all are let go, for who has it may need another one
PAUSE_SECONDS = 0.0005


class Pausable(Protocol):
    """What uses SQLite for long: a connection that is open."""

    def pause(self, seconds: float) -> bool:
        """Let nobody use it, from when this returns True to `resume`."""

    def resume(self) -> None:
        """Let others use it again."""


class _State:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.forker: int | None = None  # the thread that forks
        self.calls: weakref.WeakSet[SqliteCall] = weakref.WeakSet()
        self.paused: list[Pausable] = []
        self.failed = False


_count = 0
_is_unusable = False
_state = _State()
_pausables: dict[int, weakref.ref[Pausable]] = {}  # by id: a dict is copied in one step, beside other threads


def count() -> int:
    """How often this process is the child of a fork since icelite was imported."""
    return _count


def register(pausable: Pausable) -> None:
    """Let something be paused before each fork, as long as it lives."""
    key = id(pausable)
    _pausables[key] = weakref.ref(pausable, lambda _: _pausables.pop(key, None))


def check_usable() -> None:
    """Refuse in a child that was forked in the middle of a call.

    Raises
    ------
    SessionStateError
        ``forked-in-use``.
    """
    if _is_unusable:
        raise SessionStateError(
            "this process was forked while another thread was inside icelite, so what it inherited of SQLite cannot be"
            " used; start workers with multiprocessing's 'spawn' or 'forkserver' method, or before the threads",
            ErrorKind.FORKED_IN_USE,
        )


class SqliteCall:
    """A block that uses SQLite apart from a `Pausable`: that opens and closes connections, above all.

    It is known weakly, so that an interrupt leaves none behind: what the ``with`` statement holds goes with it.

    Raises
    ------
    SessionStateError
        As `check_usable`.
    """

    __slots__ = ("__weakref__",)

    def __enter__(self) -> None:
        check_usable()
        while not self._begin():
            time.sleep(PAUSE_SECONDS)

    def _begin(self) -> bool:
        with _state.lock:
            may_begin = _state.forker in (None, threading.get_ident())  # a finalizer may run in the thread that forks
            if may_begin:
                _state.calls.add(self)
            return may_begin

    def __exit__(self, *_: object) -> None:
        try:
            _state.calls.discard(self)
        finally:
            _state.calls.discard(self)  # again, should an interrupt have come into the first


def _before() -> None:
    with _state.lock:
        _state.forker = threading.get_ident()
    deadline = time.monotonic() + WAIT_SECONDS
    while _state.calls and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS)
    _state.failed = bool(_state.calls)
    while not (_state.failed or _pause_all()):
        _state.failed = time.monotonic() >= deadline


def _pause_all() -> bool:
    for reference in list(_pausables.values()):
        pausable = reference()
        if pausable is None:
            continue
        if not pausable.pause(TRY_SECONDS):
            _resume_all()
            return False
        _state.paused.append(pausable)
    return True


def _resume_all() -> None:
    while _state.paused:
        _state.paused.pop().resume()


def _after_in_parent() -> None:
    _resume_all()
    _state.forker = None


def _after_in_child() -> None:
    global _count, _is_unusable, _state
    _count += 1
    _is_unusable |= _state.failed
    _resume_all()
    _state = _State()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
