"""Grid positions as the catalog joins them, one a line, read as what may come from a stranger."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from icelite.catalog.json_column import damaged


def split_positions(text: str, what: str) -> list[str]:
    """The grid positions in a text; ``what`` names its row, for the error.

    Raises
    ------
    FormatError
        ``corrupt`` when one is not numbers with slashes between them.
    """
    bare = not text.encode().translate(None, b"0123456789/\n")  # a regular expression would take 20 times as long
    if not bare or text[:1] == "/" or text[-1:] == "/" or any(fault in text for fault in ("//", "/\n", "\n/")):
        raise damaged(what, "a grid position is not numbers with slashes between them")
    return text.split("\n")


def as_grid(chunks: Sequence[str], ndim: int, what: str) -> npt.NDArray[np.uint32]:
    """Grid positions as numbers: chunks x dimensions.

    Raises
    ------
    FormatError
        ``corrupt`` when one does not have a number for each dimension.
    """
    if not chunks or not ndim:
        return np.zeros((len(chunks), ndim), dtype=np.uint32)
    text = "\n".join(chunks)
    marks = np.frombuffer(text.encode() + b"\n", dtype=np.uint8)
    marks = marks[marks < ord("0")]  # of digits, slashes and line breaks, the latter two
    if marks.size != len(chunks) * ndim or not np.array_equal(
        marks.reshape(-1, ndim) == ord("\n"), _last(ndim, chunks)
    ):
        raise damaged(what, f"a grid position does not have {ndim} numbers")
    return np.fromstring(text.replace("/", "\n"), dtype=np.int64, sep="\n").reshape(-1, ndim).astype(np.uint32)


def _last(ndim: int, chunks: Sequence[str]) -> npt.NDArray[np.bool_]:
    return np.broadcast_to(np.arange(ndim) == ndim - 1, (len(chunks), ndim))
