"""Space: how many bytes the chunks of a repository take and where, and giving back what was removed.

The file is rebuilt without its free pages. Of mostly dead objects, what is still needed is written into new ones: the
bytes are copied first, then one write transaction points the references at the new objects. The old ones have no
reference any more, and stay until garbage collection sweeps them: somebody may be reading them.
"""

from __future__ import annotations

from collections.abc import Iterator

from icelite.catalog import locations
from icelite.catalog.chunks import sum_stored_bytes
from icelite.catalog.database import Catalog
from icelite.catalog.locations import check_objects, intern_location, lookup_location
from icelite.catalog.operations import log_operation
from icelite.catalog.removal import remove_locations
from icelite.catalog.settings import check_online
from icelite.change_set import PENDING_BYTES, ObjectWriter
from icelite.errors import ErrorKind, InvalidInputError
from icelite.payload import Payloads
from icelite.types import Chunk, ChunkStorageStats, ChunkType, Compaction, Location, Progress, Repacking


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


Extent = tuple[int, int, int]  # location, offset and length in bytes
NewPlace = tuple[Location, int]


def repack(
    catalog: Catalog, payloads: Payloads, writer: ObjectWriter, min_live: float, progress: Progress | None = None
) -> Repacking:
    """Rewrite objects of which less than a share is needed; see `Repository.repack`."""
    if not 0 < min_live <= 1:
        raise InvalidInputError(f"min_live={min_live!r} must be a share above 0, up to 1", ErrorKind.INVALID_ARGUMENT)
    with catalog.read() as txn:
        check_online(txn)
        dead = {found.location_id: found for found in locations.list_packs(txn) if found.live < min_live * found.size}
        extents = [extent for extent in locations.list_extents(txn) if extent[0] in dead]
    moved: dict[Extent, NewPlace] = {}
    for batch in _batches(extents):
        moved.update(_copy(catalog, payloads, writer, batch))
        if progress is not None:
            progress(len(moved), len(extents))
    if moved:
        with catalog.write() as txn:
            check_online(txn)
            check_objects(txn, {place for place, _ in moved.values()})  # collection may have run meanwhile
            ids = {place: intern_location(txn, place) for place, _ in moved.values()}
            locations.move_extents(txn, {old: (ids[place], offset) for old, (place, offset) in moved.items()})
            remove_locations(txn)
            log_operation(txn, "ObjectsRepacked", {"objects": len(dead)})
    live = sum(found.live for found in dead.values())
    return Repacking(len(dead), live, sum(found.size for found in dead.values()) - live)


def _batches(extents: list[Extent]) -> Iterator[list[Extent]]:
    batch: list[Extent] = []
    size = 0
    for extent in extents:
        batch.append(extent)
        size += extent[2]
        if size >= PENDING_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _copy(catalog: Catalog, payloads: Payloads, writer: ObjectWriter, batch: list[Extent]) -> dict[Extent, NewPlace]:
    """Write the bytes of some extents into new objects; where each of them is now."""
    named = {(index, ""): extent for index, extent in enumerate(batch)}
    bodies = {
        name: payloads.read(Chunk(*extent), f"of object {lookup_location(catalog, extent[0]).path}", None)
        for name, extent in named.items()
    }
    return {named[name]: (location, offset) for name, (location, offset, _) in writer.put(bodies)}
