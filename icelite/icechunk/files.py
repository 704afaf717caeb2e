"""Icechunk's metadata files: a header of 39 bytes and a zstd-compressed flatbuffer, as its specification says.

What is read here Icechunk's own API does not tell (checksums of references, the ``vcc://`` names of containers), what
is written it does not set (ids and times of snapshots). Names of tables and fields are those of the specification
(https://icechunk.io, version 2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import flatbuffers
import numpy as np
import numpy.typing as npt
import zstandard

from icelite.budget import MAX_LOCATION_CHARACTERS, over_budget, unpacked_limit
from icelite.errors import ErrorKind, FormatError, IceliteError
from icelite.types import ChunkType
from icelite.types.repository import CROCKFORD

MAGIC = "ICE🧊CHUNK".encode()
HEADER_BYTES = 39
COMPRESSION_AT = 38
ID_BYTES = 12
NODE_ID_BYTES = 8
REFS_AT_ONCE = 100_000

_ZSTD_LEVEL = 3

Bytes: TypeAlias = npt.NDArray[np.uint8]
Offsets: TypeAlias = npt.NDArray[np.int64]  # into the file

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
    # of these only what a reference needs; "fixed" is a struct of another size
    "Manifest": [("id", "id"), ("arrays", "[ArrayManifest]"), ("location_dictionary", "bytes")],
    "ArrayManifest": [("node_id", "fixed"), ("refs", "[ChunkRef]")],
    "ChunkRef": [
        ("index", "[u32]"),
        ("inline", "bytes"),
        ("offset", "u64"),
        ("length", "u64"),
        ("chunk_id", "id"),
        ("location", "string"),
        ("checksum_etag", "string"),
        ("checksum_last_modified", "u32"),
        ("compressed_location", "bytes"),
    ],
}
UPDATES = {1: "RepoInitializedUpdate", 10: "NewCommitUpdate", 12: "NewDetachedSnapshotUpdate"}
_SCALARS = {"u8": "<B", "u16": "<H", "u32": "<I", "i32": "<i", "u64": "<Q"}
_ADD = {"u8": "PrependUint8Slot", "u32": "PrependUint32Slot", "i32": "PrependInt32Slot", "u64": "PrependUint64Slot"}


def encode_id(data: bytes) -> str:
    """An id of Icechunk's as text: Crockford base-32, with zero bits at the end where they do not fill a character."""
    bits = len(data) * 8
    characters = -(-bits // 5)
    number = int.from_bytes(data) << (characters * 5 - bits)
    return "".join(CROCKFORD[number >> 5 * offset & 31] for offset in reversed(range(characters)))


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
            body = self._unpacked(body)
        self.data = bytearray(body)

    def _unpacked(self, body: bytes) -> bytes:
        limit = unpacked_limit(len(body))
        with self.reading():
            unpacked: bytes = zstandard.ZstdDecompressor().stream_reader(body).read(limit + 1)
        if len(unpacked) > limit:
            raise over_budget(str(self.path), f"more than {limit} bytes when unpacked", f"a hundredfold of {len(body)}")
        return unpacked

    def damaged(self, reason: str) -> FormatError:
        """The error for a file that is not what it should be."""
        return FormatError(f"{self.path} {reason}", ErrorKind.CORRUPT)

    def write(self, path: Path, data: bytes | bytearray | None = None) -> None:
        """Write it, or another flatbuffer with the same header."""
        body = bytes(self.data if data is None else data)
        if self.header[COMPRESSION_AT] == 1:
            body = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(body)
        path.write_bytes(self.header + body)

    def root(self, table: str) -> Tables:
        """The root table."""
        data = np.frombuffer(self.data, dtype=np.uint8)
        return Tables(data, table, _gather(data, np.array([0]), np.uint32).astype(np.int64))

    def decode(self, table: str) -> dict[str, Any]:
        """The root table with all below it; fields that are not there are left out.

        Raises
        ------
        FormatError
            ``corrupt``.
        """
        with self.reading():
            return self.root(table).decode()[0]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raise ``corrupt`` for what the reader stumbles over."""
        try:
            yield
        except (IndexError, ValueError, struct.error, zstandard.ZstdError) as error:
            if isinstance(error, IceliteError):
                raise
            raise self.damaged(f"is damaged: {error}") from error

    def put(self, table: str, name: str, value: bytes | int) -> None:
        """Change a field of the root table that is there, in place."""
        root = self.root(table)
        offset = int(root.field(name)[0])
        if not offset:
            raise self.damaged(f"has no {name}")
        new = value if isinstance(value, bytes) else struct.pack(_SCALARS[root.kind_of(name)], value)
        self.data[offset : offset + len(new)] = new


def _gather(data: Bytes, offsets: Offsets, dtype: Any) -> npt.NDArray[Any]:
    """Numbers of one type at offsets into a file."""
    if len(offsets) and int(offsets.min()) < 0:
        raise IndexError("a table begins before the file")
    width = np.dtype(dtype).itemsize
    rows = data[offsets[:, None] + np.arange(width)]
    numbers: npt.NDArray[Any] = np.ascontiguousarray(rows).view(np.dtype(dtype).newbyteorder("<"))[:, 0]
    return numbers


class Tables:
    """Tables of one kind in a flatbuffer, read field by field: all at once, since a manifest has a million of them.

    Flatbuffers puts the fields of such tables at the same distance, so that numpy fetches them like columns.

    Parameters
    ----------
    name
        The kind, of `TABLES`.
    offsets
        Where they begin.
    """

    def __init__(self, data: Bytes, name: str, offsets: Offsets) -> None:
        self._data = data
        self._name = name
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, some: slice | npt.NDArray[np.bool_]) -> Tables:
        return Tables(self._data, self._name, self._offsets[some])

    def kind_of(self, name: str) -> str:
        """The type of a field."""
        return dict(TABLES[self._name])[name]

    def field(self, name: str) -> Offsets:
        """The position of a field in each table; 0 where it is not there."""
        slot = [field for field, _ in TABLES[self._name]].index(name)
        names = self._offsets - _gather(self._data, self._offsets, np.int32).astype(np.int64)
        kinds, which = np.unique(names, return_inverse=True)
        entry = 4 + 2 * slot
        there = entry < _gather(self._data, kinds, np.uint16).astype(np.int64)
        offsets = np.zeros(len(kinds), dtype=np.int64)
        offsets[there] = _gather(self._data, kinds[there] + entry, np.uint16)
        found = offsets[which]
        return np.where(found == 0, 0, self._offsets + found)

    def numbers(self, name: str) -> list[int]:
        """The values of a field of numbers; 0 where it is not there."""
        offsets = self.field(name)
        values = np.zeros(len(offsets), dtype=np.uint64 if self.kind_of(name) == "u64" else np.int64)
        there = offsets != 0
        values[there] = _gather(self._data, offsets[there], _SCALARS[self.kind_of(name)])
        listed: list[int] = values.tolist()
        return listed

    def bytes_at(self, offset: int) -> bytes:
        """The bytes or text that a field points to."""
        start, count = self._vector(offset, 1)
        return self._data[start : start + count].tobytes()

    def fixed_at(self, offset: int, size: int) -> bytes:
        """The bytes that a field is."""
        return self._data[offset : offset + size].tobytes()

    def positions(self, name: str) -> Offsets:
        """A field of small vectors of u32, all equally long: one row for each table."""
        fields = self.field(name)
        starts = fields + _gather(self._data, fields, np.uint32)
        width = int(_gather(self._data, starts[:1], np.uint32)[0]) if len(starts) else 0
        columns = [_gather(self._data, starts + 4 + 4 * axis, np.uint32) for axis in range(width)]
        return np.stack(columns, axis=1).astype(np.int64) if columns else np.empty((len(starts), 0), dtype=np.int64)

    def items(self, name: str) -> Tables:
        """The tables in a field of a single table that is a vector of tables."""
        return self._items(int(self.field(name)[0]), self.kind_of(name))

    def _items(self, offset: int, kind: str) -> Tables:
        start, count = self._vector(offset, 4) if offset else (0, 0)
        offsets = start + 4 * np.arange(count, dtype=np.int64)
        return Tables(self._data, kind.strip("[]"), offsets + _gather(self._data, offsets, np.uint32))

    def _vector(self, offset: int, width: int) -> tuple[int, int]:
        """The position of the first item of a vector, and the number of items."""
        start = offset + int(struct.unpack_from("<I", self._data, offset)[0])
        (count,) = struct.unpack_from("<I", self._data, start)
        if start + 4 + count * width > len(self._data):
            raise IndexError(f"a vector of {count} items reaches past the end of the file")
        return start + 4, count

    def decode(self) -> list[dict[str, Any]]:
        """The tables with all below them; fields that are not there, or that nobody needs, are left out."""
        rows: list[dict[str, Any]] = [{} for _ in self._offsets]
        for name, kind in TABLES[self._name]:
            if kind in ("skipped", "union"):
                continue
            numbers = self.numbers(name) if kind in _SCALARS else None
            for number, offset in enumerate(self.field(name).tolist()):
                if offset:
                    rows[number][name] = self._value(offset, kind) if numbers is None else numbers[number]
        return rows

    def _value(self, offset: int, kind: str) -> Any:
        if kind == "id":
            return self.fixed_at(offset, ID_BYTES)
        if kind in ("bytes", "string"):
            content = self.bytes_at(offset)
            return content if kind == "bytes" else content.decode()
        if kind in TABLES:
            pointed = np.array([offset + int(struct.unpack_from("<I", self._data, offset)[0])])
            return Tables(self._data, kind, pointed).decode()[0]
        item = kind.strip("[]")
        if item in TABLES:
            return self._items(offset, kind).decode()
        if item == "string":
            start, count = self._vector(offset, 4)
            return [self.bytes_at(start + 4 * i).decode() for i in range(count)]
        start, count = self._vector(offset, struct.calcsize(_SCALARS[item]))
        numbers: list[int] = np.frombuffer(self._data, _SCALARS[item], count, start).tolist()
        return numbers


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
    offsets = [_encode_pointed(builder, item, one, {}) for one in value]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


# -- manifests ------------------------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """One chunk: virtual with all that follows, or native, which stands for inline too: its bytes are Icechunk's.

    Attributes
    ----------
    etag, seconds
        Its checksum, if it has one; the time is in whole seconds since 1970.
    """

    chunk: str
    kind: ChunkType
    url: str = ""
    offset: int = 0
    length: int = 0
    etag: str | None = None
    seconds: int | None = None


class Manifests:
    """The manifests of a repository in a local folder.

    Parameters
    ----------
    directory
        The folder of the repository.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "manifests"

    def references(self, node: Mapping[str, Any], wanted: set[str] | None) -> Iterator[Reference]:
        """The references of an array, as `inspect_snapshot` describes it, or those of some of its chunks.

        Raises
        ------
        FormatError
            ``corrupt``, ``over-budget``.
        """
        node_id = decode_id(node["id"], NODE_ID_BYTES)
        for manifest_id in dict.fromkeys(ref["id"] for ref in node.get("manifest_refs", [])):
            file = MetadataFile(self._directory / manifest_id)
            with file.reading():
                yield from _Manifest(file).references(bytes(node_id or b""), wanted)


class _Manifest:
    def __init__(self, file: MetadataFile) -> None:
        self._root = file.root("Manifest")
        dictionary = int(self._root.field("location_dictionary")[0])
        text = self._root.bytes_at(dictionary) if dictionary else b""
        self._zstd = zstandard.ZstdDecompressor(zstandard.ZstdCompressionDict(text) if text else None)
        self._known: dict[bytes, str] = {}
        self._size = len(file.data)

    def references(self, node_id: bytes, wanted: set[str] | None) -> Iterator[Reference]:
        arrays = self._root.items("arrays")
        seen = 0
        for number, offset in enumerate(arrays.field("node_id").tolist()):
            if arrays.fixed_at(offset, NODE_ID_BYTES) == node_id:
                refs = arrays[number : number + 1].items("refs")
                seen += len(refs)
                if seen > self._size:
                    raise IndexError("its arrays share their references")  # which may make millions of a few
                for start in range(0, len(refs), REFS_AT_ONCE):
                    yield from self._rows(refs[start : start + REFS_AT_ONCE], wanted)

    def _rows(self, refs: Tables, wanted: set[str] | None) -> Iterator[Reference]:
        names = _names(refs)
        if wanted is not None:
            keep = np.fromiter(map(wanted.__contains__, names), dtype=bool, count=len(names))
            names = [name for name, kept in zip(names, keep.tolist(), strict=True) if kept]
            refs = refs[keep]
        columns = (
            refs.field("location").tolist(),
            refs.field("compressed_location").tolist(),
            refs.numbers("offset"),
            refs.numbers("length"),
            refs.field("checksum_etag").tolist(),
            refs.numbers("checksum_last_modified"),
        )
        for name, at, packed_at, offset, length, etag_at, seconds in zip(names, *columns, strict=True):
            if not at and not packed_at:
                yield Reference(name, ChunkType.native)
                continue
            url = refs.bytes_at(at).decode() if at else self._unpacked(refs.bytes_at(packed_at))
            etag = refs.bytes_at(etag_at).decode() if etag_at else None
            yield Reference(name, ChunkType.virtual, url, offset, length, etag, seconds or None)

    def _unpacked(self, packed: bytes) -> str:
        url = self._known.get(packed)
        if url is None:
            text = self._zstd.stream_reader(packed).read(4 * MAX_LOCATION_CHARACTERS)
            url = self._known[packed] = text.decode()
        return url


def _names(refs: Tables) -> list[str]:
    positions = refs.positions("index")
    if not positions.shape[1]:
        return [""] * len(refs)
    columns = [map(str, column) for column in positions.T.tolist()]
    return list(map("/".join, zip(*columns, strict=True)))
