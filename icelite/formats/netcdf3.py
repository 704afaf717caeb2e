"""netCDF-3 (CDF-1, CDF-2 and CDF-5): the header says where each variable begins; a record is a chunk.

Written by itself because VirtualiZarr's parser exists from 2.8 only, and refuses variables whose ``_FillValue`` has
another type than they have; kerchunk's, which older ones use, reads packed values wrongly.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from icelite.errors import ErrorKind, StorageError
from icelite.formats.attributes import as_text, json_attributes, packing_attributes
from icelite.formats.parsed import ParsedGroup, build_array, no_group
from icelite.formats.source import SourceFile
from icelite.types import SourceStamp

_TYPES = {1: "i1", 2: "S1", 3: ">i2", 4: ">i4", 5: ">f4", 6: ">f8"}
_TYPES |= {7: "u1", 8: ">u2", 9: ">u4", 10: ">i8", 11: ">u8"}  # CDF-5
_DIMENSIONS, _VARIABLES, _ATTRIBUTES = 10, 11, 12
# What netCDF fills a variable with that was not written.
_FILLS: dict[str, Any] = {"i1": -127, "S1": b"\0", "i2": -32767, "i4": -2147483647, "f4": 9.969209968386869e36}
_FILLS |= {"f8": 9.969209968386869e36, "u1": 255, "u2": 65535, "u4": 4294967295}
_FILLS |= {"i8": -9223372036854775806, "u8": 18446744073709551614}


@dataclass(frozen=True, slots=True)
class _Variable:
    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]  # as in the header: the record dimension has length 0
    attributes: dict[str, Any]
    dtype: np.dtype[Any]
    begin: int

    @property
    def is_record(self) -> bool:
        return self.shape[:1] == (0,)

    @property
    def part_bytes(self) -> int:
        """Bytes of the whole variable, or of one record of it."""
        return math.prod(self.shape[self.is_record :]) * self.dtype.itemsize


@dataclass(slots=True)
class _Header:
    records: int | None  # None: written as a stream, so that the size of the file says it
    dims: dict[str, int] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    variables: list[_Variable] = field(default_factory=list)

    @property
    def record_bytes(self) -> int:
        """From one record to the next: every part is padded to four bytes, unless there is just one."""
        parts = [variable.part_bytes for variable in self.variables if variable.is_record]
        return parts[0] if len(parts) == 1 else sum(size + -size % 4 for size in parts)

    def count_records(self, file_bytes: int) -> int:
        """Records that the header says, or that fit into the file."""
        begins = [variable.begin for variable in self.variables if variable.is_record]
        if self.records is not None or not begins or not self.record_bytes:
            return self.records or 0
        return max(0, file_bytes - min(begins)) // self.record_bytes


def parse(
    source: SourceFile, stamp: SourceStamp, group: str, dropped: Collection[str], whole_tree: bool
) -> ParsedGroup:
    """Parse the one group that the file has.

    Raises
    ------
    StorageError
        ``unreadable-source`` for a header that is damaged, or a file that is shorter than it says.
    """
    if group:
        raise no_group(source, group, ())
    with source.open() as stream:
        try:
            header = read_header(stream)
        except (struct.error, LookupError, ValueError) as error:
            raise source.unreadable(f"its netCDF-3 header is damaged or cut short ({error})") from error
        file_bytes = stream.seek(0, 2)
    records = header.count_records(file_bytes)
    attributes = json_attributes(header.attributes)
    coordinates = tuple(str(attributes.pop("coordinates", "")).split())
    parsed = ParsedGroup(attributes=attributes, coordinates=coordinates)
    for variable in header.variables:
        if variable.name not in dropped:
            _check_size(source, variable, header, records, file_bytes)
            parsed.packing[variable.name] = packing_attributes(variable.attributes)
            parsed.arrays[variable.name] = _reference(source, variable, header, records)
    return parsed


def _check_size(source: SourceFile, variable: _Variable, header: _Header, records: int, file_bytes: int) -> None:
    end = variable.begin + variable.part_bytes
    if variable.is_record:
        end = end + (records - 1) * header.record_bytes if records else 0
    if end > file_bytes:
        raise StorageError(
            f"source {source.url!r} is cut short: its variable {variable.name!r} ends at byte {end}, and the file has"
            f" {file_bytes}",
            ErrorKind.UNREADABLE_SOURCE,
        )


def _reference(source: SourceFile, variable: _Variable, header: _Header, records: int) -> Any:
    shape = chunks = variable.shape
    offsets = np.full((1,) * len(shape), variable.begin)
    if variable.is_record:
        shape, chunks = (records, *shape[1:]), (1, *shape[1:])
        offsets = variable.begin + np.arange(records) * header.record_bytes
        offsets = offsets.reshape(-1, *(1 for _ in shape[1:]))
    return build_array(
        url=source.url,
        shape=shape,
        chunks=chunks,
        dtype=variable.dtype,
        stored=variable.dtype,
        offsets=offsets,
        lengths=np.full_like(offsets, variable.part_bytes),
        dims=variable.dims,
        attributes=json_attributes(variable.attributes, variable.dtype),
        fill_value=_FILLS[variable.dtype.str[1:]],
    )


def read_header(stream: BinaryIO) -> _Header:
    """The header of a file, whose first byte is the stream's next.

    Raises
    ------
    ValueError, LookupError
        It is damaged or cut short.
    """
    reader = _HeaderReader(stream, stream.read(4)[3])
    records = reader.number()
    header = _Header(None if records < 0 else records)
    for _ in range(reader.count(_DIMENSIONS)):
        name = reader.name()
        header.dims[name] = reader.number()
    header.attributes = reader.attributes()
    names = list(header.dims)
    for _ in range(reader.count(_VARIABLES)):
        name = reader.name()
        dims = tuple(names[reader.number()] for _ in range(reader.number()))
        attributes = reader.attributes()
        dtype = np.dtype(_TYPES[reader.number(4)])
        reader.number()  # its size, which overflows for large ones
        begin = reader.number(4 if reader.version == 1 else 8)
        shape = tuple(header.dims[dim] for dim in dims)
        header.variables.append(_Variable(name, dims, shape, attributes, dtype, begin))
    return header


class _HeaderReader:
    """Reads the items of a header, one after another; in CDF-5 counts have eight bytes."""

    def __init__(self, stream: BinaryIO, version: int) -> None:
        self._stream = stream
        self.version = version

    def _take(self, length: int) -> bytes:
        data = self._stream.read(length + -length % 4)
        if length < 0 or len(data) < length:
            raise ValueError(f"{length} bytes are expected after byte {self._stream.tell() - len(data)}")
        return data[:length]

    def number(self, width: int | None = None) -> int:
        width = width or (8 if self.version == 5 else 4)
        return int.from_bytes(self._take(width), "big", signed=True)

    def name(self) -> str:
        return as_text(self._take(self.number()).partition(b"\0")[0])  # as netCDF-C, which ends names there

    def count(self, tag: int) -> int:
        found, count = self.number(4), self.number()
        if found != tag and (found, count) != (0, 0):
            raise ValueError(f"tag {found} where {tag} is expected")
        return count

    def attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(self.count(_ATTRIBUTES)):
            name = self.name()
            dtype = np.dtype(_TYPES[self.number(4)])
            data = self._take(self.number() * dtype.itemsize)
            if dtype.kind == "S":
                found[name] = data.rstrip(b"\0")
            else:
                values = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
                found[name] = values[0] if values.size == 1 else values
        return found
