"""Bytes apart from their references: written by one process, referred to by the change set of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from icelite.catalog.chunks import check_size, insert_payload
from icelite.catalog.locations import INLINE
from icelite.catalog.operations import now
from icelite.catalog.settings import check_online
from icelite.change_set.change_set import ChangeSet
from icelite.change_set.chunks import StagedRef
from icelite.types import ChunkRef

ChunkPlace: TypeAlias = StagedRef | ChunkRef


def write_bytes(changes: ChangeSet, node_id: int, chunks: Mapping[str, bytes]) -> dict[str, ChunkPlace]:
    """Put chunks of an array where the repository's bytes go, durably; nothing refers to them yet.

    Returns
    -------
    dict
        Where the bytes of each grid position are; for `take_places`.

    Raises
    ------
    StorageError, InvalidInputError, ReadOnlyError
        As `ChangeSet.flush_payloads`.
    """
    native = changes.native
    # A write to a catalog in a bucket sends the whole of it: there, all bytes of workers go into objects.
    every = changes.catalog.storage.address is not None and native.objects.root is not None
    large = {(node_id, chunk): data for chunk, data in chunks.items() if every or native.takes(len(data))}
    small = {chunk: data for chunk, data in chunks.items() if (node_id, chunk) not in large}
    places: dict[str, ChunkPlace] = {}
    if large:
        places.update((name[1], StagedRef(*place)) for name, place in native.put(large))
    if small:
        for chunk, data in small.items():
            check_size(len(data), chunk)
        written_at = now()
        with changes.catalog.write() as txn:
            check_online(txn)
            for chunk, data in small.items():
                places[chunk] = ChunkRef(INLINE, insert_payload(txn, data, written_at), len(data))
    return places


def take_places(changes: ChangeSet, node_id: int, places: Mapping[str, ChunkPlace]) -> None:
    """Stage references to what `write_bytes` wrote for the same repository."""
    if not places:
        return
    ids = [INLINE if isinstance(place, ChunkRef) else changes.intern(place.location) for place in places.values()]
    offsets = [place.offset for place in places.values()]
    lengths = [place.length for place in places.values()]
    with changes.lock, changes.catalog.stage() as txn:
        changes.set_refs(node_id, list(places), ids, offsets, lengths, txn)
