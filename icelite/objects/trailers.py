"""The checksum behind each chunk in a native object.

An object may be copied by anybody, so what tells a damaged chunk travels with its bytes. The trailer belongs to no
chunk: references, their lengths and ranges do not count it.
"""

from __future__ import annotations

import google_crc32c

from icelite.errors import ErrorKind, FormatError

TRAILER_BYTES = 4


def trailer(data: bytes) -> bytes:
    """What follows a chunk in its object: the CRC-32C of its bytes, little-endian."""
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
