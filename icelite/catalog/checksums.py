"""The checksums of rows: what tells a damaged catalog from a sound one (docs/format.md, "Damage").

Invariants
----------
- `row_crc` covers every column of a row but the last, which holds it. NULL there is a row that was changed by hand.
- The rows of `chunk_ref` have no such column. `change.refs_sum` is the sum of their `ref_hash`: it does not depend on
  their order, and what is removed can be subtracted.
- `sum_refs` and `ref_hash` are the same arithmetic, over columns and over one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import google_crc32c
import numpy as np
import numpy.typing as npt

U64: TypeAlias = npt.NDArray[np.uint64]
Ints: TypeAlias = Sequence[int] | npt.NDArray[np.int64]

SUM_BITS = 48
SUM_MASK = (1 << SUM_BITS) - 1

MASK = (1 << 64) - 1
_TEXT, _OFFSET, _LENGTH = 0x100000001B3, 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F  # odd: no bit of a column is lost
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # the finalizer of splitmix64
_NEWLINE = 10
_ROWS_AT_ONCE = 1 << 16  # that many numbers stay in the processor's cache


def row_crc(*values: int | str | bytes | None) -> int:
    """CRC-32C of a row: each value as text behind ``=``, nothing for NULL, joined by zero bytes."""
    parts = [b"" if v is None else b"=" + (v if isinstance(v, bytes) else str(v).encode()) for v in values]
    return int(google_crc32c.value(b"\0".join(parts)))


def _mix(number: int) -> int:
    number = ((number ^ number >> 30) * _FIRST) & MASK
    number = ((number ^ number >> 27) * _SECOND) & MASK
    return number ^ number >> 31


def location_factor(location_id: int | None) -> int:
    """The odd number by which the hashes of references to a location are multiplied; None for deleted chunks."""
    return 2 * _mix(location_id or 0) + 1 & MASK


def extent_hash(chunk: str, offset: int, length: int) -> int:
    """The part of `ref_hash` that does not depend on the location."""
    text = 0
    for byte in chunk.encode():
        text = (text * _TEXT + byte) & MASK
    return _mix((text + offset * _OFFSET + length * _LENGTH) & MASK)


def ref_hash(chunk: str, location_id: int | None, offset: int, length: int) -> int:
    """What one row of ``chunk_ref`` adds to ``change.refs_sum``."""
    return extent_hash(chunk, offset, length) * location_factor(location_id) & SUM_MASK


def sum_refs(chunks: Sequence[str], location_ids: Ints, offsets: Ints, lengths: Ints) -> int:
    """The sum of `ref_hash` over aligned columns; location 0 stands for a deleted chunk."""
    hashes = hash_extents(chunks, offsets, lengths) * location_factors(location_ids)
    return int(hashes.sum(dtype=np.uint64)) & SUM_MASK


def location_factors(location_ids: Ints) -> U64:
    """`location_factor` of a column."""
    return _mix_all(_u64(location_ids)) * np.uint64(2) + np.uint64(1)


def hash_extents(chunks: Sequence[str], offsets: Ints, lengths: Ints) -> U64:
    """`extent_hash` of columns."""
    found = np.empty(len(chunks), np.uint64)
    offset, length = _u64(offsets), _u64(lengths)
    for start in range(0, len(chunks), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        text = _hash_texts(chunks[part])
        text += offset[part] * np.uint64(_OFFSET)
        text += length[part] * np.uint64(_LENGTH)
        found[part] = _mix_all(text)
    return found


def _hash_texts(texts: Sequence[str]) -> U64:
    data = np.frombuffer(("\n".join(texts) + "\n").encode(), np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts
    found = np.zeros(len(texts), np.uint64)
    shortest = int(sizes.min(initial=0 if not len(sizes) else int(sizes[0])))
    for place in range(int(sizes.max(initial=0))):
        if place < shortest:  # every text has a character here
            found *= np.uint64(_TEXT)
            found += data[starts + place]
        else:
            rows = np.flatnonzero(sizes > place)
            found[rows] = found[rows] * np.uint64(_TEXT) + data[starts[rows] + place]
    return found


def _mix_all(numbers: U64) -> U64:
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(_FIRST)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(_SECOND)
    return numbers ^ numbers >> np.uint64(31)


def _u64(column: Ints) -> U64:
    if isinstance(column, np.ndarray):
        return column.astype(np.int64, copy=False).view(np.uint64)
    return np.fromiter(column, np.int64, len(column)).view(np.uint64)
