"""Objects as bytes: their names, which chunks share one, and the checksum behind each chunk.

An object may be copied by anybody, so what tells a damaged chunk travels with its bytes. The trailer belongs to no
chunk: references, their lengths and ranges do not count it.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import google_crc32c

from icelite.errors import ErrorKind, FormatError, shown
from icelite.types import CROCKFORD, ChunkType, Location

KEY = re.compile(f"[{CROCKFORD}]{{2}}/[{CROCKFORD}]{{26}}")
FOLDERS = tuple(first + second for first in CROCKFORD for second in CROCKFORD)
TRAILER_BYTES = 4

_K = TypeVar("_K")


def new_key(milliseconds: int | None = None) -> str:
    """The key of an object written now, or at a time since 1970."""
    number = (time.time_ns() // 1_000_000 if milliseconds is None else milliseconds) << 80 | secrets.randbits(80)
    name = "".join(CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))
    return f"{name[-2:]}/{name}"


def key_time(key: str) -> int:
    """When the object of a key was written, milliseconds since 1970.

    Raises
    ------
    FormatError
        ``corrupt`` for what is no key.
    """
    check_key(key)
    number = 0
    for character in key[3:13]:
        number = number << 5 | CROCKFORD.index(character)
    return number


def check_key(key: str) -> str:
    """The key, if it is one that `new_key` could have made.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    if not KEY.fullmatch(key) or key[:2] != key[-2:]:
        raise FormatError(f"the catalog names a native object {shown(key)}, which is no key of one", ErrorKind.CORRUPT)
    return key


def pack(chunks: Iterable[tuple[_K, bytes]], target: int) -> Iterator[list[tuple[_K, bytes]]]:
    """Group chunks into objects of at least ``target`` bytes, the last one perhaps less; one of that size is alone."""
    group: list[tuple[_K, bytes]] = []
    size = 0
    for name, data in chunks:
        if len(data) >= target:
            yield [(name, data)]
            continue
        group.append((name, data))
        size += len(data)
        if size >= target:
            yield group
            group, size = [], 0
    if group:
        yield group


def virtual_location(location: Location, root: str) -> Location:
    """The location of an object's bytes under ``root``, as a virtual one; raises as `check_key`."""
    return replace(location, kind=ChunkType.virtual, path=root + check_key(location.path), container=None)


def trailer(data: bytes) -> bytes:
    """The end of a chunk in its object: the CRC-32C of its bytes, little-endian."""
    return int(google_crc32c.value(data)).to_bytes(TRAILER_BYTES, "little")


def check_trailer(data: bytes | memoryview, found: bytes | memoryview, chunk: str) -> None:
    """Refuse the bytes of a chunk that are not those that were written.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    if google_crc32c.value(bytes(data)) != int.from_bytes(found, "little"):
        raise FormatError(
            f"the bytes of chunk {chunk} in its native object are damaged (wrong CRC-32C); restore it from a copy",
            ErrorKind.CORRUPT,
        )
