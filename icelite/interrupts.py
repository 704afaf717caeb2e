"""Long work that ends early: by an interrupt (Ctrl-C) that would be lost, or because the parent process is gone.

Python raises `KeyboardInterrupt` in whatever Python code runs next. Behind a call into a C library that is often the
callback of a weak reference or a finalizer, from which nothing can be raised: it is reported as ignored, and the work
goes on. h5py has such a callback for each object that it closes, so while local files were scanned one interrupt in
eight did nothing. Inside a callback of HDF5's it may also come out as an error of HDF5's, which is about one file.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

_AGAIN_SECONDS = 0.2  # between two looks at whether an interrupt ends the work
_LOOK_SECONDS = 0.5  # between two looks of a worker at its parent


class _Listener:
    """The handler of SIGINT while work goes on: it raises again what did not end the work."""

    def __init__(self, next_hook: Callable[[Any], object]) -> None:
        self._next_hook = next_hook
        self._lock = threading.Lock()  # of threads that look; the handler, which may run anywhere, takes none
        self._open = True
        self.interrupted = False

    def handle(self, number: int, frame: object) -> NoReturn:
        """Interrupt the work, and see to it that it ends."""
        self.interrupted = True
        _thread.start_new_thread(self._look, ())  # `threading` takes locks that may be held here
        raise KeyboardInterrupt

    def hook(self, unraisable: Any) -> None:
        """Report what cannot be raised, but for interrupts, which will be."""
        if unraisable.exc_type is not KeyboardInterrupt:
            self._next_hook(unraisable)

    def _look(self) -> None:
        while True:
            time.sleep(_AGAIN_SECONDS)
            with self._lock:
                if not self._open:
                    return
                if not _is_ending():
                    _thread.interrupt_main()  # as if the signal came now
                    return

    def close(self) -> None:
        """Raise nothing any more."""
        with self._lock:
            self._open = False


def _is_ending() -> bool:
    """Whether the main thread cleans up after an interrupt."""
    found: Any = sys._current_exceptions().get(threading.main_thread().ident or 0)
    error = found[1] if isinstance(found, tuple) else found  # until Python 3.12
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


@contextmanager
def heard_interrupts() -> Iterator[None]:
    """A block in which no interrupt is lost: it is raised until the block ends, at its end at the latest.

    As a decorator it also covers what a function frees as it returns. A handler of the caller's own stays.
    """
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    hook = sys.unraisablehook
    listener = _Listener(hook)
    mine = listener.hook
    signal.signal(signal.SIGINT, listener.handle)
    sys.unraisablehook = mine
    try:
        yield
    except BaseException as error:
        if listener.interrupted and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error  # such as HDF5's, of a callback that was interrupted
        raise
    finally:
        listener.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if sys.unraisablehook is mine:
            sys.unraisablehook = hook
    if listener.interrupted:
        raise KeyboardInterrupt


def end_with_parent() -> None:
    """Let this worker process, of multiprocessing or loky, end soon after the one that started it.

    That may have ended already, while this one began; then ``os.getppid()`` is another's, so it does not say who it was.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None  # of a process that neither of them started

    def watch() -> None:
        if parent.sentinel is not None:
            parent.join()
        while os.getppid() == parent.pid:  # loky has no sentinel
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="icelite-parent", daemon=True).start()
