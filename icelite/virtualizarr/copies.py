"""Chunks that HDF5 files hold and references cannot express: found, matched to their arrays, copied.

A local file is opened and looked at whole. Of a remote one that costs several requests, so it is looked at only if
its references allow such chunks at all: HDF5 leaves out a filter where it saves nothing, so the chunk is no shorter
than its values; and data in other files leave a hole where an array has no reference to the file.
The copies wait in a temporary file, so that nothing is written before everything was read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.core.array import Array, AsyncArray
from zarr.core.array_spec import ArrayConfig
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import MemoryStore, StorePath

from icelite.catalog.chunks import check_size
from icelite.errors import ErrorKind, IceliteError, InvalidInputError
from icelite.formats.inspection import open_source, read_gap
from icelite.formats.parsed import FileInspection, Gap
from icelite.store.references import MISSING, SHOWN
from icelite.virtualizarr.arrays import Column, chunk_shape
from icelite.virtualizarr.preparation import PreparedGroup, VirtualArray
from icelite.virtualizarr.sources import StampedSources

if TYPE_CHECKING:
    import h5py

_IN_MEMORY = 64 << 20  # bytes of copies; more of them go to a temporary file

Index = tuple[int, ...]


class Copies:
    """Encoded chunks, by the path of their array."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  (closed by `close`)
        self._extents: dict[str, dict[Index, tuple[int, int]]] = {}

    def add(self, path: str, index: Index, data: bytes) -> None:
        """Keep one chunk, at its grid position in what is written."""
        check_size(len(data), f"{index} of {path!r}")
        self._extents.setdefault(path, {})[index] = self._file.tell(), len(data)
        self._file.write(data)

    def chunks(self, path: str) -> Iterator[tuple[Index, bytes]]:
        """The chunks of one array."""
        for index, (offset, length) in self._extents.get(path, {}).items():
            self._file.seek(offset)
            yield index, self._file.read(length)

    def counts(self) -> dict[str, int]:
        """Chunks by array."""
        return {path: len(extents) for path, extents in self._extents.items()}

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()


class Copier:
    """Looks at the files of some groups and copies what they cannot reference.

    Attributes
    ----------
    copies
        What was copied.
    unchecked
        Why a file could not be looked at, by URL.
    """

    def __init__(self, sources: StampedSources, prepared: Sequence[PreparedGroup], *, copy: bool) -> None:
        self._sources = sources
        self._copy = copy
        self._candidates = [_Candidate(array, group) for group in prepared for array in group.virtual()]
        self._faults: list[str] = []
        self.copies = Copies()
        self.unchecked: dict[str, str] = {}

    def run(self) -> None:
        """Copy the chunks, and take their references out of the groups.

        Raises
        ------
        InvalidInputError
            ``invalid-virtual-ref``: for chunks that cannot be copied or, unless ``copy``, for all of them.
        StorageError
            ``virtual-chunk-modified``: a file changed while it was read.
        """
        urls = list(dict.fromkeys(url for one in self._candidates for url in one.array.references.urls))
        suspects = set[str]().union(*(one.suspects for one in self._candidates))
        beside: dict[int, set[str]] = {}  # the files of a group's arrays, by the group's identity
        for one in self._candidates:
            if one.holes.any():
                if id(one.group) not in beside:
                    beside[id(one.group)] = {url for array in one.group.virtual() for url in array.references.urls}
                suspects.update(beside[id(one.group)].difference(one.array.references.urls))
        touched = [url for url in urls if (self._sources.is_local(url) or url in suspects) and self._look(url)]
        if self._faults:
            advice = "" if self._copy else " (on_unreferenceable='raise')"
            raise InvalidInputError(
                f"{len(self._faults)} chunks cannot be referenced{advice}: {'; '.join(self._faults[:SHOWN])}",
                ErrorKind.INVALID_VIRTUAL_REF,
            )
        self._sources.check_unchanged(touched)

    def _look(self, url: str) -> bool:
        """Look at one file; whether it holds anything that cannot be referenced."""
        try:
            found = self._sources.inspect(url, chunks=True)
            matches = list(self._matches(url, found)) if found.unfiltered or found.detached else []
            if not matches:
                return False
            stamp = self._sources.stamps.get(url) or self._sources.access.stamp(url)
            with open_source(self._sources.access, url, stamp) as file:
                for one, number, gap in matches:
                    self._take(url, file, one.array, number, gap)
            return True
        except (IceliteError, ImportError, OSError, RuntimeError) as error:
            if isinstance(error, IceliteError) and error.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED:
                raise
            self.unchecked[url] = str(error)
        return False

    def _matches(self, url: str, found: FileInspection) -> Iterator[tuple[_Candidate, int, Gap]]:
        groups = [one.group for one in self._candidates if len(one.numbers(url))]
        for one in self._candidates:
            yield from ((one, number, gap) for number, gap in _find_unfiltered(one, url, found))
            apart = not len(one.numbers(url)) and any(group is one.group for group in groups)
            gaps = _find_detached(one, found) if found.detached and apart and one.holes.any() else []
            if not gaps:
                continue
            numbers = _find_holes(one, url, self._candidates)
            renamed = one.array.path.rpartition("/")[2] != gaps[0].dataset.rpartition("/")[2]
            if len(gaps) == len(numbers) == 1 and not renamed:
                yield one, numbers[0], gaps[0]
            else:
                self._faults.append(
                    f"variable {one.array.path!r}: the dataset {gaps[0].dataset!r} in {url!r} {gaps[0].problem},"
                    " and it is not certain which chunks it is; write the files one by one, or load the variable"
                    " yourself and put its values into the dataset"
                )

    def _take(self, url: str, file: h5py.File, array: VirtualArray, number: int, gap: Gap) -> None:
        index = array.references.index(number)
        what = f"variable {array.path!r}, chunk {index}: {gap.dataset!r} in {url!r} {gap.problem}"
        if not self._copy:
            self._faults.append(what)
            return
        try:
            self.copies.add(array.path, index, _encode(array.metadata, index, gap, read_gap(file, gap)))
            array.references.codes[number] = MISSING
        except (IceliteError, OSError, ValueError, TypeError, RuntimeError) as error:
            self._faults.append(f"{what}, and cannot be copied: {error}")


def _encode(metadata: ArrayV3Metadata, index: Index, gap: Gap, values: Any) -> bytes:
    """The bytes of a chunk with these values, as the array's codecs write it."""
    unit = chunk_shape(metadata)
    region = tuple(min(size, end - at * size) for at, size, end in zip(index, unit, metadata.shape, strict=True))
    shape = _align(unit, gap.chunk, gap.shape) or _align(region, gap.chunk, gap.shape)
    if shape is None:
        raise ValueError(f"its chunk has the shape {gap.chunk}, the array's {unit}")
    store = MemoryStore()
    config = ArrayConfig.from_dict({"write_empty_chunks": True})
    array = Array(AsyncArray(metadata.update_shape(unit), StorePath(store), config))
    array[tuple(map(slice, shape))] = np.reshape(values, shape)
    data: bytes = store._store_dict[metadata.encode_chunk_key((0,) * len(unit))].to_bytes()
    return data


@dataclass(frozen=True)
class _Candidate:
    """An array of one dataset, with what is asked of it for every file."""

    array: VirtualArray
    group: PreparedGroup

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


def _find_unfiltered(candidate: _Candidate, url: str, found: FileInspection) -> Iterator[tuple[int, Gap]]:
    """Yield the numbers of an array's chunks that lack filters in the file."""
    numbers = candidate.numbers(url)
    if found.unfiltered and len(numbers):
        offsets = candidate.array.references.offsets[numbers]
        hits = np.isin(offsets, list(found.unfiltered))
        yield from zip(numbers[hits].tolist(), map(found.unfiltered.__getitem__, offsets[hits].tolist()), strict=True)


def _find_detached(candidate: _Candidate, found: FileInspection) -> list[Gap]:
    """The datasets of a file, stored elsewhere, that the array may be; it has no reference to the file."""
    path = f"/{candidate.array.path}"
    name = path.rpartition("/")[2]
    namesakes = [dataset for dataset in found.names if dataset.rpartition("/")[2] == name]
    if not namesakes:  # renamed, if it is one of them
        known = candidate.group.names
        return [
            gap
            for gap in found.detached
            if gap.dataset.rpartition("/")[2] not in known and _is_alike(candidate.array, gap)
        ]
    exact = [dataset for dataset in namesakes if path.endswith(f"/{dataset}")]
    wanted = max(exact, key=len) if exact else namesakes[0] if len(namesakes) == 1 else None
    return [gap for gap in found.detached if gap.dataset == wanted or (wanted is None and gap.dataset in namesakes)]


def _is_alike(array: VirtualArray, gap: Gap) -> bool:
    return array.metadata.data_type.to_native_dtype().newbyteorder("=") == gap.dtype.newbyteorder("=") and (
        _align(chunk_shape(array.metadata), gap.chunk, gap.shape) is not None
    )


def _find_holes(candidate: _Candidate, url: str, others: Sequence[_Candidate]) -> list[int]:
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


def _align(target: Sequence[int], chunk: Sequence[int], shape: Sequence[int]) -> tuple[int, ...] | None:
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
