"""Which steps along a dimension each file has, told from the references of the arrays that have the dimension."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from zarr.core.metadata.v3 import ArrayV3Metadata

from icelite.catalog.chunks import ChunkColumns, as_grid
from icelite.catalog.locations import INLINE, load_locations
from icelite.types import ChunkType
from icelite.virtualizarr.arrays import chunk_shape

if TYPE_CHECKING:
    from icelite.session import Session

Steps: TypeAlias = tuple[int, int]  # half-open


def join_path(group: str, name: str) -> str:
    """The path of an array of a group."""
    return f"{group}/{name}".lstrip("/")


def growing_arrays(arrays: Mapping[str, ArrayV3Metadata], dim: str) -> dict[str, ArrayV3Metadata]:
    """Those of a group's arrays that have the dimension."""
    return {name: array for name, array in arrays.items() if dim in (array.dimension_names or ())}


def count_steps(arrays: Mapping[str, ArrayV3Metadata], dim: str) -> int:
    """The length of a dimension that some of the arrays have; 0 without any."""
    lengths = [array.shape[(array.dimension_names or ()).index(dim)] for array in growing_arrays(arrays, dim).values()]
    return min(lengths, default=0)


def find_extents(session: Session, group: str, arrays: Mapping[str, ArrayV3Metadata], dim: str) -> dict[str, Steps]:
    """The steps of each file that chunks are in, from the first to the last, by location path."""
    found: dict[str, Steps] = {}
    known = _read_paths(session)
    for name, array in growing_arrays(arrays, dim).items():
        path, axis = join_path(group, name), (array.dimension_names or ()).index(dim)
        chunk, length = chunk_shape(array)[axis], array.shape[axis]
        entry, _ = session.changes.nodes.lookup_array(path)
        for block in session.changes.chunks.columns(entry.node.node_id):
            for number, (first, last) in _ranges(block, len(array.shape), axis, path).items():
                if number in known:
                    steps = first * chunk, min((last + 1) * chunk, length)
                    before = found.get(known[number], steps)
                    found[known[number]] = min(before[0], steps[0]), max(before[1], steps[1])
    return found


def _read_paths(session: Session) -> dict[int, str]:
    """The path of each file by its number in columns of chunks, in one query: a group may be in 10,000 files."""
    with session.changes.catalog.read() as txn:
        stored = load_locations(txn)
    staged = enumerate(session.changes.chunks.locations, start=INLINE + 1)
    return {
        **{-number: location.path for number, location in stored.items()},
        **{number: location.path for number, location in staged if location.kind == ChunkType.virtual},
    }


def _ranges(block: ChunkColumns, ndim: int, axis: int, path: str) -> dict[int, tuple[int, int]]:
    """The least and the greatest position along an axis of the chunks in each location."""
    kept = np.flatnonzero(block.location_ids != INLINE)
    if not len(kept):
        return {}
    at = as_grid(block.chunks, ndim, f"array /{path}")[kept, axis].astype(np.int64)
    order = np.argsort(block.location_ids[kept], kind="stable")
    numbers, starts = np.unique(block.location_ids[kept][order], return_index=True)
    firsts, lasts = np.minimum.reduceat(at[order], starts), np.maximum.reduceat(at[order], starts)
    return dict(zip(numbers.tolist(), zip(firsts.tolist(), lasts.tolist(), strict=True), strict=True))


def find_sharing(
    session: Session, group: str, arrays: Mapping[str, ArrayV3Metadata], dim: str, paths: Collection[str]
) -> list[str]:
    """The names of arrays without the dimension of which a chunk is in one of these files."""
    sharing = []
    for name in arrays.keys() - growing_arrays(arrays, dim).keys():
        entry, _ = session.changes.nodes.lookup_array(join_path(group, name))
        numbers: set[int] = set()
        for block in session.changes.chunks.columns(entry.node.node_id):
            numbers.update(np.unique(block.location_ids).tolist())
        locations = map(session.changes.chunks.location, numbers)
        if any(location is not None and location.path in paths for location in locations):
            sharing.append(name)
    return sorted(sharing)


def is_referenced(session: Session, block: ChunkColumns) -> bool:
    """Whether any of some chunks is in somebody's file."""
    locations = map(session.changes.chunks.location, np.unique(block.location_ids).tolist())
    return any(location is not None and location.kind == ChunkType.virtual for location in locations)


def is_covered(step: int, extents: Iterable[Steps]) -> bool:
    """Whether any file has a step."""
    return any(start <= step < stop for start, stop in extents)
