"""ecCodes, ECMWF's library for GRIB, asked about one message at a time; it runs in a process of its own.

- One such process serves this one, is started when it is needed and again when a message has ended it, and ends with
  this one, whose end closes its standard input.
- A process that was forked starts its own.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from icelite.formats import eccodes_program

_SECONDS = 60  # for one message
_ABSENT = object()
_HIDDEN = ("latitudes", "longitudes")  # large, and asked for by `read_points`


class _Process:
    """The process that runs ecCodes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, name: str, *arguments: Any) -> Any:
        """The answer to a request.

        Raises
        ------
        ValueError
            ecCodes does not read the message.
        ImportError
            It is not installed.
        """
        with self._lock:
            running = self._started()
            try:
                assert running.stdin is not None
                assert running.stdout is not None
                pickle.dump((name, arguments, _SECONDS), running.stdin)
                running.stdin.flush()
                done, answer = pickle.load(running.stdout)
            except (EOFError, OSError, pickle.UnpicklingError):
                self._stop()
                raise ValueError("ecCodes does not come back from it") from None
            except BaseException:
                self._stop()  # interrupted: the answer would be taken for that of the next request
                raise
        if done is None:
            raise ImportError(answer[0], name=answer[1])
        if not done:
            raise ValueError(f"ecCodes does not read it: {answer}")
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._running is None or self._owner != os.getpid() or self._running.poll() is not None:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._running = subprocess.Popen(
                [sys.executable, "-P", eccodes_program.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            self._owner = os.getpid()
        return self._running

    def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None and self._owner == os.getpid():
            running.kill()
            running.wait()
            for pipe in (running.stdin, running.stdout):
                if pipe is not None:
                    pipe.close()

    def close(self) -> None:
        """End it."""
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """Begin anew in a process that was forked; the lock may have been held by a thread that is not here."""
        self.__init__()  # type: ignore[misc]


_process = _Process()
atexit.register(_process.close)
os.register_at_fork(after_in_child=_process.forget)


class Headers(Mapping[str, Any]):
    """Keys of one field as ecCodes computes them, read when they are asked for and kept.

    A key may end in ``:int``, ``:float`` or ``:str``. The coordinates of its grid are not among them: see
    `read_points`.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._known: dict[str, Any] = dict.fromkeys(_HIDDEN, _ABSENT)

    def load(self, keys: Iterable[str], message: bytes | None = None) -> None:
        """Read several keys at once.

        Raises
        ------
        ValueError
            ecCodes does not read the message.
        """
        wanted = [key for key in keys if key not in self._known]
        found = _process.ask("read_keys", self._read() if message is None else message, wanted)
        self._known |= {key: found.get(key, _ABSENT) for key in wanted}

    def __getitem__(self, key: str) -> Any:
        if key not in self._known:
            self.load([key])
        value = self._known[key]
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key, _ABSENT) is not _ABSENT

    def __iter__(self) -> Iterator[str]:
        return (key for key, value in self._known.items() if value is not _ABSENT)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def read_points(message: bytes) -> tuple[np.ndarray[Any, Any], ...] | None:
    """Latitudes and longitudes of a field's points in the order of its values, in degrees; None if it has none.

    Raises
    ------
    ValueError
        ecCodes does not read the message.
    """
    points: tuple[np.ndarray[Any, Any], ...] | None = _process.ask("read_points", message)
    return points


def read_values(message: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Values of a field in the order in which they are stored, NaN where there is none.

    Raises
    ------
    ValueError
        ecCodes does not decode it.
    """
    return np.asarray(_process.ask("read_values", message), np.float64)


def compare_gribberish(message: bytes) -> str | None:
    """Why gribberish does not decode a message as ecCodes does, or None.

    Raises
    ------
    ValueError
        One of them does not come back from it.
    """
    answer: str | None = _process.ask("compare_gribberish", message)
    return answer
