"""Steps taken out of the arrays of a group, and room made for others: references are renamed, not data.

A chunk that moves as a whole keeps its bytes and gets another grid position. A chunk that a border cuts, where it
holds several steps, is read, and its values are written at their new place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.core.sync import sync

from icelite.archive.extents import Steps, count_steps, growing_arrays, is_referenced, join_path
from icelite.catalog.chunks import as_grid
from icelite.catalog.locations import INLINE
from icelite.errors import ErrorKind, InvalidInputError
from icelite.types import chunk_name
from icelite.virtualizarr.arrays import chunk_shape

if TYPE_CHECKING:
    from icelite.session import Session

_MOST_COPIED = 1 << 30  # bytes of values of one array: more are not copied unasked


@dataclass(frozen=True, slots=True)
class KeptSteps:
    """Stored steps that stay, from ``start`` to before ``stop``, and the step that the first of them becomes."""

    start: int
    stop: int
    target: int

    @property
    def shift(self) -> int:
        """By how many steps they move."""
        return self.target - self.start


def cut_pieces(
    length: int, removed: Sequence[Steps], inserted: Sequence[tuple[int, int]]
) -> tuple[list[KeptSteps], int]:
    """The steps that stay, where some are removed and room is made for others.

    Parameters
    ----------
    removed
        Half-open ranges of steps, none of which overlaps another.
    inserted
        The step before which, and the number of, new steps.

    Returns
    -------
    tuple
        The pieces in order, and the new length.
    """
    borders = {0, length, *(at for steps in removed for at in steps), *(at for at, _ in inserted)}
    pieces: list[KeptSteps] = []
    target, edges = 0, sorted(borders)
    for start, stop in zip(edges, [*edges[1:], length], strict=True):
        target += sum(count for at, count in inserted if at == start)
        if start == stop or any(first <= start < last for first, last in removed):
            continue
        if pieces and pieces[-1].stop == start and pieces[-1].target + start - pieces[-1].start == target:
            pieces[-1] = KeptSteps(pieces[-1].start, stop, pieces[-1].target)
        else:
            pieces.append(KeptSteps(start, stop, target))
        target += stop - start
    return pieces, target


def find_starts(removed: Sequence[Steps], inserted: Sequence[tuple[int, int]]) -> list[int]:
    """Where each of the new steps begin in the end; parameters as for `cut_pieces`, new steps in their order."""
    starts, added = [], 0
    for at, count in inserted:
        gone = sum(min(stop, at) - start for start, stop in removed if start < at)
        starts.append(at - gone + added)
        added += count
    return starts


def splice_steps(
    session: Session,
    group: str,
    arrays: Mapping[str, ArrayV3Metadata],
    dim: str,
    removed: Sequence[Steps],
    inserted: Sequence[tuple[int, int]],
) -> dict[str, int]:
    """Take steps out of all arrays that have a dimension, and make room for new ones, which have to be written then.

    Parameters
    ----------
    removed, inserted
        As for `cut_pieces`.

    Returns
    -------
    dict
        By the name of an array whose chunks are in files: how many of its steps were copied, because a border cuts
        the chunks that they are in.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``: too much would have to be copied.
    StorageError
        A chunk that a border cuts cannot be read.
    """
    pieces, length = cut_pieces(count_steps(arrays, dim), removed, inserted)
    copied = {}
    for name, array in growing_arrays(arrays, dim).items():
        axis = (array.dimension_names or ()).index(dim)
        count = _Splice(session, join_path(group, name), array, axis, pieces, length).run()
        if count:
            copied[name] = count
    return copied


@dataclass(frozen=True, slots=True)
class _Splice:
    """What is done to one array."""

    session: Session
    path: str
    array: ArrayV3Metadata
    axis: int
    pieces: Sequence[KeptSteps]
    length: int

    @property
    def chunk(self) -> int:
        return chunk_shape(self.array)[self.axis]

    def run(self) -> int:
        node_id = self.session.changes.nodes.lookup_array(self.path)[0].node.node_id
        if node_id in self.session.changes.chunks.changed_arrays():
            self.session.changes.chunks.flush()  # or they could not be told from bytes of the catalog
        cut = [piece for whole in self.pieces for piece in self._cut_parts(whole)]
        self._check_size(cut)
        values = [(piece, self._read(piece)) for piece in cut]
        is_virtual = self._move_rows(node_id)
        shape = tuple(self.length if axis == self.axis else size for axis, size in enumerate(self.array.shape))
        for key, value in self.array.update_shape(shape).to_buffer_dict(default_buffer_prototype()).items():
            sync(self.session.store.set(f"{self.path}/{key}", value))
        array = zarr.open_array(self.session.store, path=self.path, mode="r+")
        for piece, some in values:
            array[self._window(piece.target, piece.stop - piece.start)] = some
        for start, stop in () if is_virtual else self._gaps():
            # until they are written: xarray decodes times that are there, and a fill value may be no time
            array[self._window(start, stop - start)] = self.array.data_type.default_scalar()
        return sum(piece.stop - piece.start for piece in cut) if is_virtual else 0

    def _whole_chunks(self, piece: KeptSteps) -> range:
        """The chunks that move with a piece as they are."""
        if piece.shift % self.chunk:
            return range(0)
        is_end = piece.stop == self.array.shape[self.axis] and piece.stop + piece.shift == self.length
        last = -(-piece.stop // self.chunk) if is_end else piece.stop // self.chunk
        return range(-(-piece.start // self.chunk), last)

    def _cut_parts(self, piece: KeptSteps) -> Iterator[KeptSteps]:
        """The parts of a piece that are not whole chunks, and move."""
        if not piece.shift:
            return
        whole = self._whole_chunks(piece)
        edges = [(piece.start, piece.stop)]
        if whole:
            edges = [(piece.start, whole.start * self.chunk), (whole.stop * self.chunk, piece.stop)]
        yield from (KeptSteps(start, stop, start + piece.shift) for start, stop in edges if start < stop)

    def _check_size(self, cut: Sequence[KeptSteps]) -> None:
        other = int(np.prod([size for axis, size in enumerate(self.array.shape) if axis != self.axis], dtype=np.int64))
        steps = sum(piece.stop - piece.start for piece in cut)
        size = steps * other * self.array.data_type.to_native_dtype().itemsize
        if size > _MOST_COPIED:
            raise InvalidInputError(
                f"array {self.path!r} has chunks of {self.chunk} steps, which this would cut: {steps} steps,"
                f" {size} bytes, would have to be copied into the catalog, and at most {_MOST_COPIED} are; add or take"
                " out whole chunks",
                ErrorKind.INVALID_DATASET,
            )

    def _gaps(self) -> Iterator[Steps]:
        """The new steps."""
        end = 0
        for piece in self.pieces:
            if piece.target > end:
                yield end, piece.target
            end = piece.target + piece.stop - piece.start
        if self.length > end:
            yield end, self.length

    def _window(self, start: int, count: int) -> tuple[slice, ...]:
        return tuple(
            slice(start, start + count) if axis == self.axis else slice(None) for axis in range(len(self.array.shape))
        )

    def _read(self, piece: KeptSteps) -> Any:
        array = zarr.open_array(self.session.store, path=self.path, mode="r")
        return array[self._window(piece.start, piece.stop - piece.start)]

    def _targets(self, at: Any) -> Any:
        """The new position of each chunk along the axis; -1 where it goes."""
        targets = np.full(len(at), -1, np.int64)
        for piece in self.pieces:
            whole = self._whole_chunks(piece)
            if not piece.shift:  # a part of a chunk may stay too, and the rest of it is written over
                whole = range(piece.start // self.chunk, -(-piece.stop // self.chunk))
            inside = (at >= whole.start) & (at < whole.stop)
            targets[inside] = at[inside] + piece.shift // self.chunk
        return targets

    def _move_rows(self, node_id: int) -> bool:
        """Rename the references of chunks that move, and delete those that go; whether any was in a file."""
        changes = self.session.changes
        old: set[str] = set()
        new: set[str] = set()
        interned: dict[int, int] = {INLINE: INLINE}
        virtual = False
        for block in list(changes.chunks.columns(node_id)):
            virtual = virtual or is_referenced(self.session, block)
            grid = as_grid(block.chunks, len(self.array.shape), f"array /{self.path}").astype(np.int64)
            targets = self._targets(grid[:, self.axis])
            affected = np.flatnonzero(targets != grid[:, self.axis])
            old.update(block.chunks[row] for row in affected.tolist())
            moved = affected[targets[affected] >= 0]
            if not len(moved):
                continue
            grid[moved, self.axis] = targets[moved]
            names = list(map(chunk_name, grid[moved].tolist()))
            new.update(names)
            for number in np.unique(block.location_ids[moved]).tolist():
                location = changes.chunks.location(number)
                if location is not None:
                    interned[number] = changes.chunks.intern(location)
            ids = [interned[number] for number in block.location_ids[moved].tolist()]
            with changes.lock, changes.catalog.stage() as txn:
                changes.chunks.set_refs(node_id, names, ids, block.offsets[moved], block.lengths[moved], txn)
        changes.chunks.delete(node_id, sorted(old - new))
        return virtual
