"""Asking about the chunks of an array, and moving them inside it, without touching their bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from icelite.catalog.locations import INLINE
from icelite.change_set import ChangeSet
from icelite.errors import ErrorKind, InvalidInputError, NodeNotFoundError
from icelite.keys import check_path
from icelite.metadata import ArrayInfo
from icelite.types import ChunkRef, ChunkType, chunk_name, chunk_position
from icelite.virtual import VirtualAccess

Position = tuple[int, ...]
Reindex = Callable[[list[int]], Iterable[int] | None]


class Chunks:
    """The part of `Session` about the chunks of arrays."""

    access: VirtualAccess
    changes: ChangeSet

    def check_writable(self) -> None:
        """Refuse where this session may not write."""
        raise NotImplementedError

    def get_node_id(self, path: str) -> str:
        """What stays the same when a node is moved; provisional (negative) until the node is committed.

        Raises
        ------
        NodeNotFoundError
            ``node-not-found``.
        """
        bare = check_path(path)
        entry = self.changes.find(bare)
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
        entry, _ = self.changes.lookup_array(check_path(array_path))
        found = self.changes.find_chunk(entry.node.node_id, chunk_name(chunk_coordinates))
        if found is None:
            return ChunkType.uninitialized
        if isinstance(found, bytes) or (isinstance(found, ChunkRef) and found.location_id == INLINE):
            return ChunkType.inline
        return ChunkType.virtual

    async def chunk_coordinates(self, array_path: str, batch_size: int = 1000) -> AsyncIterator[Position]:
        """The grid positions of all chunks that are there; raises as `chunk_type`."""
        entry, _ = self.changes.lookup_array(check_path(array_path))
        for chunk, _ in self.changes.chunk_sizes(entry.node.node_id):
            yield tuple(chunk_position(chunk))

    def all_virtual_chunk_locations(self) -> list[str]:
        """The URL of every virtual chunk, one entry for each chunk, ``vcc://`` and relative ones made absolute."""
        urls: list[str] = []
        for node in self.changes.list_nodes(""):
            urls.extend(self.access.url(location) for location in self.changes.virtual_locations(node.node_id))
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
        for chunk, *ref in self.changes.refs(node_id):
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
        refs = {chunk: (i, offset, length) for chunk, i, offset, length in self.changes.refs(node_id)}
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
        entry, info = self.changes.lookup_array(path)
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
                self.changes.set_refs(node_id, list(refs), columns[0], columns[1], columns[2], txn)
        self.changes.delete_chunks(node_id, cleared)


def _checked_name(position: Iterable[int], path: str, info: ArrayInfo) -> str:
    target = list(position)
    if len(target) != info.keys.ndim or any(index < 0 for index in target):
        raise InvalidInputError(f"{target} is no chunk of array /{path}", ErrorKind.INVALID_CHUNK_INDEX)
    name = chunk_name(target)
    info.check_position(name, path)
    return name
