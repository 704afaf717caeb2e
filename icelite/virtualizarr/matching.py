"""Which chunks of which arrays the pieces of an HDF5 file are, that no reference can express.

A masked chunk is found by its first byte, whatever its variable is called now. A dataset whose bytes are in other
files left no reference: it is found by its name, and its place among files that were combined by the arrays beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from icelite.store.references import MISSING
from icelite.virtualizarr.arrays import Column, chunk_shape
from icelite.virtualizarr.hdf5 import Findings, Piece
from icelite.virtualizarr.plan import PlannedGroup, VirtualArray


@dataclass(frozen=True)
class Candidate:
    """An array of one dataset, with what is asked of it for every file."""

    array: VirtualArray
    group: PlannedGroup

    @cached_property
    def holes(self) -> Column:
        """Whether each chunk is neither a reference nor inlined."""
        return self.array.references.missing()

    @cached_property
    def _numbers(self) -> dict[str, Column]:
        codes = self.array.references.codes
        order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[order], np.arange(len(self.array.references.urls) + 1))
        return {url: order[bounds[n] : bounds[n + 1]] for n, url in enumerate(self.array.references.urls)}

    def numbers(self, url: str) -> Column:
        """The numbers of the chunks that are in a file."""
        return self._numbers.get(url, np.empty(0, np.int64))

    @cached_property
    def suspects(self) -> set[str]:
        """The files in which a chunk is as long as its values, although the array has codecs that make it shorter."""
        references, metadata = self.array.references, self.array.metadata
        if len(metadata.codecs) < 2:
            return set()
        size = metadata.data_type.to_native_dtype().itemsize * int(np.prod(chunk_shape(metadata)))
        long = (references.lengths >= size) & (references.codes != MISSING)
        return {references.urls[code] for code in np.unique(references.codes[long])}


def find_masked(candidate: Candidate, url: str, found: Findings) -> Iterator[tuple[int, Piece]]:
    """Yield the numbers of an array's chunks that lack filters in the file."""
    numbers = candidate.numbers(url)
    if found.masked and len(numbers):
        offsets = candidate.array.references.offsets[numbers]
        hits = np.isin(offsets, list(found.masked))
        yield from zip(numbers[hits].tolist(), map(found.masked.__getitem__, offsets[hits].tolist()), strict=True)


def find_detached(candidate: Candidate, found: Findings) -> list[Piece]:
    """The datasets of a file, stored elsewhere, that the array may be; it has no reference to the file."""
    path = f"/{candidate.array.path}"
    name = path.rpartition("/")[2]
    namesakes = [dataset for dataset in found.names if dataset.rpartition("/")[2] == name]
    if not namesakes:  # renamed, if it is one of them
        known = candidate.group.names
        return [
            piece
            for piece in found.detached
            if piece.dataset.rpartition("/")[2] not in known and _is_alike(candidate.array, piece)
        ]
    exact = [dataset for dataset in namesakes if path.endswith(f"/{dataset}")]
    wanted = max(exact, key=len) if exact else namesakes[0] if len(namesakes) == 1 else None
    return [
        piece for piece in found.detached if piece.dataset == wanted or (wanted is None and piece.dataset in namesakes)
    ]


def _is_alike(array: VirtualArray, piece: Piece) -> bool:
    return array.metadata.data_type.to_native_dtype().newbyteorder("=") == piece.dtype.newbyteorder("=") and (
        align(chunk_shape(array.metadata), piece.chunk, piece.shape) is not None
    )


def place(candidate: Candidate, url: str, others: Sequence[Candidate]) -> list[int]:
    """The numbers of an array's holes where, by the arrays beside it, the file's chunk belongs."""
    array = candidate.array
    unit = chunk_shape(array.metadata)
    where = candidate.holes.reshape(array.references.grid)
    for axis, dim in enumerate(array.dims):
        here = np.zeros(array.references.grid[axis], bool)
        known = False
        for other in others:
            if other.group is candidate.group and dim in other.array.dims and len(other.numbers(url)):
                known = True
                starts = np.arange(len(here)) * unit[axis]
                side = other.array.dims.index(dim)
                chunks = np.unique(np.unravel_index(other.numbers(url), other.array.references.grid)[side])
                here |= np.isin(starts // chunk_shape(other.array.metadata)[side], chunks)
        if known:
            where = where & np.expand_dims(here, tuple(n for n in range(where.ndim) if n != axis))
    numbers: list[int] = np.flatnonzero(where).tolist()
    return numbers


def align(target: Sequence[int], chunk: Sequence[int], shape: Sequence[int]) -> tuple[int, ...] | None:
    """``shape`` with as many dimensions as ``target``, if ``chunk`` is ``target`` but for dimensions of length one."""
    aligned: list[int] = []
    rest = list(zip(chunk, shape, strict=True))
    for size in target:
        while rest and rest[0][0] != size and rest[0][0] == 1:
            rest.pop(0)  # was dropped from the array
        if rest and rest[0][0] == size:
            aligned.append(rest.pop(0)[1])
        elif size == 1:
            aligned.append(1)  # was added to the array
        else:
            return None
    return tuple(aligned) if all(size == 1 for size, _ in rest) else None
