"""Chunks of a change set: bytes and references the session wrote, over those of the snapshot.

References wait in the session's temporary database (catalog/staging.py). Bytes wait in memory up to `PENDING_BYTES`;
beyond that they go to the catalog's payload table or into objects, where nothing refers to them until the commit
does, so that a crash leaves bytes for garbage collection and never a reference without bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from icelite.catalog import chunks as chunk_table
from icelite.catalog import staging
from icelite.catalog.checksums import MASK, SUM_MASK, Ints, extent_hash, hash_extents, location_factors
from icelite.catalog.chunks import ChunkColumns, check_size, insert_payload
from icelite.catalog.database import Row, Transaction, repeat_write
from icelite.catalog.locations import INLINE, check_objects, intern_location, lookup_location
from icelite.catalog.operations import now
from icelite.catalog.settings import check_online
from icelite.change_set.base import BaseSnapshot
from icelite.change_set.writer import ObjectWriter, write_bytes
from icelite.types import Chunk, ChunkType, Location, chunk_name, chunk_position

PENDING_BYTES = 32 << 20
BLOCK_ROWS = 256  # fewer are read again for a tally: that costs less than adding them up while they are staged

LocationIds: TypeAlias = Sequence[int | None] | npt.NDArray[np.int64]


class ChunkChanges:
    """The chunks of one snapshot plus uncommitted changes; arrays are named by node id."""

    def __init__(self, base: BaseSnapshot, writer: ObjectWriter) -> None:
        self._base = base
        self._writer = writer
        self._outside: set[int] = set()  # arrays whose last chunk was not inline: asking for its bytes, too, costs
        self._forget_staged()

    def _forget_staged(self) -> None:
        self._pending: dict[tuple[int, str], bytes] = {}
        self._pending_bytes = 0
        self._with_refs: set[int] = set()  # arrays with rows in staged.chunk_ref
        self._tallies: dict[int, Tally] = {}  # of those whose rows came in blocks
        self._ahead = False  # whether any of those rows are of bytes in the catalog: no commit refers to them yet
        self._locations: list[Location] = []  # staged location id - 2: 1 is INLINE
        self._location_ids: dict[Location, int] = {}

    def discard(self) -> None:
        """Forget every uncommitted chunk."""
        with self._base.catalog.stage() as txn:
            staging.clear(txn)
        self._forget_staged()

    def checkpoint(self) -> Callable[[], None]:
        """How to return to the state as it is now; the staged rows return with their transaction."""
        pending, pending_bytes, with_refs = dict(self._pending), self._pending_bytes, set(self._with_refs)

        def restore() -> None:
            self._pending, self._pending_bytes, self._with_refs = pending, pending_bytes, with_refs

        return restore

    def dump(self) -> dict[str, Any]:
        """The uncommitted changes as values that pickle; bytes that wait in memory go to the catalog first."""
        self.flush()
        with self._base.catalog.read() as txn:
            refs = {node_id: staging.list_refs(txn, node_id) for node_id in staging.list_changed_nodes(txn)}
        return {"locations": self._locations, "refs": refs}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue with the changes that `dump` gave."""
        for location in state["locations"]:
            self.intern(location)
        with self._base.catalog.stage() as txn:
            for node_id, rows in state["refs"].items():
                chunks, location_ids, offsets, lengths = zip(*rows, strict=True)
                self.set_refs(node_id, chunks, location_ids, offsets, lengths, txn)

    # -- reading: pending bytes over staged references over the snapshot ---------------------------------------

    def find(self, node_id: int, chunk: str, *, whole: bool = False) -> Chunk | None:
        """Where a chunk is; None where there is none. ``whole`` as for `icelite.catalog.chunks.find_chunk`."""
        if self._pending:
            data = self._pending.get((node_id, chunk))
            if data is not None:
                return Chunk(None, 0, len(data), data)
        base = self._base
        if node_id in self._with_refs:
            row = staging.find_ref(base.catalog, node_id, chunk)
            if row is not None:
                return self._staged(*row)
        if node_id < 0:
            return None
        with_bytes = whole and node_id not in self._outside
        found = chunk_table.find_chunk(base.catalog, base.view, node_id, chunk, whole=with_bytes)
        if base.catalog.version != base.seen_version:
            base.check_kept()
        if whole and found is not None and with_bytes != (found.location == INLINE):
            self._outside ^= {node_id}
        return found

    def find_many(self, node_id: int, chunks: Sequence[str]) -> list[Chunk | None]:
        """`find` for many chunks of one array, in at most two statements."""
        base = self._base
        found: list[Chunk | None] = [None] * len(chunks)
        # what waits may be staged at any moment, so it is looked at first
        pending = {i: self._pending.get((node_id, chunk)) for i, chunk in enumerate(chunks)} if self._pending else {}
        staged = staging.find_refs(base.catalog, node_id, chunks) if node_id in self._with_refs else {}
        if node_id > 0:
            found = chunk_table.find_chunks(base.catalog, base.view, node_id, chunks)
            base.check_kept()
        for i, row in staged.items():
            found[i] = self._staged(*row)
        for i, data in pending.items():
            if data is not None:
                found[i] = Chunk(None, 0, len(data), data)
        return found

    def _staged(self, location_id: int | None, offset: int, length: int) -> Chunk | None:
        if location_id is None:
            return None
        return Chunk(INLINE if location_id == INLINE else self._locations[location_id - 2], offset, length)

    def columns(self, node_id: int) -> Iterator[ChunkColumns]:
        """Every chunk of an array in columns, block by block, as this session sees it.

        Nothing is written: bytes not yet written have offset 0. Locations are numbered for `location`.
        """
        yield from self._overlay(node_id, self._changed_columns(node_id))

    def _changed_columns(self, node_id: int) -> list[ChunkColumns]:
        """What the session wrote: bytes that wait, then what is staged, of which some may wait anew."""
        with self._base.lock:
            pending = {chunk: len(data) for (n, chunk), data in self._pending.items() if n == node_id}
            sizes = np.array(list(pending.values()), np.int64)
            inline = np.full(len(pending), INLINE), np.zeros(len(pending), np.int64), sizes
            blocks = [ChunkColumns(list(pending), *inline)]
            if node_id in self._with_refs:
                with self._base.catalog.read() as txn:
                    blocks += staging.scan_refs(txn, node_id)
        return blocks

    def _overlay(self, node_id: int, ours: Iterable[ChunkColumns]) -> Iterator[ChunkColumns]:
        """The chunks that are there, by the rule that the first block which has one says where it is."""
        changed: set[str] = set()
        for block in ours:
            first = _without(block, changed)
            yield chunk_table.kept(first, first.location_ids != 0)
            changed.update(block.chunks)
        if node_id > 0:
            stored = chunk_table.scan_chunks(self._base.catalog, self._base.view, node_id)
            self._base.check_kept()
            for block in stored:
                rest = _without(block, changed)
                yield rest._replace(location_ids=np.where(rest.location_ids == INLINE, INLINE, -rest.location_ids))

    def location(self, number: int) -> Location | None:
        """A location as `columns` numbers it: the staged ones, and below 0 those of the catalog; None for inline."""
        if number < 0:
            return lookup_location(self._base.catalog, -number)
        return None if number == INLINE else self._locations[number - 2]

    def refs(self, node_id: int) -> Iterator[tuple[str, int, int, int]]:
        """Grid position, staged location id, offset and length of every chunk of an array, as this session sees it.

        Bytes not yet written are staged first, so that all chunks are references.
        """
        with self._base.lock:  # not while rows are handed out: whoever takes them may take his time
            if any(pending_id == node_id for pending_id, _ in self._pending):
                self.flush()
            ours = self._changed_columns(node_id)
        known: dict[int, int] = {}
        for block in self._overlay(node_id, ours):
            ids = block.location_ids.tolist()
            for number in set(ids) - known.keys():
                location = self.location(number) if number < 0 else None
                known[number] = number if location is None else self.intern(location)
            extents = block.offsets.tolist(), block.lengths.tolist()
            yield from zip(block.chunks, map(known.__getitem__, ids), *extents, strict=True)

    def virtual_locations(self, node_id: int) -> Iterator[Location]:
        """The location of every virtual chunk of an array, one for each chunk."""
        known: dict[int, Location | None] = {}
        for block in self.columns(node_id):
            ids = block.location_ids.tolist()
            for number in set(ids) - known.keys():
                location = self.location(number)
                known[number] = location if location is not None and location.kind == ChunkType.virtual else None
            yield from (location for location in map(known.__getitem__, ids) if location is not None)

    def sizes(self, node_id: int) -> Iterator[tuple[str, int]]:
        """Grid position and length in bytes of every chunk of an array, as this session sees it."""
        for block in self.columns(node_id):
            yield from zip(block.chunks, block.lengths.tolist(), strict=True)

    def stored_bytes(self, node_id: int) -> int:
        """The sum of `sizes`."""
        base = self._base
        if node_id > 0 and node_id not in self._with_refs and not self._pending:
            size = chunk_table.stored_bytes(base.catalog, base.view, node_id)
            base.check_kept()
            return size
        return sum(int(block.lengths.sum()) for block in self.columns(node_id))

    def is_empty(self) -> bool:
        """Whether no chunk was changed."""
        return not (self._pending or self._staged_arrays())

    def changed_arrays(self) -> set[int]:
        """Ids of the arrays with uncommitted chunks."""
        return {node_id for node_id, _ in self._pending} | set(self._staged_arrays())

    def _staged_arrays(self) -> list[int]:
        if not self._with_refs:
            return []
        with self._base.catalog.read() as txn:
            return staging.list_changed_nodes(txn)

    def changed_names(self, node_id: int) -> set[str]:
        """The chunks of an array that the session wrote or deleted."""
        return {chunk for block in self._changed_columns(node_id) for chunk in block.chunks}

    # -- writing -----------------------------------------------------------------------------------------------

    def set_bytes(self, node_id: int, chunk: str, data: bytes) -> None:
        """Write a chunk's bytes."""
        if not self._writer.takes(len(data)):
            check_size(len(data), chunk)
        with self._base.lock:
            self._base.writes += 1
            self._pending_bytes += len(data) - len(self._pending.get((node_id, chunk), b""))
            self._pending[node_id, chunk] = data
            if self._pending_bytes > PENDING_BYTES:
                self.flush()

    def flush(self) -> None:
        """Put the bytes that wait in memory where they belong; nothing refers to them before a commit."""
        self.upload()
        if not self._pending:
            return

        def write(txn: Transaction) -> None:
            check_online(txn)
            self._write_payloads(txn)

        repeat_write(self._base.catalog, write)
        self._pending_written()

    def upload(self) -> None:
        """Write those of the bytes that wait in memory into objects that belong there.

        Raises
        ------
        StorageError, InvalidInputError
            As `icelite.objects.Objects.put`; the bytes still wait.
        """
        with self._base.lock:
            large = {name: data for name, data in self._pending.items() if self._writer.takes(len(data))}
            if not large:
                return
            stored = self._writer.put(large)
            with self._base.catalog.stage() as txn:
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
        self._base.writes += 1
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

    def set_many(self, node_id: int, chunks: Mapping[str, Chunk]) -> None:
        """Stage references to bytes that the repository has, or that `write_ahead` wrote for it."""
        if not chunks:
            return
        ids = [self._intern_place(chunk.location) for chunk in chunks.values()]
        offsets, lengths = [chunk.offset for chunk in chunks.values()], [chunk.length for chunk in chunks.values()]
        with self._base.lock, self._base.catalog.stage() as txn:
            self.set_refs(node_id, list(chunks), ids, offsets, lengths, txn)

    def _intern_place(self, place: int | Location | None) -> int:
        if isinstance(place, Location):
            return self.intern(place)
        assert place is not None  # bytes that wait have no place yet
        return INLINE if place == INLINE else self.intern(lookup_location(self._base.catalog, place))

    def write_ahead(self, node_id: int, chunks: Mapping[str, bytes]) -> dict[str, Chunk]:
        """Put chunks of an array where the repository's bytes go; see `icelite.change_set.writer.write_bytes`."""
        return write_bytes(self._base.catalog, self._writer, node_id, chunks)

    def intern(self, location: Location) -> int:
        """The staged id of a location."""
        with self._base.lock:
            location_id = self._location_ids.get(location)
            if location_id is None:
                self._locations.append(location)
                location_id = self._location_ids[location] = len(self._locations) + 1
            return location_id

    @property
    def locations(self) -> Sequence[Location]:
        """The locations that uncommitted references use; their staged ids begin with 2."""
        return self._locations

    def delete(self, node_id: int, chunks: Sequence[str]) -> None:
        """Delete chunks; those that are not there stay so."""
        self._base.writes += 1
        self._tallies.pop(node_id, None)
        with self._base.lock, self._base.catalog.stage() as txn:
            for chunk in chunks:
                self._pending_bytes -= len(self._pending.pop((node_id, chunk), b""))
                staging.drop_ref(txn, node_id, chunk)
        if node_id < 0:
            return
        catalog, view = self._base.catalog, self._base.view
        with self._base.lock:
            stored = [c for c in chunks if chunk_table.find_chunk(catalog, view, node_id, c) is not None]
            if stored:
                with catalog.stage() as txn:
                    for chunk in stored:
                        staging.put_ref(txn, node_id, chunk, None, 0, 0)
                self._with_refs.add(node_id)

    def give_up(self, txn: Transaction, node_id: int, chunks: Collection[str]) -> None:
        """Give up what the session did to these chunks; the snapshot's count again."""
        self._tallies.pop(node_id, None)
        for chunk in chunks:
            self._pending_bytes -= len(self._pending.pop((node_id, chunk), b""))
            staging.drop_ref(txn, node_id, chunk)

    def shift(self, txn: Transaction, node_id: int, axis: int, by: int) -> None:
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

    def forget(self, node_id: int) -> None:
        """Forget the uncommitted chunks of an array, as it is deleted."""
        self._tallies.pop(node_id, None)
        for key in [key for key in self._pending if key[0] == node_id]:
            self._pending_bytes -= len(self._pending.pop(key))
        if node_id in self._with_refs:
            with self._base.catalog.stage() as txn:
                staging.drop_refs(txn, node_id)
            self._with_refs.discard(node_id)

    def stage_all(self, txn: Transaction) -> tuple[set[int], npt.NDArray[np.int64]]:
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

    def tally(self, txn: Transaction, node_id: int, rows: int) -> Tally:
        """What the ``rows`` staged references of an array add up to."""
        tally = self._tallies.get(node_id)
        return tally if tally is not None and tally.rows == rows else read_tally(txn, node_id, rows)


def _as_list(column: Ints) -> Sequence[int]:
    return column.tolist() if isinstance(column, np.ndarray) else column


def _without(block: ChunkColumns, names: Set[str]) -> ChunkColumns:
    """The rows of a block that are not of the chunks named."""
    if not names:
        return block
    named = np.fromiter(map(names.__contains__, block.chunks), dtype=bool, count=len(block.chunks))
    return chunk_table.kept(block, ~named)


class Tally:
    """Number of staged references of one array and sum of their hashes, by staged location; 0 is of deleted chunks.

    A commit needs both of every array, by the catalog's numbers of locations, which are known only then. Reading staged
    rows again takes a third of the time of writing them, so blocks are added up while they are staged; where rows were
    replaced or taken back since, the count does not agree, and they are read again.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._counts = np.zeros(1, np.int64)
        self._sums = np.zeros(1, np.uint64)

    def add(self, chunks: Sequence[str], location_ids: LocationIds, offsets: Ints, lengths: Ints) -> None:
        """Add a block of references, given as aligned columns; location None or 0 deletes a chunk."""
        numbered = location_ids if isinstance(location_ids, np.ndarray) else [number or 0 for number in location_ids]
        ids = np.asarray(numbered, np.int64)
        self._reserve(int(ids.max(initial=0)))
        np.add.at(self._counts, ids, 1)
        np.add.at(self._sums, ids, hash_extents(chunks, offsets, lengths))
        self.rows += len(chunks)

    def _reserve(self, number: int) -> None:
        missing = number + 1 - len(self._counts)
        if missing > 0:
            missing = max(missing, len(self._counts))
            self._counts = np.concatenate((self._counts, np.zeros(missing, np.int64)))
            self._sums = np.concatenate((self._sums, np.zeros(missing, np.uint64)))

    def refs_sum(self, catalog_ids: npt.NDArray[np.int64]) -> int:
        """The sum for ``change.refs_sum``; ``catalog_ids`` has the number in the catalog of each staged location."""
        used = np.flatnonzero(self._counts)
        total = (self._sums[used] * location_factors(catalog_ids[used])).sum(dtype=np.uint64)
        return int(total) & SUM_MASK

    def count_into(self, counts: npt.NDArray[np.int64]) -> None:
        """Add the number of references to each staged location to ``counts``, which has a place for each."""
        used = self._counts[: len(counts)]  # the rest was reserved, and is zero
        counts[: len(used)] += used

    def add_rows(self, rows: Iterable[Row]) -> None:
        """Add a few references, one by one: chunk, staged location or None, offset and length."""
        for chunk, location_id, offset, length in rows:
            number = location_id or 0
            self._reserve(number)
            self._counts[number] += 1
            self._sums[number] = (int(self._sums[number]) + extent_hash(chunk, offset, length)) & MASK
            self.rows += 1


def read_tally(txn: Transaction, node_id: int, rows: int) -> Tally:
    """The tally of the ``rows`` references that are staged of an array, read again."""
    tally = Tally()
    if rows < BLOCK_ROWS:
        tally.add_rows(staging.list_refs(txn, node_id))
    else:
        for block in staging.scan_refs(txn, node_id):
            tally.add(*block)
    return tally
