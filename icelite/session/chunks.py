"""Asking about the chunks of an array, and moving them inside it, without touching their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from icelite import types
from icelite.catalog.chunks import as_grid
from icelite.catalog.locations import INLINE
from icelite.change_set import ChangeSet
from icelite.errors import ErrorKind, InvalidInputError, redact
from icelite.metadata import ArrayInfo
from icelite.payload import Payloads
from icelite.types import Chunk, ChunkType, Location, chunk_name, chunk_position

Position = tuple[int, ...]
ChunkBatch = tuple[
    npt.NDArray[np.uint32] | npt.NDArray[np.uint64],
    npt.NDArray[np.uint8],
    list[str],
    npt.NDArray[np.uint64],
    npt.NDArray[np.uint64],
    dict[int, bytes],
]

Row = tuple[str, int, int, int]  # grid position, staged location id, offset and length
Reindex = Callable[[list[int]], Iterable[int] | None]


def as_batch(changes: ChangeSet, payloads: Payloads, path: str, rows: list[Row]) -> ChunkBatch:
    """Some of the rows that `ChunkChanges.refs` gives, as `Session.array_chunk_iterator` hands them on."""
    locations, ndim = changes.chunks.locations, changes.nodes.lookup_array(path)[1].keys.ndim
    inline = {
        row: payloads.read(Chunk(INLINE, offset, length), chunk, None)
        for row, (chunk, location_id, offset, length) in enumerate(rows)
        if location_id == INLINE
    }
    urls = {i: "" if i == INLINE else payloads.url(locations[i - 2]) for i in {row[1] for row in rows}}
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


def list_chunk_refs(changes: ChangeSet, payloads: Payloads, path: str) -> types.ChunkRefs:
    """See `Session.chunk_refs`."""
    entry, info = changes.nodes.lookup_array(path)
    blocks = list(changes.chunks.columns(entry.node.node_id))
    positions = np.concatenate([as_grid(block.chunks, info.keys.ndim, f"array /{path}") for block in blocks])
    ids, offsets, lengths = (np.concatenate(columns) for columns in list(zip(*blocks, strict=True))[1:])
    order = np.lexsort(positions.T[::-1]) if info.keys.ndim else slice(None)
    numbers, row = np.unique(ids[order], return_inverse=True)
    places = [changes.chunks.location(number) for number in numbers.tolist()]
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
        [payloads.url(place) for place in used],
        [_stored(place) for place in used],
    )


def shift_chunks(changes: ChangeSet, path: str, offset: list[int]) -> None:
    """See `Session.shift_array`."""
    node_id, _, grid = _regular_array(changes, path)
    if len(offset) != len(grid):
        raise InvalidInputError(
            f"chunk offset {offset} does not fit the {len(grid)} dimensions of array /{path}",
            ErrorKind.INVALID_CHUNK_INDEX,
        )
    moved: dict[str, tuple[int, int, int]] = {}
    before: list[str] = []
    for chunk, *ref in changes.chunks.refs(node_id):
        before.append(chunk)
        position = [index + step for index, step in zip(chunk_position(chunk), offset, strict=True)]
        if all(0 <= index < size for index, size in zip(position, grid, strict=True)):
            moved[chunk_name(position)] = (ref[0], ref[1], ref[2])
    _replace(changes, node_id, moved, [chunk for chunk in before if chunk not in moved])


def reindex_chunks(changes: ChangeSet, path: str, forward: Reindex, backward: Reindex | None) -> None:
    """See `Session.reindex_array`."""
    node_id, info, _ = _regular_array(changes, path)
    refs = {chunk: (i, offset, length) for chunk, i, offset, length in changes.chunks.refs(node_id)}
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
    _replace(changes, node_id, moved, cleared)


def _regular_array(changes: ChangeSet, path: str) -> tuple[int, ArrayInfo, Position]:
    entry, info = changes.nodes.lookup_array(path)
    if info.grid is None:
        raise InvalidInputError(
            f"array /{path} has no regular chunk grid, so its chunks cannot change places",
            ErrorKind.INVALID_ARRAY_METADATA,
        )
    return entry.node.node_id, info, info.grid


def _replace(changes: ChangeSet, node_id: int, refs: dict[str, tuple[int, int, int]], cleared: list[str]) -> None:
    if refs:
        columns = list(zip(*refs.values(), strict=True))
        with changes.lock, changes.catalog.stage() as txn:
            changes.chunks.set_refs(node_id, list(refs), columns[0], columns[1], columns[2], txn)
    changes.chunks.delete(node_id, cleared)


def _stored(location: Location) -> str:
    return redact(location.path if location.container is None else f"vcc://{location.container}/{location.path}")


def _checked_name(position: Iterable[int], path: str, info: ArrayInfo) -> str:
    target = list(position)
    if len(target) != info.keys.ndim or any(index < 0 for index in target):
        raise InvalidInputError(f"{target} is no chunk of array /{path}", ErrorKind.INVALID_CHUNK_INDEX)
    name = chunk_name(target)
    info.check_position(name, path)
    return name
