"""References of an Icechunk array, from its manifests or from its API.

The manifests of a repository in a local folder have the checksums and the ``vcc://`` names that the API leaves out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zstandard
from zarr.core.sync import sync

from icelite.budget import MAX_LOCATION_CHARACTERS
from icelite.icechunk.files import MetadataFile, Tables, decode_id
from icelite.types import ChunkType, chunk_name

if TYPE_CHECKING:
    import icechunk

NODE_ID_BYTES = 8
REFS_AT_ONCE = 100_000


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


def list_references(session: icechunk.Session, path: str, wanted: set[str] | None) -> Iterator[Reference]:
    """The references of an array, or those of some of its chunks."""
    batches = sync(_collect(session.store.array_chunk_iterator(path)))
    for rows in batches:
        yield from (row for row in rows if wanted is None or row.chunk in wanted)


async def _collect(batches: AsyncIterator[Any]) -> list[list[Reference]]:
    return [_rows(batch) async for batch in batches]


def _rows(batch: Any) -> list[Reference]:
    positions, kinds, urls, offsets, lengths, _ = batch
    columns = positions.tolist(), kinds.tolist(), urls, offsets.tolist(), lengths.tolist()
    return [
        Reference(chunk_name(at), ChunkType.virtual, url, offset, length)
        if kind == ChunkType.virtual
        else Reference(chunk_name(at), ChunkType.native)
        for at, kind, url, offset, length in zip(*columns, strict=True)
    ]


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
