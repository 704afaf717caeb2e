"""Icechunk's metadata files: a header of 39 bytes and a zstd-compressed flatbuffer, as its specification says.

What is read here Icechunk's own API does not tell (checksums of references), what is written it does not set (ids and
times of snapshots). Names of tables and fields are those of the specification (https://icechunk.io, version 2).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import flatbuffers
import zstandard

from icelite.errors import ErrorKind, FormatError
from icelite.types.snapshots import CROCKFORD

MAGIC = "ICE🧊CHUNK".encode()
HEADER_BYTES = 39
COMPRESSION_AT = 38
ID_BYTES = 12

_ZSTD_LEVEL = 3

# Field name and type, in the order that gives them their slots. A type in capitals is a table; id is a struct of 12
# bytes; a union has two slots, of which the first is its number.
TABLES: dict[str, list[tuple[str, str]]] = {
    "Repo": [
        ("spec_version", "u8"),
        ("tags", "[Ref]"),
        ("branches", "[Ref]"),
        ("deleted_tags", "[string]"),
        ("snapshots", "[SnapshotInfo]"),
        ("status", "RepoStatus"),
        ("metadata", "[MetadataItem]"),
        ("latest_updates", "[Update]"),
        ("repo_before_updates", "string"),
        ("config", "bytes"),
        ("enabled_feature_flags", "[u16]"),
        ("disabled_feature_flags", "[u16]"),
        ("extra", "bytes"),
    ],
    "Ref": [("name", "string"), ("snapshot_index", "u32")],
    "SnapshotInfo": [
        ("id", "id"),
        ("parent_offset", "i32"),
        ("flushed_at", "u64"),
        ("message", "string"),
        ("metadata", "[MetadataItem]"),
        ("pruned_ancestor_tx_logs", "skipped"),
    ],
    "MetadataItem": [("name", "string"), ("value", "bytes")],
    "RepoStatus": [("availability", "u8"), ("set_at", "u64"), ("limited_availability_reason", "string")],
    "Update": [
        ("update_type_type", "u8"),
        ("update_type", "union"),
        ("updated_at", "u64"),
        ("backup_path", "string"),
    ],
    "RepoInitializedUpdate": [],
    "NewCommitUpdate": [("branch", "string"), ("new_snap_id", "id")],
    "NewDetachedSnapshotUpdate": [("new_snap_id", "id")],
    # of these two only what is written in place
    "Snapshot": [("id", "id"), ("parent_id", "id"), ("nodes", "skipped"), ("flushed_at", "u64")],
    "TransactionLog": [("id", "id")],
}
UPDATES = {1: "RepoInitializedUpdate", 10: "NewCommitUpdate", 12: "NewDetachedSnapshotUpdate"}
_SCALARS = {"u8": "<B", "u16": "<H", "u32": "<I", "i32": "<i", "u64": "<Q"}
_ADD = {"u8": "PrependUint8Slot", "u32": "PrependUint32Slot", "i32": "PrependInt32Slot", "u64": "PrependUint64Slot"}


def encode_id(data: bytes) -> str:
    """An id of Icechunk's as text: Crockford base-32, with zero bits at the end where they do not fill a character."""
    bits = len(data) * 8
    characters = -(-bits // 5)
    number = int.from_bytes(data) << (characters * 5 - bits)
    return "".join(CROCKFORD[number >> 5 * place & 31] for place in reversed(range(characters)))


def decode_id(text: str, size: int = ID_BYTES) -> bytes | None:
    """The bytes of an id's text; None where the text says more than ``size`` bytes hold."""
    number = 0
    for character in text:
        number = number << 5 | CROCKFORD.index(character)
    spare = len(text) * 5 - size * 8
    return (number >> spare).to_bytes(size) if number & ((1 << spare) - 1) == 0 else None


class MetadataFile:
    """One metadata file: its header, and its flatbuffer as bytes that can be changed in place.

    Raises
    ------
    FormatError
        ``corrupt`` when it is none.
    """

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        self.path = path
        self.header = content[:HEADER_BYTES]
        if len(content) < HEADER_BYTES or not content.startswith(MAGIC):
            raise self.damaged("does not begin like a file of Icechunk's")
        body = content[HEADER_BYTES:]
        if self.header[COMPRESSION_AT] == 1:
            try:
                body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
            except zstandard.ZstdError as error:
                raise self.damaged(str(error)) from error
        self.data = bytearray(body)

    def damaged(self, reason: str) -> FormatError:
        """The error for a file that is not what it should be."""
        return FormatError(f"{self.path} {reason}", ErrorKind.CORRUPT)

    def write(self, path: Path, data: bytes | bytearray | None = None) -> None:
        """Write it, or another flatbuffer with the same header."""
        body = bytes(self.data if data is None else data)
        if self.header[COMPRESSION_AT] == 1:
            body = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(body)
        path.write_bytes(self.header + body)

    def decode(self, table: str) -> dict[str, Any]:
        """The root table with all below it; fields that are not there are left out.

        Raises
        ------
        FormatError
            ``corrupt``.
        """
        try:
            return _decode(self.data, _pointer(self.data, 0), table)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise self.damaged(f"is damaged: {error}") from error

    def put(self, table: str, name: str, value: bytes | int) -> None:
        """Change a field of the root table that is there, in place."""
        slot, kind = next((i, kind) for i, (field, kind) in enumerate(TABLES[table]) if field == name)
        place = _field(self.data, _pointer(self.data, 0), slot)
        if place is None:
            raise self.damaged(f"has no {name}")
        new = value if isinstance(value, bytes) else struct.pack(_SCALARS[kind], value)
        self.data[place : place + len(new)] = new


def _pointer(data: bytearray, place: int) -> int:
    return int(place + struct.unpack_from("<I", data, place)[0])


def _field(data: bytearray, table: int, slot: int) -> int | None:
    """Where a field of a table is, or None."""
    names = table - struct.unpack_from("<i", data, table)[0]
    entry = 4 + 2 * slot
    if entry >= struct.unpack_from("<H", data, names)[0]:
        return None
    offset = struct.unpack_from("<H", data, names + entry)[0]
    return table + offset if offset else None


def _decode(data: bytearray, table: int, name: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for slot, (field, kind) in enumerate(TABLES[name]):
        place = _field(data, table, slot)
        if place is not None and kind not in ("skipped", "union"):
            values[field] = _decode_value(data, place, kind)
    return values


def _decode_value(data: bytearray, place: int, kind: str) -> Any:
    if kind in _SCALARS:
        return struct.unpack_from(_SCALARS[kind], data, place)[0]
    if kind == "id":
        return bytes(data[place : place + ID_BYTES])
    start = _pointer(data, place)
    if kind in TABLES:
        return _decode(data, start, kind)
    count = struct.unpack_from("<I", data, start)[0]
    if kind in ("bytes", "string"):
        content = bytes(data[start + 4 : start + 4 + count])
        return content if kind == "bytes" else content.decode()
    item = kind.strip("[]")
    size = struct.calcsize(_SCALARS[item]) if item in _SCALARS else 4
    return [_decode_value(data, start + 4 + size * i, item) for i in range(count)]


def encode(table: str, values: dict[str, Any]) -> bytes:
    """A flatbuffer with a table of these values as its root."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(_encode(builder, table, values))
    return bytes(builder.Output())


def _encode(builder: Any, table: str, values: dict[str, Any]) -> int:
    fields = [(i, *field) for i, field in enumerate(TABLES[table]) if values.get(field[0]) is not None]
    placed = {  # all that a table points to goes before it
        i: _encode_pointed(builder, kind, values[name], values) for i, name, kind in fields if kind not in (*_ADD, "id")
    }
    builder.StartObject(len(TABLES[table]))
    for i, name, kind in fields:
        if kind == "id":
            builder.Prep(1, ID_BYTES)
            for byte in reversed(values[name]):
                builder.PrependByte(byte)
            builder.PrependStructSlot(i, builder.Offset(), 0)
        elif kind in _ADD:
            getattr(builder, _ADD[kind])(i, values[name], 0)
        else:
            builder.PrependUOffsetTRelativeSlot(i, placed[i], 0)
    return int(builder.EndObject())


def _encode_pointed(builder: Any, kind: str, value: Any, values: dict[str, Any]) -> int:
    if kind == "union":
        return _encode(builder, UPDATES[values["update_type_type"]], value)
    if kind in TABLES:
        return _encode(builder, kind, value)
    if kind == "string":
        return int(builder.CreateString(value))
    if kind == "bytes":
        return int(builder.CreateByteVector(value))
    item = kind.strip("[]")
    if item == "u16":
        builder.StartVector(2, len(value), 2)
        for number in reversed(value):
            builder.PrependUint16(number)
        return int(builder.EndVector())
    places = [_encode_pointed(builder, item, one, {}) for one in value]
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    return int(builder.EndVector())
