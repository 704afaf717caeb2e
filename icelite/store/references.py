"""Writing virtual references: validated all together, then staged all together, or none.

Icechunk skips a reference it cannot store and returns its index; here it is an `InvalidInputError` that lists the
references at fault, and nothing is written: data that silently reads as fill values is worse than an error.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, product
from typing import Any

import numpy as np
import numpy.typing as npt

from icelite.catalog.database import Transaction
from icelite.catalog.operations import to_microseconds
from icelite.change_set import ChangeSet
from icelite.errors import ErrorKind, IceliteError, InvalidInputError
from icelite.metadata import ArrayInfo
from icelite.types import SourceStamp, VirtualChunkSpec
from icelite.virtual import VirtualAccess

ROWS_AT_ONCE = 100_000  # references turned into Python objects at a time
SHOWN = 5  # faults that an error message lists
MISSING = -1  # id of the location "": no chunk there

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CodedUrls:
    """A column of locations: the different ones, and for each chunk the index of its own, or `MISSING`."""

    urls: Sequence[str]
    codes: Ints

    def __len__(self) -> int:
        return len(self.codes)


Urls = Sequence[str] | npt.NDArray[Any] | CodedUrls


def stamp_of(checksum: object) -> SourceStamp:
    """Icechunk's checksum as a stamp: an ETag, or a time after which the source must not have changed.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref`` for a datetime without a time zone.
    """
    if checksum is None:
        return SourceStamp()
    if isinstance(checksum, str):
        return SourceStamp(etag=checksum.strip('"'))
    if not isinstance(checksum, datetime) or checksum.tzinfo is None:
        raise InvalidInputError(
            f"checksum {checksum!r} is not an ETag (str) or a datetime with a time zone", ErrorKind.INVALID_VIRTUAL_REF
        )
    return SourceStamp(modified_at=to_microseconds(checksum) * 1000)


class ReferenceWriter:
    """Validates and stages the virtual references of one call."""

    def __init__(self, changes: ChangeSet, access: VirtualAccess, validate_containers: bool) -> None:
        self._changes = changes
        self._access = access
        self._validate = validate_containers
        self._interned: dict[tuple[str, SourceStamp], int] = {}  # a file is looked at once for all its chunks

    def intern(self, url: str, stamp: SourceStamp) -> int:
        """The staged id of a location, which this process may from now on read if it is a local file."""
        known = self._interned.get((url, stamp))
        if known is None:
            location = self._access.locate(url, stamp=stamp, validate_container=self._validate)
            self._access.allow(location)
            known = self._interned[url, stamp] = self._changes.chunks.intern(location)
        return known

    def write_specs(self, path: str, node_id: int, info: ArrayInfo, specs: Sequence[VirtualChunkSpec]) -> None:
        """Stage references given one by one."""
        faults: dict[str, IceliteError] = {}
        rows: list[tuple[str, int, int, int]] = []
        for spec in specs:
            try:
                rows.append(self._check_spec(path, info, spec))
            except IceliteError as error:
                faults[f"{spec.index}: {error.message}"] = error
        if faults:
            raise _rejected(path, list(faults), len(specs), _common_kind(faults.values()))
        if rows:
            with self._changes.catalog.stage() as txn:
                chunks, ids, offsets, lengths = zip(*rows, strict=True)
                self._changes.chunks.set_refs(node_id, chunks, ids, offsets, lengths, txn)

    def _check_spec(self, path: str, info: ArrayInfo, spec: VirtualChunkSpec) -> tuple[str, int, int, int]:
        if len(spec.index) != info.keys.ndim or any(index < 0 for index in spec.index):
            raise InvalidInputError(f"index does not fit {info.keys.ndim} dimensions", ErrorKind.INVALID_CHUNK_INDEX)
        chunk = "/".join(str(operator.index(number)) for number in spec.index)
        info.check_position(chunk, path)
        check_extent(spec.location, spec.offset, spec.length)
        checksum = spec.etag_checksum or spec.last_updated_at_checksum
        return chunk, self.intern(spec.location, stamp_of(checksum)), spec.offset, spec.length

    def write_arrays(
        self,
        txn: Transaction,
        path: str,
        node_id: int,
        info: ArrayInfo,
        grid: tuple[int, ...],
        start: tuple[int, ...],
        locations: Urls,
        offsets: Ints,
        lengths: Ints,
        stamps: Mapping[str, SourceStamp],
        default: SourceStamp,
    ) -> None:
        """Stage the references of a block of the grid, given in C order; ``""`` is a missing chunk.

        Parameters
        ----------
        txn
            Of `Catalog.stage`, which may take several arrays.
        """
        _check_block(path, info, grid, start)
        ids = self._intern_all(path, locations, stamps, default)
        present = ids != MISSING
        _check_extents(path, grid, present, offsets, lengths)
        names = [sorted(map(str, range(first, first + size))) for first, size in zip(start, grid, strict=True)]
        columns = [ids, offsets, lengths]
        if any(size > 1 and first + size > 10 for first, size in zip(start, grid, strict=True)):  # '10' is before '9'
            orders = [np.argsort(list(map(str, range(first, first + n)))) for first, n in zip(start, grid, strict=True)]
            columns = [_in_key_order(column, grid, orders) for column in columns]
        for chunks, (some_ids, some_offsets, some_lengths) in _batches(map("/".join, product(*names)), columns):
            self._changes.chunks.set_refs(node_id, chunks, some_ids, some_offsets, some_lengths, txn)

    def _intern_all(self, path: str, locations: Urls, stamps: Mapping[str, SourceStamp], default: SourceStamp) -> Ints:
        if isinstance(locations, CodedUrls):
            ids = self._intern_urls(path, locations.urls, len(locations), stamps, default)
            return np.append(np.fromiter(map(ids.__getitem__, locations.urls), np.int64), MISSING)[locations.codes]
        urls: Sequence[str] = locations.tolist() if isinstance(locations, np.ndarray) else locations
        ids = self._intern_urls(path, dict.fromkeys(urls), len(urls), stamps, default)
        return np.fromiter(map(ids.__getitem__, urls), dtype=np.int64, count=len(urls))

    def _intern_urls(
        self, path: str, urls: Iterable[str], total: int, stamps: Mapping[str, SourceStamp], default: SourceStamp
    ) -> dict[str, int]:
        ids: dict[str, int] = {}
        faults: dict[str, IceliteError] = {}
        for url in urls:
            if url == "":
                ids[url] = MISSING
                continue
            try:
                ids[url] = self.intern(url, stamps.get(url, default))
            except IceliteError as error:
                faults[error.message] = error
        if faults:
            raise _rejected(path, list(faults), total, _common_kind(faults.values()))
        return ids


def _in_key_order(column: Ints, grid: tuple[int, ...], orders: list[Any]) -> Ints:
    """A C-order column in the order of the chunks' names as text, which is the order of the table."""
    return column if not grid else column.reshape(grid)[np.ix_(*orders)].ravel()


def _batches(names: Iterable[str], columns: list[Ints]) -> Iterator[tuple[list[str], list[Ints]]]:
    iterator = iter(names)
    for start in range(0, len(columns[0]), ROWS_AT_ONCE):
        chunks = list(islice(iterator, ROWS_AT_ONCE))
        block = [column[start : start + ROWS_AT_ONCE] for column in columns]
        keep = block[0] != MISSING
        if not keep.all():
            chunks = [chunk for chunk, kept in zip(chunks, keep.tolist(), strict=True) if kept]
            block = [column[keep] for column in block]
        yield chunks, block


def check_extent(url: str, offset: int, length: int) -> None:
    """Refuse an extent that cannot be one.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``, ``zero-length-chunk``.
    """
    if length == 0:
        raise InvalidInputError(f"reference to {url} has length 0", ErrorKind.ZERO_LENGTH_CHUNK)
    if offset < 0 or length < 0 or offset + length >= 1 << 63:
        raise InvalidInputError(
            f"reference to {url} has offset {offset} and length {length}; expected bytes from 0 up",
            ErrorKind.INVALID_VIRTUAL_REF,
        )


def _check_block(path: str, info: ArrayInfo, grid: tuple[int, ...], start: tuple[int, ...]) -> None:
    if len(grid) != info.keys.ndim or len(start) != info.keys.ndim or min((*grid, *start, 0)) < 0:
        raise InvalidInputError(
            f"a block of {grid} chunks at {start} does not fit array /{path} with {info.keys.ndim} dimensions",
            ErrorKind.INVALID_CHUNK_INDEX,
        )
    if all(grid) and grid:
        last = (first + size - 1 for first, size in zip(start, grid, strict=True))
        info.check_position("/".join(map(str, last)), path)


def _check_extents(path: str, grid: tuple[int, ...], present: Any, offsets: Ints, lengths: Ints) -> None:
    bad = present & ((lengths <= 0) | (offsets < 0) | (offsets > np.iinfo(np.int64).max - lengths))
    if bad.any():
        where = np.flatnonzero(bad)
        faults = [
            f"{np.unravel_index(i, grid) if grid else ()}: offset {offsets[i]}, length {lengths[i]}"
            for i in where[:SHOWN].tolist()
        ]
        raise _rejected(path, faults, len(offsets), ErrorKind.ZERO_LENGTH_CHUNK, len(where))


def _common_kind(errors: Iterable[IceliteError]) -> ErrorKind:
    kinds = {error.kind for error in errors}
    return kinds.pop() if len(kinds) == 1 else ErrorKind.INVALID_VIRTUAL_REF


def _rejected(path: str, faults: list[str], total: int, kind: ErrorKind, count: int = 0) -> InvalidInputError:
    shown = "; ".join(faults[:SHOWN])
    return InvalidInputError(
        f"{count or len(faults)} faults in {total} references for array /{path}, none was written: {shown}", kind
    )


def as_int64(values: Any, name: str) -> Ints:
    """Offsets or lengths as int64, flat.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref`` when they are not integers.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"{name} have dtype {array.dtype}; expected integers (uint64)", ErrorKind.INVALID_VIRTUAL_REF
        )
    return array.ravel().astype(np.int64, copy=False)
