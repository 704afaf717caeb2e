"""Where the chunks of an Icechunk array are, as its API tells: without checksums, ``vcc://`` made absolute."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from zarr.core.sync import sync

from icelite.types import ChunkType, chunk_name

if TYPE_CHECKING:
    import icechunk


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
