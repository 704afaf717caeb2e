"""Chunks of a change set: bytes and references the session wrote, over those of the snapshot.

References wait in the session's temporary database (catalog/staging.py). Bytes wait in memory up to `PENDING_BYTES`;
beyond that they go to the catalog's payload table or into objects, where nothing refers to them until the commit
does, so that a crash leaves bytes for garbage collection and never a reference without bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from icelite.catalog import chunks as chunk_table
from icelite.catalog import staging
from icelite.catalog.checksums import Ints
from icelite.catalog.chunks import check_size, insert_payload
from icelite.catalog.database import Catalog, Row, Transaction, repeat_write
from icelite.catalog.locations import INLINE, check_objects, intern_location, lookup_location
from icelite.catalog.operations import now
from icelite.catalog.settings import check_online
from icelite.change_set.native import Native
from icelite.change_set.tally import BLOCK_ROWS, LocationIds, Tally, read_tally
from icelite.types import ChunkRef, ChunkType, Location, View, chunk_name, chunk_position

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
    writes: int

    def __init__(self, native: Native) -> None:
        self.native = native
        self.writes = 0  # how often something was changed since it was made, or loaded
        self._forget_staged()

    def _check_kept(self) -> None:
        """Refuse what was just read, if the snapshot was released meanwhile."""
        raise NotImplementedError

    def _forget_staged(self) -> None:
        self._pending: dict[tuple[int, str], bytes] = {}
        self._pending_bytes = 0
        self._with_refs: set[int] = set()  # arrays with rows in staged.chunk_ref
        self._tallies: dict[int, Tally] = {}  # of those whose rows came in blocks
        self._ahead = False  # whether any of those rows are of bytes in the catalog: no commit refers to them yet
        self._locations: list[Location] = []  # staged location id - 2: 1 is INLINE
        self._location_ids: dict[Location, int] = {}

    def _discard_chunks(self) -> None:
        with self.catalog.stage() as txn:
            staging.clear(txn)
        self._forget_staged()

    def find_chunk(self, node_id: int, chunk: str, *, whole: bool = False) -> bytes | StagedRef | ChunkRef | None:
        """Where a chunk is: bytes not yet written, an uncommitted reference, one of the snapshot, or nowhere.

        ``whole`` as for `icelite.catalog.chunks.find_chunk`.
        """
        data = self._pending.get((node_id, chunk))
        if data is not None:
            return data
        if node_id in self._with_refs:
            row = staging.find_ref(self.catalog, node_id, chunk)
            if row is not None:
                return self._staged_ref(*row)
        if node_id < 0:
            return None
        found = chunk_table.find_chunk(self.catalog, self.view, node_id, chunk, whole=whole)
        self._check_kept()
        return found

    def find_chunks(self, node_id: int, chunks: Sequence[str]) -> list[bytes | StagedRef | ChunkRef | None]:
        """`find_chunk` for many chunks of one array, in at most two statements."""
        found: list[bytes | StagedRef | ChunkRef | None] = [None] * len(chunks)
        # what waits may be staged at any moment, so it is looked at first
        pending = {i: self._pending.get((node_id, chunk)) for i, chunk in enumerate(chunks)} if self._pending else {}
        staged = staging.find_refs(self.catalog, node_id, chunks) if node_id in self._with_refs else {}
        if node_id > 0:
            found[:] = chunk_table.find_chunks(self.catalog, self.view, node_id, chunks)
            self._check_kept()
        for i, row in staged.items():
            found[i] = self._staged_ref(*row)
        for i, data in pending.items():
            if data is not None:
                found[i] = data
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
        if not self.native.takes(len(data)):
            check_size(len(data), chunk)
        with self.lock:
            self.writes += 1
            self._pending_bytes += len(data) - len(self._pending.get((node_id, chunk), b""))
            self._pending[node_id, chunk] = data
            if self._pending_bytes > PENDING_BYTES:
                self.flush_payloads()

    def flush_payloads(self) -> None:
        """Put the bytes that wait in memory where they belong; nothing refers to them before a commit."""
        self.upload()
        if not self._pending:
            return

        def write(txn: Transaction) -> None:
            check_online(txn)
            self._write_payloads(txn)

        repeat_write(self.catalog, write)
        self._pending_written()

    def upload(self) -> None:
        """Write those of the bytes that wait in memory into objects that belong there.

        Raises
        ------
        StorageError, InvalidInputError
            As `icelite.objects.Objects.put`; the bytes still wait.
        """
        with self.lock:
            large = {name: data for name, data in self._pending.items() if self.native.takes(len(data))}
            if not large:
                return
            stored = self.native.put(large)
            with self.catalog.stage() as txn:
                for (node_id, chunk), (location, offset, length) in stored:
                    self._tallies.pop(node_id, None)
                    staging.put_ref(txn, node_id, chunk, self.intern(location), offset, length)
            self._with_refs.update(node_id for node_id, _ in large)  # before they go: others may be reading
            for name, data in large.items():
                self._pending_bytes -= len(data)
                del self._pending[name]

    def _write_payloads(self, txn: Transaction) -> None:
        written_at = now()
        stored: dict[int, list[tuple[str, int, int, int]]] = {}
        for (node_id, chunk), data in self._pending.items():
            row = chunk, INLINE, insert_payload(txn, data, written_at), len(data)
            stored.setdefault(node_id, []).append(row)
        for node_id, rows in stored.items():
            self._tallies.pop(node_id, None)
            staging.put_refs(txn, node_id, *zip(*rows, strict=True))

    def _pending_written(self) -> None:
        self._with_refs.update(node_id for node_id, _ in self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        self._ahead = True

    def set_refs(
        self,
        node_id: int,
        chunks: Sequence[str],
        location_ids: LocationIds,
        offsets: Ints,
        lengths: Ints,
        txn: Transaction,
    ) -> None:
        """Stage references, as aligned columns; the ids come from `intern`."""
        self.writes += 1
        ids = location_ids.tolist() if isinstance(location_ids, np.ndarray) else location_ids
        staging.put_refs(txn, node_id, chunks, ids, _as_list(offsets), _as_list(lengths))
        # whatever else is staged of an array drops its tally; what replaces rows makes it disagree with their number
        if node_id in self._tallies or (len(chunks) >= BLOCK_ROWS and node_id not in self._with_refs):
            self._tallies.setdefault(node_id, Tally()).add(chunks, location_ids, offsets, lengths)
        if self._pending:
            for chunk in chunks:
                self._pending_bytes -= len(self._pending.pop((node_id, chunk), b""))
        self._with_refs.add(node_id)
        self._ahead = self._ahead or INLINE in ids

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
        self.writes += 1
        self._tallies.pop(node_id, None)
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
        self._tallies.pop(node_id, None)
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
        self._tallies.pop(node_id, None)
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

    def columns(self, node_id: int) -> Iterator[chunk_table.ChunkColumns]:
        """The same as `refs` in columns, block by block, and nothing is written: bytes not yet written have offset 0.

        Locations are numbered for `location`.
        """
        with self.lock:
            pending = {chunk: len(data) for (n, chunk), data in self._pending.items() if n == node_id}
            staged: list[chunk_table.ChunkColumns] = []
            if node_id in self._with_refs:
                with self.catalog.read() as txn:
                    staged = list(staging.scan_refs(txn, node_id))
        inline = np.full(len(pending), INLINE), np.zeros(len(pending), np.int64), np.array(list(pending.values()), int)
        yield chunk_table.ChunkColumns(list(pending), *inline)
        changed = set(pending)
        for block in staged:
            yield chunk_table.kept(block, (block.location_ids != 0) & ~_isin(block.chunks, changed))
        changed.update(*(block.chunks for block in staged))
        for block in self._scan(node_id) if node_id > 0 else ():
            rest = chunk_table.kept(block, ~_isin(block.chunks, changed)) if changed else block
            yield rest._replace(location_ids=np.where(rest.location_ids == INLINE, INLINE, -rest.location_ids))

    def location(self, number: int) -> Location | None:
        """A location as `columns` numbers it: the staged ones, and below 0 those of the catalog; None for inline."""
        if number < 0:
            return lookup_location(self.catalog, -number)
        return None if number == INLINE else self._locations[number - 2]

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
                        if known[location_id].kind == ChunkType.virtual:
                            yield known[location_id]
        ours = (self._locations[i - 2] for i in staged.values() if i is not None and i != INLINE)
        yield from (location for location in ours if location.kind == ChunkType.virtual)

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
        self._tallies.pop(node_id, None)
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
        return sorted(map(chunk_position, self.changed_names(node_id)))

    def changed_names(self, node_id: int) -> set[str]:
        """The chunks of an array that the session wrote or deleted."""
        names = {chunk for n, chunk in self._pending if n == node_id}
        if node_id in self._with_refs:
            with self.catalog.read() as txn:
                names.update(row[0] for row in staging.list_refs(txn, node_id))
        return names

    def _write_refs(self, txn: Transaction) -> tuple[set[int], npt.NDArray[np.int64]]:
        """Stage the pending bytes and number the locations.

        Returns
        -------
        tuple
            Ids of the arrays whose references are to be copied; the number in the catalog of each staged location.
        """
        if self._ahead:
            staging.check_payloads(txn)
        check_objects(txn, self._locations)
        self._write_payloads(txn)
        with_refs = self._with_refs | {node_id for node_id, _ in self._pending}
        catalog_ids = [(INLINE, INLINE)]
        catalog_ids += [(i, intern_location(txn, location)) for i, location in enumerate(self._locations, start=2)]
        staging.map_locations(txn, catalog_ids)
        numbers = np.array([0, *(number for _, number in catalog_ids)], np.int64)
        return set(staging.list_changed_nodes(txn)) & with_refs, numbers

    def _tally(self, txn: Transaction, node_id: int, rows: int) -> Tally:
        """What the ``rows`` staged references of an array add up to."""
        tally = self._tallies.get(node_id)
        return tally if tally is not None and tally.rows == rows else read_tally(txn, node_id, rows)


def _as_list(column: Ints) -> Sequence[int]:
    return column.tolist() if isinstance(column, np.ndarray) else column


def _isin(chunks: Collection[str], names: Container[str]) -> npt.NDArray[np.bool_]:
    return np.fromiter(map(names.__contains__, chunks), dtype=bool, count=len(chunks))
