"""The program that runs ecCodes, in a process of its own: it answers requests from its standard input.

ecCodes trusts what it reads: a damaged message may end the process that decodes it, or keep it busy for ever. This
module imports nothing of icelite, so that the process starts quickly; `icelite.formats.eccodes` starts it and asks.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_MISSING = 1e300  # what ecCodes is told to put where a field has no value
_KINDS: dict[str, type | None] = {"": None, "int": int, "float": float, "str": str}
_TOLERANCE = 1e-9  # relative: both libraries compute with 64 bits
_Numbers = np.ndarray[Any, np.dtype[np.float64]]


@cache
def library() -> Any:
    """The module ``eccodes``, loaded so that other libraries of the process keep their own PROJ.

    findlibs would load what ecCodes depends on for everybody: pyproj then finds the wrong PROJ, and the process ends.

    Raises
    ------
    ImportError
        It is not installed.
    """
    dependencies, own = find_spec("eckitlib"), find_spec("eccodeslib")
    if dependencies is None or own is None or dependencies.origin is None or own.origin is None:
        import eccodes

        return eccodes
    for path in sorted((Path(dependencies.origin).parent / "lib64").glob("lib*.so")):
        ctypes.CDLL(str(path))  # found by name when ecCodes asks for it
    with _environment(FINDLIBS_DISABLE_PACKAGE="yes", ECCODES_HOME=str(Path(own.origin).parent)):
        import eccodes
    return eccodes


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _handle(message: bytes) -> Iterator[Any]:
    codes = library()
    handle = codes.codes_new_from_message(message)
    try:
        yield handle
    finally:
        codes.codes_release(handle)


def read_keys(message: bytes, keys: Sequence[str]) -> dict[str, Any]:
    """Those of the keys that the message has."""
    with _handle(message) as handle:
        found = {key: _value(handle, key) for key in keys}
    return {key: value for key, value in found.items() if value is not None}


def _value(handle: Any, key: str) -> Any:
    codes = library()
    name, _, kind = key.partition(":")
    try:
        if codes.codes_get_size(handle, name) > 1:
            return codes.codes_get_array(handle, name, _KINDS[kind])
        return codes.codes_get(handle, name, _KINDS[kind])
    except (codes.CodesInternalError, ValueError):
        return None


def read_points(message: bytes) -> tuple[_Numbers, _Numbers] | None:
    """Latitudes and longitudes of a field's points in the order of its values, in degrees; None if it has none."""
    codes = library()
    with _handle(message) as handle:
        try:
            return codes.codes_get_array(handle, "latitudes"), codes.codes_get_array(handle, "longitudes")
        except codes.CodesInternalError:
            return None


def read_values(message: bytes) -> _Numbers:
    """Values of a field in the order in which they are stored, NaN where there is none."""
    codes = library()
    with _handle(message) as handle:
        codes.codes_set(handle, "missingValue", _MISSING)
        values = np.asarray(codes.codes_get_values(handle), np.float64)
    return np.where(values == _MISSING, np.nan, values)


def compare_gribberish(message: bytes) -> str | None:
    """Why gribberish does not decode a message as ecCodes does, or None."""
    try:
        from gribberish import parse_grib_array
    except ImportError:
        return "gribberish is not installed, which needs Python 3.12"
    values = read_values(message)
    try:
        found = np.ravel(parse_grib_array(message, 0, False, False))
    except (TypeError, ValueError, RuntimeError) as error:
        return f"gribberish does not decode it: {str(error).partition(chr(10))[0]}"
    if found.size != values.size or not np.allclose(found, values, _TOLERANCE, 0, equal_nan=True):
        return "gribberish decodes it to other values than ecCodes"
    return None


_ANSWERS = {function.__name__: function for function in (read_keys, read_points, read_values, compare_gribberish)}


def main() -> None:
    """Answer requests until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints
    while True:
        try:
            name, arguments, seconds = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        signal.alarm(seconds)
        _answer(answers, name, arguments)
        signal.alarm(0)


def _answer(answers: BinaryIO, name: str, arguments: tuple[Any, ...]) -> None:
    answer: tuple[bool | None, Any]
    try:
        answer = True, _ANSWERS[name](*arguments)
    except ImportError as error:
        answer = None, (str(error), error.name)
    except Exception as error:  # noqa: BLE001  # of a library, about the message: the process that asks raises it
        answer = False, f"{error} ({type(error).__name__})"
    pickle.dump(answer, answers)
    answers.flush()


if __name__ == "__main__":
    main()
