"""Asking about the chunks of an array, and moving them inside it, without touching their bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from icelite import types
from icelite.catalog.chunks import as_grid
from icelite.catalog.locations import INLINE
from icelite.change_set import ChangeSet
from icelite.errors import ErrorKind, InvalidInputError, NodeNotFoundError, StorageError, redact
from icelite.keys import check_path
from icelite.metadata import ArrayInfo
from icelite.payload import Payloads
from icelite.types import Chunk, ChunkType, Location, chunk_name, chunk_position
from icelite.virtual import VirtualAccess

Position = tuple[int, ...]
ChunkBatch = tuple[
    npt.NDArray[np.uint32] | npt.NDArray[np.uint64],
    npt.NDArray[np.uint8],
    list[str],
    npt.NDArray[np.uint64],
    npt.NDArray[np.uint64],
    dict[int, bytes],
]
_T = TypeVar("_T")
_POSITIONS_AT_ONCE = 10_000

Reindex = Callable[[list[int]], Iterable[int] | None]


class Chunks:
    """The part of `Session` about the chunks of arrays."""

    access: VirtualAccess
    changes: ChangeSet
    payloads: Payloads

    def check_writable(self) -> None:
        """Refuse where this session may not write."""
        raise NotImplementedError

    @property
    def is_remote(self) -> bool:
        """Whether asking the catalog may wait for a network."""
        raise NotImplementedError

    def get_node_id(self, path: str) -> str:
        """What stays the same when a node is moved; provisional (negative) until the node is committed.

        Raises
        ------
        NodeNotFoundError
            ``node-not-found``.
        """
        bare = check_path(path)
        entry = self.changes.nodes.find(bare)
        if entry is None:
            raise NodeNotFoundError(f"no node at /{bare}", ErrorKind.NODE_NOT_FOUND)
        return str(entry.node.node_id)

    def chunk_type(self, array_path: str, chunk_coordinates: Sequence[int]) -> ChunkType:
        """Where the bytes of a chunk are; `ChunkType.uninitialized` where there is none.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            ``node-not-found``; ``not-an-array``.
        """
        entry, _ = self.changes.nodes.lookup_array(check_path(array_path))
        found = self.changes.chunks.find(entry.node.node_id, chunk_name(chunk_coordinates))
        if found is None:
            return ChunkType.uninitialized
        if found.location is None:
            return ChunkType.native if self.changes.writer.takes(found.length) else ChunkType.inline
        return self.payloads.location(found).kind

    async def chunk_coordinates(self, array_path: str, batch_size: int = 1000) -> AsyncIterator[Position]:
        """The grid positions of all chunks that are there; raises as `chunk_type`."""
        entry, _ = await self.off_loop(self.changes.nodes.lookup_array, check_path(array_path))
        sizes = iter(self.changes.chunks.sizes(entry.node.node_id))
        while some := await asyncio.to_thread(_take, sizes, _POSITIONS_AT_ONCE):
            for chunk, _ in some:
                yield tuple(chunk_position(chunk))

    async def array_chunk_iterator(self, array_path: str, batch_size: int = 100_000) -> AsyncIterator[ChunkBatch]:
        """All references of an array, in batches of aligned columns, as Icechunk gives them.

        Yields
        ------
        tuple
            Grid positions (n x dimensions; uint32, or uint64 beyond 2**32 chunks along one); kinds (uint8, numbers of
            `ChunkType`); URLs, ``""`` for inline chunks; offsets and lengths in bytes (uint64; the offset of an inline
            chunk is 0); and, by row of the batch, the bytes of inline chunks.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            ``node-not-found``; ``not-an-array``, ``invalid-argument``.
        """
        if not 1 <= batch_size < 2**63:
            raise InvalidInputError(f"batch_size={batch_size} must be at least 1", ErrorKind.INVALID_ARGUMENT)
        entry, info = await self.off_loop(self.changes.nodes.lookup_array, check_path(array_path))
        rows = self.changes.chunks.refs(entry.node.node_id)
        while batch := await asyncio.to_thread(_take, rows, batch_size):
            yield await self.off_loop(self._columns, batch, info.keys.ndim, entry.node.path)

    async def off_loop(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call from an event loop what uses the catalog: there if it need not wait, else once more in a thread.

        A remote catalog may always wait, for a network.
        """
        if not self.is_remote:
            try:
                return self.changes.catalog.try_now(function, *arguments)
            except StorageError as error:
                if error.kind != ErrorKind.BUSY:
                    raise
        return await asyncio.to_thread(function, *arguments)

    def _columns(self, rows: list[tuple[str, int, int, int]], ndim: int, path: str) -> ChunkBatch:
        locations = self.changes.chunks.locations
        inline = {
            row: self.payloads.read(Chunk(INLINE, offset, length), chunk, None)
            for row, (chunk, location_id, offset, length) in enumerate(rows)
            if location_id == INLINE
        }
        urls = {i: "" if i == INLINE else self.payloads.url(locations[i - 2]) for i in {row[1] for row in rows}}
        kinds = [ChunkType.inline if row[1] == INLINE else locations[row[1] - 2].kind for row in rows]
        offsets = [0 if row[1] == INLINE else row[2] for row in rows]
        return (
            as_grid([row[0] for row in rows], ndim, f"array /{path}"),
            np.array(kinds, dtype=np.uint8),
            [urls[row[1]] for row in rows],
            np.array(offsets, dtype=np.uint64),
            np.array([row[3] for row in rows], dtype=np.uint64),
            inline,
        )

    def chunk_refs(self, array_path: str) -> types.ChunkRefs:
        """Where all chunks of an array are, uncommitted ones included, as columns for numpy and pandas.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            ``node-not-found``; ``not-an-array``.
        """
        path = check_path(array_path)
        entry, info = self.changes.nodes.lookup_array(path)
        blocks = list(self.changes.chunks.columns(entry.node.node_id))
        positions = np.concatenate([as_grid(block.chunks, info.keys.ndim, f"array /{path}") for block in blocks])
        ids, offsets, lengths = (np.concatenate(columns) for columns in list(zip(*blocks, strict=True))[1:])
        order = np.lexsort(positions.T[::-1]) if info.keys.ndim else slice(None)
        numbers, row = np.unique(ids[order], return_inverse=True)
        places = [self.changes.chunks.location(number) for number in numbers.tolist()]
        used: dict[Location, int] = {}
        source = np.array([-1 if at is None else used.setdefault(at, len(used)) for at in places], dtype=np.int64)[row]
        kinds = np.array([ChunkType.inline if at is None else at.kind for at in places], dtype=np.uint8)[row]
        return types.ChunkRefs(
            path,
            positions[order],
            kinds,
            source,
            np.where(source < 0, 0, offsets[order]).astype(np.uint64),
            lengths[order].astype(np.uint64),
            [self.payloads.url(place) for place in used],
            [_stored(place) for place in used],
        )

    def all_virtual_chunk_locations(self) -> list[str]:
        """The URL of every virtual chunk, one entry for each chunk, ``vcc://`` and relative ones made absolute."""
        urls: list[str] = []
        for node in self.changes.nodes.list_below(""):
            urls.extend(self.access.url(location) for location in self.changes.chunks.virtual_locations(node.node_id))
        return urls

    def shift_array(self, array_path: str, chunk_offset: Iterable[int]) -> None:
        """Move every chunk of an array by whole chunks.

        Chunks that leave the grid are dropped; positions that nothing moves to read as fill values.

        Parameters
        ----------
        chunk_offset
            Chunks along each dimension, negative towards the origin.

        Raises
        ------
        NodeNotFoundError, InvalidInputError, ReadOnlyError
            ``node-not-found``; ``not-an-array``, ``invalid-chunk-index``; ``read-only-session``.
        """
        offset = list(chunk_offset)
        path, node_id, _, grid = self._regular_array(array_path)
        if len(offset) != len(grid):
            raise InvalidInputError(
                f"chunk offset {offset} does not fit the {len(grid)} dimensions of array /{path}",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
        moved: dict[str, tuple[int, int, int]] = {}
        before: list[str] = []
        for chunk, *ref in self.changes.chunks.refs(node_id):
            before.append(chunk)
            position = [index + step for index, step in zip(chunk_position(chunk), offset, strict=True)]
            if all(0 <= index < size for index, size in zip(position, grid, strict=True)):
                moved[chunk_name(position)] = (ref[0], ref[1], ref[2])
        self._replace(node_id, moved, [chunk for chunk in before if chunk not in moved])

    def reindex_array(self, array_path: str, forward: Reindex, backward: Reindex | None = None) -> None:
        """Move the existing chunks of an array by a function of their positions.

        Parameters
        ----------
        forward
            Grid position to the new one, or None to leave the chunk where it is.
        backward
            Its inverse: where a position's new chunk comes from. A position of an existing chunk for which it gives
            None, or a position without a chunk, is cleared; without ``backward`` it keeps what it has.

        Raises
        ------
        NodeNotFoundError, InvalidInputError, ReadOnlyError
            As `shift_array`; ``invalid-chunk-index`` also when ``forward`` leaves the grid.
        """
        path, node_id, info, _ = self._regular_array(array_path)
        refs = {chunk: (i, offset, length) for chunk, i, offset, length in self.changes.chunks.refs(node_id)}
        moved: dict[str, tuple[int, int, int]] = {}
        for chunk, ref in refs.items():
            target = forward(chunk_position(chunk))
            if target is not None:
                name = _checked_name(target, path, info)
                moved[name] = ref
        cleared: list[str] = []
        for chunk in refs if backward is not None else ():
            source = backward(chunk_position(chunk)) if backward is not None else None
            if chunk not in moved and (source is None or chunk_name(source) not in refs):
                cleared.append(chunk)
        self._replace(node_id, moved, cleared)

    def _regular_array(self, array_path: str) -> tuple[str, int, ArrayInfo, Position]:
        self.check_writable()
        path = check_path(array_path)
        entry, info = self.changes.nodes.lookup_array(path)
        if info.grid is None:
            raise InvalidInputError(
                f"array /{path} has no regular chunk grid, so its chunks cannot change places",
                ErrorKind.INVALID_ARRAY_METADATA,
            )
        return path, entry.node.node_id, info, info.grid

    def _replace(self, node_id: int, refs: dict[str, tuple[int, int, int]], cleared: list[str]) -> None:
        if refs:
            columns = list(zip(*refs.values(), strict=True))
            with self.changes.lock, self.changes.catalog.stage() as txn:
                self.changes.chunks.set_refs(node_id, list(refs), columns[0], columns[1], columns[2], txn)
        self.changes.chunks.delete(node_id, cleared)


def _stored(location: Location) -> str:
    return redact(location.path if location.container is None else f"vcc://{location.container}/{location.path}")


def _checked_name(position: Iterable[int], path: str, info: ArrayInfo) -> str:
    target = list(position)
    if len(target) != info.keys.ndim or any(index < 0 for index in target):
        raise InvalidInputError(f"{target} is no chunk of array /{path}", ErrorKind.INVALID_CHUNK_INDEX)
    name = chunk_name(target)
    info.check_position(name, path)
    return name


def _take(items: Iterator[_T], count: int) -> list[_T]:
    return list(islice(items, count))
