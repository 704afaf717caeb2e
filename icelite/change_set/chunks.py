"""Chunks of a change set: bytes and references the session wrote, over those of the snapshot.

References wait in the session's temporary database (catalog/staging.py). Bytes wait in memory up to `PENDING_BYTES`;
beyond that they go to the catalog's payload table, where nothing refers to them until the commit does, so that a
crash leaves bytes for garbage collection and never a reference without bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from icelite.catalog import chunks as chunk_table
from icelite.catalog import staging
from icelite.catalog.database import Catalog, Row, Transaction
from icelite.catalog.locations import INLINE, intern_location, lookup_location
from icelite.catalog.operations import now
from icelite.catalog.payloads import check_size, insert_payload
from icelite.catalog.permissions import check_online
from icelite.types import ChunkRef, Location, View, chunk_name, chunk_position

PENDING_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class StagedRef:
    """An uncommitted reference: ``length`` bytes from ``offset`` of ``location``."""

    location: Location
    offset: int
    length: int


class ChunkChanges:
    """The chunks of one snapshot plus uncommitted changes; arrays are named by node id."""

    catalog: Catalog
    view: View
    lock: threading.RLock

    def __init__(self) -> None:
        self._forget_staged()

    def _check_kept(self) -> None:
        """Refuse what was just read, if the snapshot was released meanwhile."""
        raise NotImplementedError

    def _forget_staged(self) -> None:
        self._pending: dict[tuple[int, str], bytes] = {}
        self._pending_bytes = 0
        self._with_refs: set[int] = set()  # arrays with rows in staged.chunk_ref
        self._ahead = False  # whether any of those rows are of bytes in the catalog: no commit refers to them yet
        self._locations: list[Location] = []  # staged location id - 2: 1 is INLINE
        self._location_ids: dict[Location, int] = {}

    def _discard_chunks(self) -> None:
        with self.catalog.stage() as txn:
            staging.clear(txn)
        self._forget_staged()

    def find_chunk(self, node_id: int, chunk: str) -> bytes | StagedRef | ChunkRef | None:
        """Where a chunk is: bytes not yet written, an uncommitted reference, one of the snapshot, or nowhere."""
        data = self._pending.get((node_id, chunk))
        if data is not None:
            return data
        if node_id in self._with_refs:
            row = staging.find_ref(self.catalog, node_id, chunk)
            if row is not None:
                return self._staged_ref(*row)
        if node_id < 0:
            return None
        found = chunk_table.find_chunk(self.catalog, self.view, node_id, chunk)
        self._check_kept()
        return found

    def _scan(self, node_id: int) -> list[chunk_table.ChunkColumns]:
        blocks = chunk_table.scan_chunks(self.catalog, self.view, node_id)
        self._check_kept()
        return blocks

    def _staged_ref(self, location_id: int | None, offset: int, length: int) -> StagedRef | ChunkRef | None:
        if location_id is None:
            return None
        if location_id == INLINE:
            return ChunkRef(INLINE, offset, length)
        return StagedRef(self._locations[location_id - 2], offset, length)

    def set_payload(self, node_id: int, chunk: str, data: bytes) -> None:
        """Write a chunk's bytes."""
        check_size(len(data), chunk)
        with self.lock:
            self._pending_bytes += len(data) - len(self._pending.get((node_id, chunk), b""))
            self._pending[node_id, chunk] = data
            if self._pending_bytes > PENDING_BYTES:
                self.flush_payloads()

    def flush_payloads(self) -> None:
        """Put the bytes that wait in memory into the catalog; nothing refers to them before a commit."""
        if not self._pending:
            return
        with self.catalog.write() as txn:
            check_online(txn)
            self._write_payloads(txn)
        self._pending_written()

    def _write_payloads(self, txn: Transaction) -> None:
        written_at = now()
        for (node_id, chunk), data in self._pending.items():
            payload_id = insert_payload(txn, data, written_at)
            staging.put_ref(txn, node_id, chunk, INLINE, payload_id, len(data))

    def _pending_written(self) -> None:
        self._with_refs.update(node_id for node_id, _ in self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        self._ahead = True

    def set_refs(
        self,
        node_id: int,
        chunks: Sequence[str],
        location_ids: Sequence[int | None],
        offsets: Sequence[int],
        lengths: Sequence[int],
        txn: Transaction,
    ) -> None:
        """Stage references, as aligned columns; the ids come from `intern`."""
        staging.put_refs(txn, node_id, chunks, location_ids, offsets, lengths)
        if self._pending:
            for chunk in chunks:
                self._pending_bytes -= len(self._pending.pop((node_id, chunk), b""))
        self._with_refs.add(node_id)
        self._ahead = self._ahead or INLINE in location_ids

    def intern(self, location: Location) -> int:
        """The staged id of a location."""
        with self.lock:
            location_id = self._location_ids.get(location)
            if location_id is None:
                self._locations.append(location)
                location_id = self._location_ids[location] = len(self._locations) + 1
            return location_id

    def locations(self) -> Sequence[Location]:
        """The locations that uncommitted references use."""
        return self._locations

    def delete_chunks(self, node_id: int, chunks: Sequence[str]) -> None:
        """Delete chunks; those that are not there stay so."""
        with self.lock, self.catalog.stage() as txn:
            for chunk in chunks:
                self._pending_bytes -= len(self._pending.pop((node_id, chunk), b""))
                staging.drop_ref(txn, node_id, chunk)
        if node_id < 0:
            return
        with self.lock:
            stored = [c for c in chunks if chunk_table.find_chunk(self.catalog, self.view, node_id, c) is not None]
            if stored:
                with self.catalog.stage() as txn:
                    for chunk in stored:
                        staging.put_ref(txn, node_id, chunk, None, 0, 0)
                self._with_refs.add(node_id)

    def forget_changes(self, txn: Transaction, node_id: int, chunks: Collection[str]) -> None:
        """Give up what the session did to these chunks; the snapshot's count again."""
        for chunk in chunks:
            self._pending_bytes -= len(self._pending.pop((node_id, chunk), b""))
            staging.drop_ref(txn, node_id, chunk)

    def shift_changes(self, txn: Transaction, node_id: int, axis: int, by: int) -> None:
        """Move the uncommitted chunks of an array by whole chunks along one dimension."""

        def moved(chunk: str) -> str:
            position = chunk_position(chunk)
            position[axis] += by
            return chunk_name(position)

        self._pending = {
            (pending_id, moved(chunk) if pending_id == node_id else chunk): data
            for (pending_id, chunk), data in self._pending.items()
        }
        rows = staging.list_refs(txn, node_id)
        staging.drop_refs(txn, node_id)
        if rows:
            chunks, *columns = zip(*rows, strict=True)
            staging.put_refs(txn, node_id, list(map(moved, chunks)), *columns)

    def refs(self, node_id: int) -> Iterator[tuple[str, int, int, int]]:
        """Grid position, staged location id, offset and length of every chunk of an array, as this session sees it.

        Bytes not yet written are staged first, so that all chunks are references.
        """
        staged: dict[str, Row] = {}
        with self.lock:  # not while rows are handed out: whoever takes them may take his time
            if any(pending_id == node_id for pending_id, _ in self._pending):
                self.flush_payloads()
            if node_id in self._with_refs:
                with self.catalog.read() as txn:
                    staged = {row[0]: row for row in staging.list_refs(txn, node_id)}
        if node_id > 0:
            known: dict[int, int] = {INLINE: INLINE}
            for block in self._scan(node_id):
                ids = block.location_ids.tolist()
                for location_id in set(ids) - known.keys():
                    known[location_id] = self.intern(lookup_location(self.catalog, location_id))
                extents = block.offsets.tolist(), block.lengths.tolist()
                rows = zip(block.chunks, map(known.__getitem__, ids), *extents, strict=True)
                yield from (row for row in rows if row[0] not in staged)
        yield from (row for row in staged.values() if row[1] is not None)

    def virtual_locations(self, node_id: int) -> Iterator[Location]:
        """The location of every virtual chunk of an array, one for each chunk."""
        staged: dict[str, int | None] = {}
        if node_id in self._with_refs:
            with self.catalog.read() as txn:
                staged = {chunk: location_id for chunk, location_id, *_ in staging.list_refs(txn, node_id)}
        staged.update((chunk, INLINE) for pending_id, chunk in self._pending if pending_id == node_id)
        if node_id > 0:
            known: dict[int, Location] = {}
            for block in self._scan(node_id):
                for chunk, location_id in zip(block.chunks, block.location_ids.tolist(), strict=True):
                    if location_id != INLINE and chunk not in staged:
                        if location_id not in known:
                            known[location_id] = lookup_location(self.catalog, location_id)
                        yield known[location_id]
        yield from (self._locations[i - 2] for i in staged.values() if i is not None and i != INLINE)

    def chunk_sizes(self, node_id: int) -> Iterator[tuple[str, int]]:
        """Grid position and length in bytes of every chunk of an array, as this session sees it."""
        staged: dict[str, int | None] = {c: len(d) for (n, c), d in list(self._pending.items()) if n == node_id}
        if node_id in self._with_refs:
            with self.catalog.read() as txn:
                for chunk, location_id, _, length in staging.list_refs(txn, node_id):
                    staged.setdefault(chunk, None if location_id is None else length)
        if node_id > 0:
            for block in self._scan(node_id):
                for chunk, size in zip(block.chunks, block.lengths.tolist(), strict=True):
                    if chunk not in staged:
                        yield chunk, size
        yield from ((chunk, size) for chunk, size in staged.items() if size is not None)

    def stored_bytes(self, node_id: int) -> int:
        """The sum of `chunk_sizes`."""
        if node_id > 0 and node_id not in self._with_refs and not self._pending:
            size = chunk_table.stored_bytes(self.catalog, self.view, node_id)
            self._check_kept()
            return size
        return sum(size for _, size in self.chunk_sizes(node_id))

    def _forget_chunks(self, node_id: int) -> None:
        for key in [key for key in self._pending if key[0] == node_id]:
            self._pending_bytes -= len(self._pending.pop(key))
        if node_id in self._with_refs:
            with self.catalog.stage() as txn:
                staging.drop_refs(txn, node_id)
            self._with_refs.discard(node_id)

    def changed_nodes(self) -> set[int]:
        """Ids of the arrays with uncommitted chunks."""
        return {node_id for node_id, _ in self._pending} | set(self._changed_nodes())

    def _changed_nodes(self) -> list[int]:
        if not self._with_refs:
            return []
        with self.catalog.read() as txn:
            return staging.list_changed_nodes(txn)

    def _changed_chunks(self, node_id: int) -> list[list[int]]:
        return sorted(map(chunk_position, self._changed_names(node_id)))

    def _changed_names(self, node_id: int) -> set[str]:
        names = {chunk for n, chunk in self._pending if n == node_id}
        if node_id in self._with_refs:
            with self.catalog.read() as txn:
                names.update(row[0] for row in staging.list_refs(txn, node_id))
        return names

    def _write_refs(self, txn: Transaction) -> set[int]:
        """Stage the pending bytes and number the locations; ids of the arrays whose references are to be copied."""
        if self._ahead:
            staging.check_payloads(txn)
        self._write_payloads(txn)
        with_refs = self._with_refs | {node_id for node_id, _ in self._pending}
        catalog_ids = [(INLINE, INLINE)]
        catalog_ids += [(i, intern_location(txn, location)) for i, location in enumerate(self._locations, start=2)]
        staging.map_locations(txn, catalog_ids)
        return set(staging.list_changed_nodes(txn)) & with_refs
