"""References as Icechunk's manifests have them: with the checksums and the ``vcc://`` names that its API leaves out.

Only a repository in a local folder is read like this. A million references are decoded in a second: flatbuffers puts
the fields of tables of the same kind at the same distance, so that numpy fetches them column by column.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from icelite.icechunk.files import MetadataFile, decode_id
from icelite.icechunk.references import Reference
from icelite.types import ChunkType

NODE_ID_BYTES = 8
REFS_AT_ONCE = 100_000

# Slots of ChunkRef, ArrayManifest and Manifest, counted as in the specification.
INDEX, INLINE, OFFSET, LENGTH, CHUNK_ID, LOCATION, ETAG, LAST_MODIFIED, COMPRESSED = range(9)
NODE_ID, REFS = 0, 1
ARRAYS, DICTIONARY = 1, 2

Places = npt.NDArray[np.int64]  # positions in the file


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
            ``corrupt``.
        """
        node_id = decode_id(node["id"], NODE_ID_BYTES)
        for manifest_id in dict.fromkeys(ref["id"] for ref in node.get("manifest_refs", [])):
            file = MetadataFile(self._directory / manifest_id)
            try:
                yield from _Manifest(file).references(bytes(node_id or b""), wanted)
            except (IndexError, struct.error, UnicodeDecodeError, zstandard.ZstdError) as error:
                raise file.damaged(f"is damaged: {error}") from error


class _Manifest:
    def __init__(self, file: MetadataFile) -> None:
        self._data = np.frombuffer(bytes(file.data), dtype=np.uint8)
        root = np.array([0], dtype=np.int64)
        self._root = root + self._u32(root)
        dictionary = self._field(self._root, DICTIONARY)[0]
        text = self._bytes(int(dictionary)) if dictionary else b""
        self._zstd = zstandard.ZstdDecompressor(zstandard.ZstdCompressionDict(text) if text else None)
        self._known: dict[bytes, str] = {}

    def references(self, node_id: bytes, wanted: set[str] | None) -> Iterator[Reference]:
        for array in self._items(int(self._field(self._root, ARRAYS)[0])):
            at = int(self._field(array[None], NODE_ID)[0])
            if self._data[at : at + NODE_ID_BYTES].tobytes() == node_id:
                refs = self._items(int(self._field(array[None], REFS)[0]))
                for start in range(0, len(refs), REFS_AT_ONCE):
                    yield from self._rows(refs[start : start + REFS_AT_ONCE], wanted)

    def _rows(self, refs: Places, wanted: set[str] | None) -> Iterator[Reference]:
        names = self._names(self._field(refs, INDEX))
        if wanted is not None:
            keep = np.fromiter(map(wanted.__contains__, names), dtype=bool, count=len(names))
            names = [name for name, kept in zip(names, keep.tolist(), strict=True) if kept]
            refs = refs[keep]
        plain, packed = self._field(refs, LOCATION), self._field(refs, COMPRESSED)
        columns = (
            plain.tolist(),
            packed.tolist(),
            self._number(refs, OFFSET, np.uint64),
            self._number(refs, LENGTH, np.uint64),
            self._field(refs, ETAG).tolist(),
            self._number(refs, LAST_MODIFIED, np.uint32),
        )
        for name, at, packed_at, offset, length, etag_at, seconds in zip(names, *columns, strict=True):
            if not at and not packed_at:
                yield Reference(name, ChunkType.native)
                continue
            url = self._text(at) if at else self._unpacked(packed_at)
            etag = self._text(etag_at) if etag_at else None
            yield Reference(name, ChunkType.virtual, url, offset, length, etag, seconds or None)

    def _names(self, fields: Places) -> list[str]:
        starts = fields + self._u32(fields)
        ndim = int(self._u32(starts[:1])[0]) if len(starts) else 0
        if ndim == 0:
            return [""] * len(starts)
        columns = [map(str, self._u32(starts + 4 + 4 * axis).tolist()) for axis in range(ndim)]
        return list(map("/".join, zip(*columns, strict=True)))

    # -- flatbuffers -------------------------------------------------------------------------------------------

    def _gather(self, places: Places, dtype: Any) -> npt.NDArray[Any]:
        width = np.dtype(dtype).itemsize
        data = self._data[places[:, None] + np.arange(width)]
        numbers: npt.NDArray[Any] = np.ascontiguousarray(data).view(np.dtype(dtype).newbyteorder("<"))[:, 0]
        return numbers

    def _u32(self, places: Places) -> Places:
        return self._gather(places, np.uint32).astype(np.int64)

    def _field(self, tables: Places, slot: int) -> Places:
        """Where a field is in each of some tables; 0 where it is not there."""
        names = tables - self._gather(tables, np.int32).astype(np.int64)
        kinds, which = np.unique(names, return_inverse=True)
        sizes = self._gather(kinds, np.uint16).astype(np.int64)
        entry = 4 + 2 * slot
        offsets = np.zeros(len(kinds), dtype=np.int64)
        there = entry < sizes
        offsets[there] = self._gather(kinds[there] + entry, np.uint16)
        found = offsets[which]
        return np.where(found == 0, 0, tables + found)

    def _number(self, tables: Places, slot: int, dtype: Any) -> list[int]:
        places = self._field(tables, slot)
        values = np.zeros(len(places), dtype=np.int64)
        there = places != 0
        values[there] = self._gather(places[there], dtype).astype(np.int64)
        return [int(value) for value in values.tolist()]

    def _items(self, field: int) -> Places:
        """The tables that a vector points to."""
        start = np.array([field], dtype=np.int64)
        start += self._u32(start)
        places = start + 4 + 4 * np.arange(int(self._u32(start)[0]), dtype=np.int64)
        return places + self._u32(places)

    def _bytes(self, field: int) -> bytes:
        (step,) = struct.unpack_from("<I", self._data.data, field)
        start = field + step
        (size,) = struct.unpack_from("<I", self._data.data, start)
        return self._data[start + 4 : start + 4 + size].tobytes()

    def _text(self, field: int) -> str:
        return self._bytes(field).decode()

    def _unpacked(self, field: int) -> str:
        packed = self._bytes(field)
        url = self._known.get(packed)
        if url is None:
            url = self._known[packed] = self._zstd.decompressobj().decompress(packed).decode()
        return url
