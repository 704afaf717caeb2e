"""How many bytes the chunks of a repository take, and where."""

from __future__ import annotations

from icelite.catalog.chunks import sum_stored_bytes
from icelite.catalog.database import Catalog
from icelite.types import ChunkStorageStats, ChunkType


def chunk_storage_stats(catalog: Catalog) -> ChunkStorageStats:
    """Bytes of all chunks by where they are; see `Repository.chunk_storage_stats`."""
    with catalog.read() as txn:
        sums = sum_stored_bytes(txn)
    return ChunkStorageStats(
        native_bytes=sums.get(ChunkType.native, 0),
        virtual_bytes=sums.get(ChunkType.virtual, 0),
        inlined_bytes=sums.get(ChunkType.inline, 0),
    )
