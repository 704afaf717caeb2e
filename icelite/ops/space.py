"""Space: how many bytes the chunks of a repository take and where, and giving back what was removed."""

from __future__ import annotations

from icelite.catalog.chunks import sum_stored_bytes
from icelite.catalog.database import Catalog
from icelite.catalog.settings import check_online
from icelite.types import ChunkStorageStats, ChunkType, Compaction


def chunk_storage_stats(catalog: Catalog) -> ChunkStorageStats:
    """Bytes of all chunks by where they are; see `Repository.chunk_storage_stats`."""
    with catalog.read() as txn:
        sums = sum_stored_bytes(txn)
    return ChunkStorageStats(
        native_bytes=sums.get(ChunkType.native, 0),
        virtual_bytes=sums.get(ChunkType.virtual, 0),
        inlined_bytes=sums.get(ChunkType.inline, 0),
    )


def compact(catalog: Catalog, *, dry_run: bool = False) -> Compaction:
    """Rebuild the file without its free pages; see `Repository.compact`."""
    with catalog.read() as txn:
        check_online(txn)
    if dry_run:
        size, free = catalog.measure_free()
        return Compaction(size, size - free)
    return Compaction(*catalog.vacuum())
