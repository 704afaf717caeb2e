"""How long work ends early: an interrupt (Ctrl-C) that Python would drop, and worker processes whose parent is gone.

Python raises `KeyboardInterrupt` in whatever Python code runs next. Behind a call into a C library that is often the
callback of a weak reference or a finalizer, from which nothing can be raised: it is reported as ignored, and the work
goes on. h5py has such a callback for each object that it closes, so while local files were scanned one interrupt in
eight did nothing.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN_SECONDS = 0.05  # until an interrupt that was dropped is raised again; it may be dropped again
_LOOK_SECONDS = 0.5  # between two looks of a worker at its parent


class _Listener:
    """Raises interrupts again that were dropped, until it is closed."""

    def __init__(self, next_hook: Callable[[Any], object]) -> None:
        self._next_hook = next_hook
        self._lock = threading.Lock()  # of the threads that raise again; never held by the hook, which may be anywhere
        self._open = True
        self.dropped = False

    def hook(self, unraisable: Any) -> None:
        """Take the place of `sys.unraisablehook`."""
        if unraisable.exc_type is not KeyboardInterrupt:
            self._next_hook(unraisable)
        elif not self.dropped:
            self.dropped = True
            _thread.start_new_thread(self._raise_again, ())  # `threading` takes locks that may be held here

    def _raise_again(self) -> None:
        time.sleep(_AGAIN_SECONDS)
        with self._lock:
            if self._open and self.dropped:
                self.dropped = False
                _thread.interrupt_main()  # as if the signal came now

    def close(self) -> None:
        """Raise nothing any more; ``dropped`` says whether an interrupt is still waiting."""
        with self._lock:
            self._open = False


@contextmanager
def heard_interrupts() -> Iterator[None]:
    """A block in which no interrupt is lost: one that was dropped is raised again, at its end at the latest."""
    hook = sys.unraisablehook
    if threading.current_thread() is not threading.main_thread() or isinstance(
        getattr(hook, "__self__", None), _Listener
    ):
        yield  # interrupts are the main thread's, and one listener is enough
        return
    listener = _Listener(hook)
    heard = listener.hook
    sys.unraisablehook = heard
    try:
        yield
    finally:
        if sys.unraisablehook is heard:
            sys.unraisablehook = hook
        listener.close()
    if listener.dropped:
        raise KeyboardInterrupt


def end_with_parent() -> None:
    """Let this worker process end soon after the process that started it, however that ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="icelite-parent", daemon=True).start()
