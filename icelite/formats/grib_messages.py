"""The fields of a GRIB file, editions 1 and 2: where each is, and its bytes as a message of its own.

A message of edition 2 may hold several fields, by repeating its sections 2 to 7, 3 to 7 or 4 to 7. What is between the
messages is passed over. Nothing is decoded here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from icelite.formats.source import SourceFile

_START, _END = b"GRIB", b"7777"
_HAS_GRID, _HAS_BITMAP = 0x80, 0x40  # flags of edition 1
_LARGE, _LARGE_UNIT = 0x800000, 120  # a message of edition 1 of more than 8 MiB counts in units, as ECMWF writes it
_PREVIOUS_BITMAP = 254
_SEARCHED = 1 << 16


@dataclass(frozen=True, slots=True)
class FieldExtent:
    """The bytes of one field.

    Attributes
    ----------
    offset, length
        Of its message, bytes.
    number
        Which of the message's fields, from 0.
    edition
        1 or 2.
    alone
        Whether it is the only one in its message.
    """

    offset: int
    length: int
    number: int
    edition: int
    alone: bool


@dataclass(frozen=True, slots=True)
class FieldBytes:
    """A field as a message of its own, and the sections that say what it is.

    Attributes
    ----------
    product
        The sections about parameter, level and time; equal for a field that is there twice.
    grid
        The section about the grid, empty if it has none.
    """

    message: bytes
    product: bytes
    grid: bytes


def read_fields(source: SourceFile) -> Iterator[tuple[FieldExtent, FieldBytes | str]]:
    """The fields of a file in their order; of a message that is damaged, what is wrong with it.

    Raises
    ------
    StorageError
        ``unreadable-source`` for a file that ends within a message.
    """
    with source.open() as stream:
        size = stream.seek(0, os.SEEK_END)
        at = 0
        while (found := _find(stream, at)) is not None:
            at = found
            head = _read(stream, at, 16)
            edition = head[7] if len(head) == 16 else 0
            if edition not in (1, 2):
                at += len(_START)
                continue
            length = int.from_bytes(head[8:16], "big") if edition == 2 else _length_of_first_edition(stream, at, head)
            if at + length > size:
                raise source.unreadable(f"its GRIB message at byte {at} is damaged or cut short")
            parts = _try_to_split(_read(stream, at, length))
            if isinstance(parts, str):
                yield FieldExtent(at, length, 0, edition, alone=True), parts
                at += len(_START)
                continue
            for number, part in enumerate(parts):
                yield FieldExtent(at, length, number, edition, len(parts) == 1), part
            at += length


def _try_to_split(message: bytes) -> list[FieldBytes] | str:
    if len(message) < 16 or not message.endswith(_END):
        return "its message does not end as it should"
    try:
        return split_message(message)
    except ValueError as error:
        return str(error)


def _find(stream: BinaryIO, at: int) -> int | None:
    """Where the next message may begin."""
    size = len(_START)
    while len(data := _read(stream, at, size)) >= len(_START):
        found = data.find(_START)
        if found >= 0:
            return at + found
        at += len(data) - len(_START) + 1
        size = _SEARCHED
    return None


def _read(stream: BinaryIO, at: int, size: int) -> bytes:
    stream.seek(at)
    return stream.read(size)


def _length_of_first_edition(stream: BinaryIO, at: int, head: bytes) -> int:
    length = int.from_bytes(head[4:7], "big")
    if not length & _LARGE:
        return length
    flags = _read(stream, at + 15, 1)[0]
    data = at + 8
    for present in (True, bool(flags & _HAS_GRID), bool(flags & _HAS_BITMAP)):
        data += int.from_bytes(_read(stream, data, 3), "big") if present else 0
    excess = int.from_bytes(_read(stream, data, 3), "big")
    length = (length & (_LARGE - 1)) * _LARGE_UNIT
    return length - excess + 4 if excess < _LARGE_UNIT else length


def split_message(message: bytes) -> list[FieldBytes]:
    """The fields of one message.

    Raises
    ------
    ValueError
        Its sections do not fit into it, or come in an order that the standard does not have.
    """
    if message[7] == 1:
        return [_field_of_first_edition(message)]
    sections: dict[int, bytes] = {}
    bitmap: bytes | None = None
    fields: list[dict[int, bytes]] = []
    at = 16
    while message[at : at + 4] != _END or at < len(message) - 4:
        length, number = int.from_bytes(message[at : at + 4], "big"), message[at + 4] if at + 5 <= len(message) else 0
        if length < 5 or at + length > len(message) - 4 or not 1 <= number <= 7:
            raise ValueError(f"its section at byte {at} does not fit")
        sections[number] = message[at : at + length]
        if number == 6:
            bitmap = sections[6] = _bitmap(sections[6], bitmap)
        if number == 7:
            if not sections.keys() >= {1, 3, 4, 5, 6}:
                raise ValueError("values come before their description")
            fields.append(dict(sections))
        at += length
    if not fields:
        raise ValueError("it has no values")
    if len(fields) == 1:
        return [FieldBytes(message, *_described(fields[0]))]
    return [FieldBytes(_assemble(message, each), *_described(each)) for each in fields]


def _bitmap(section: bytes, before: bytes | None) -> bytes:
    if len(section) < 6 or section[5] != _PREVIOUS_BITMAP:
        return section
    if before is None:
        raise ValueError("it repeats a bitmap that is not there")
    return before


def _described(sections: dict[int, bytes]) -> tuple[bytes, bytes]:
    return sections[1] + sections.get(2, b"") + sections[4], sections[3]


def _assemble(message: bytes, sections: dict[int, bytes]) -> bytes:
    body = b"".join(sections[number] for number in sorted(sections)) + _END
    return message[:8] + (16 + len(body)).to_bytes(8, "big") + body


def _field_of_first_edition(message: bytes) -> FieldBytes:
    end = 8 + int.from_bytes(message[8:11], "big")
    if end > len(message) or end < 8 + 28:
        raise ValueError("its first section does not fit")
    flags = message[15]
    length = int.from_bytes(message[end : end + 3], "big") if flags & _HAS_GRID else 0
    if end + length > len(message):
        raise ValueError("its section about the grid does not fit")
    return FieldBytes(message, message[8:end], message[end : end + length])


def read_field(stream: BinaryIO, offset: int, length: int, number: int) -> bytes:
    """One field as a message of its own."""
    return split_message(_read(stream, offset, length))[number].message
