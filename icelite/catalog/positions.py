"""Grid positions as the catalog joins them, one a line, read as what may come from a stranger."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from icelite.catalog.json_column import damaged

_GREATEST = 2**63 - 1
_LONG = 40  # characters: only in longer positions it is worth while to look for
_HUGE = re.compile("[0-9]{20}")  # ... a number that Python would refuse to read, or take long to


def split_positions(text: object, what: str) -> list[str]:
    """The grid positions in a text; ``what`` names its row, for the error.

    Raises
    ------
    FormatError
        ``corrupt`` when one is not numbers with slashes between them.
    """
    if not isinstance(text, str) or not text.isascii():
        raise damaged(what, "a grid position is not a text of numbers")
    bare = not text.encode().translate(None, b"0123456789/\n")  # a regular expression would take 20 times as long
    if not bare or text[:1] == "/" or text[-1:] == "/" or any(fault in text for fault in ("//", "/\n", "\n/")):
        raise damaged(what, "a grid position is not numbers with slashes between them")
    names = text.split("\n")
    if max(map(len, names)) > _LONG and _HUGE.search(text):
        raise damaged(what, "a grid position has a number of 20 digits or more")
    return names


def as_grid(chunks: Sequence[str], ndim: int, what: str) -> npt.NDArray[np.uint32] | npt.NDArray[np.uint64]:
    """Grid positions as numbers: chunks x dimensions, of 32 bits unless one needs more.

    Raises
    ------
    FormatError
        ``corrupt`` when one does not have a number below 2**63 - 1 for each dimension.
    """
    if not chunks or not ndim:
        if any(chunks):
            raise damaged(what, "a chunk of an array without dimensions has a grid position")
        return np.zeros((len(chunks), ndim), dtype=np.uint32)
    text = "\n".join(chunks)
    marks = np.frombuffer(text.encode() + b"\n", dtype=np.uint8)
    marks = marks[marks < ord("0")]  # of digits, slashes and line breaks, the latter two
    if marks.size != len(chunks) * ndim or not np.array_equal(
        marks.reshape(-1, ndim) == ord("\n"), _last(ndim, chunks)
    ):
        raise damaged(what, f"a grid position does not have {ndim} numbers")
    if not all(chunks):
        raise damaged(what, "a grid position is empty")
    grid = np.fromstring(text.replace("/", "\n"), dtype=np.int64, sep="\n").reshape(-1, ndim)
    greatest = int(grid.max())
    if greatest == _GREATEST:  # which numpy also makes of what is greater
        raise damaged(what, f"a grid position has a number of {_GREATEST} or more")
    return grid.astype(np.uint32) if greatest < 2**32 else grid.astype(np.uint64)


def _last(ndim: int, chunks: Sequence[str]) -> npt.NDArray[np.bool_]:
    return np.broadcast_to(np.arange(ndim) == ndim - 1, (len(chunks), ndim))
