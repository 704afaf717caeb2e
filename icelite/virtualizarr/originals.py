"""The packing attributes of referenced files, with their types: of HDF5 (netCDF-4) and netCDF-3 files.

Only headers are read, through the same gates as chunks.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from icelite.errors import ErrorKind, StorageError
from icelite.formats.packing import PACKING_KEYS, Named

if TYPE_CHECKING:
    from icelite.types import SourceStamp
    from icelite.virtual import Source, VirtualAccess

    _Stream: TypeAlias = "io.BufferedReader[SourceFile]"

_BLOCK_BYTES = 262_144  # read at a time: HDF5 asks for a few hundred bytes here and there
_BLOCKS_KEPT = 64
_WHAT = "types of scale_factor and add_offset"  # in place of a chunk's key in messages
_NETCDF3_TYPES = {1: "i1", 2: "S1", 3: ">i2", 4: ">i4", 5: ">f4", 6: ">f8", 7: "u1", 8: ">u2", 9: ">u4", 10: ">i8"}
_NETCDF3_TYPES[11] = ">u8"


def read_originals(access: VirtualAccess, url: str, stamp: SourceStamp | None) -> list[Named]:
    """The packed variables of the file at ``url``; none when its format has no types that JSON loses.

    Parameters
    ----------
    stamp
        What the file looks like, if that is known.

    Raises
    ------
    InvalidInputError, StorageError
        As `VirtualAccess.open` and `Source.read`, for a file that may not or cannot be read.
    """
    stamp = stamp or access.stamp(url)
    location = access.locate(url, stamp=stamp, validate_container=False)
    access.allow(location)  # as writing the reference will
    source = access.open(location, _WHAT)
    if stamp.size is None:
        raise StorageError(f"{url!r} is not there", ErrorKind.VIRTUAL_CHUNK_FETCH)
    stream: _Stream = io.BufferedReader(SourceFile(source, stamp.size))
    try:
        return list((_read_netcdf3 if stream.peek(3)[:3] == b"CDF" else _read_hdf5)(stream))
    except (OSError, RuntimeError, ValueError, LookupError, struct.error):
        return []  # another format, or not one that is whole; what its parser read of it stays as it is


class SourceFile(io.RawIOBase):
    """A source as a file that can be read and sought."""

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._size = size
        self._at = 0
        self._block = lru_cache(_BLOCKS_KEPT)(self._read_block)

    def _read_block(self, number: int) -> bytes:
        start = number * _BLOCK_BYTES
        return self._source.read(start, min(_BLOCK_BYTES, self._size - start), _WHAT)

    def readable(self) -> bool:  # noqa: D102  (as in io, also below)
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        if self._at >= self._size:
            return 0
        number, skipped = divmod(self._at, _BLOCK_BYTES)
        data = self._block(number)[skipped : skipped + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _read_hdf5(stream: _Stream) -> Iterator[Named]:
    import h5py

    found: list[Named] = []

    def visit(path: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            packing = {key: np.ravel(node.attrs[key]) for key in PACKING_KEYS if key in node.attrs}
            found.extend(_numbers(path.rpartition("/")[2], packing))

    with h5py.File(stream, "r") as file:
        file.visititems(visit)
    yield from found


def _numbers(name: str, attributes: dict[str, Any]) -> Iterator[Named]:
    numbers = {key: value[0] for key, value in attributes.items() if value.size == 1 and value.dtype.kind in "iuf"}
    if numbers:
        yield name, numbers


def _read_netcdf3(stream: _Stream) -> Iterator[Named]:
    """The variables of a classic file (CDF-1, CDF-2, CDF-5), whose header is one list after another."""
    version = stream.read(4)[3]
    wide = version == 5

    def number(eight_bytes: bool = wide) -> int:
        layout = ">q" if eight_bytes else ">i"
        return int(struct.unpack(layout, stream.read(struct.calcsize(layout)))[0])

    def padded(length: int) -> bytes:
        return stream.read(length + -length % 4)[:length]

    def count() -> int:
        number(False)  # the tag of the list
        return number()

    def attributes() -> dict[str, Any]:
        found = {}
        for _ in range(count()):
            name = padded(number()).decode()
            dtype = np.dtype(_NETCDF3_TYPES[number(False)])
            found[name] = np.frombuffer(padded(number() * dtype.itemsize), dtype)
        return found

    number()  # records
    for _ in range(count()):  # dimensions
        padded(number())
        number()
    attributes()  # of the file
    for _ in range(count()):
        name = padded(number()).decode()
        for _ in range(number()):
            number()
        found = attributes()
        yield from _numbers(name, {key: found[key] for key in PACKING_KEYS if key in found})
        number(False), number(), number(version != 1)  # type, size and where the data begins
