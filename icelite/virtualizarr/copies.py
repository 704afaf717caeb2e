"""Chunks that HDF5 files hold and references cannot express: found, matched to their arrays, copied.

A local file is opened and looked at whole. Of a remote one that costs several requests, so it is looked at only if
its references allow such chunks at all: HDF5 leaves out a filter where it saves nothing, so the chunk is no shorter
than its values; and data in other files leave a hole where an array has no reference to the file.
The copies wait in a temporary file, so that nothing is written before everything was read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.core.array import Array, AsyncArray
from zarr.core.array_spec import ArrayConfig
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import MemoryStore, StorePath

from icelite.catalog.payloads import check_size
from icelite.errors import ErrorKind, IceliteError, InvalidInputError
from icelite.store.references import MISSING, SHOWN
from icelite.virtualizarr.arrays import chunk_shape
from icelite.virtualizarr.hdf5 import Findings, Piece, inspect, open_hdf5, read_piece
from icelite.virtualizarr.matching import Candidate, align, find_detached, find_masked, place
from icelite.virtualizarr.plan import PlannedGroup, VirtualArray
from icelite.virtualizarr.sources import Sources

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
    """Looks at the files of some plans and copies what they cannot reference.

    Attributes
    ----------
    copies
        What was copied.
    unchecked
        Why a file could not be looked at, by URL.
    """

    def __init__(self, sources: Sources, plans: Sequence[PlannedGroup], *, copy: bool) -> None:
        self._sources = sources
        self._copy = copy
        self._candidates = [Candidate(array, plan) for plan in plans for array in plan.virtual()]
        self._faults: list[str] = []
        self.copies = Copies()
        self.unchecked: dict[str, str] = {}

    def run(self) -> None:
        """Copy the chunks, and take their references out of the plans.

        Raises
        ------
        InvalidInputError
            ``invalid-virtual-ref``: for chunks that cannot be copied or, unless ``copy``, for all of them.
        StorageError
            ``virtual-chunk-modified``: a file changed while it was read.
        """
        urls = list(dict.fromkeys(url for one in self._candidates for url in one.array.references.urls))
        suspects = set[str]().union(*(one.suspects for one in self._candidates))
        for one in self._candidates:
            if one.holes.any():
                suspects.update(set(self._urls_of(one.group)) - set(one.array.references.urls))
        touched = [url for url in urls if (self._sources.is_local(url) or url in suspects) and self._look(url)]
        if self._faults:
            advice = "" if self._copy else " (on_unreferenceable='raise')"
            raise InvalidInputError(
                f"{len(self._faults)} chunks cannot be referenced{advice}: {'; '.join(self._faults[:SHOWN])}",
                ErrorKind.INVALID_VIRTUAL_REF,
            )
        self._sources.check_unchanged(touched)

    def _urls_of(self, group: PlannedGroup) -> list[str]:
        return [url for array in group.virtual() for url in array.references.urls]

    def _look(self, url: str) -> bool:
        """Look at one file; whether it holds anything that cannot be referenced."""
        try:
            stamp = self._sources.stamps.get(url) or self._sources.access.stamp(url)
            with open_hdf5(self._sources.access, url, stamp) as file:
                found = Findings() if file is None else inspect(file)
                for one, number, piece in self._matches(url, found) if found.masked or found.detached else ():
                    self._take(url, file, one.array, number, piece)
                return bool(found.masked or found.detached)
        except (IceliteError, ImportError, OSError, RuntimeError) as error:
            if isinstance(error, IceliteError) and error.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED:
                raise
            self.unchecked[url] = str(error)
        return False

    def _matches(self, url: str, found: Findings) -> Iterator[tuple[Candidate, int, Piece]]:
        groups = [one.group for one in self._candidates if len(one.numbers(url))]
        for one in self._candidates:
            yield from ((one, number, piece) for number, piece in find_masked(one, url, found))
            apart = not len(one.numbers(url)) and any(group is one.group for group in groups)
            pieces = find_detached(one, found) if found.detached and apart and one.holes.any() else []
            if not pieces:
                continue
            numbers = place(one, url, self._candidates)
            renamed = one.array.path.rpartition("/")[2] != pieces[0].dataset.rpartition("/")[2]
            if len(pieces) == len(numbers) == 1 and not renamed:
                yield one, numbers[0], pieces[0]
            else:
                self._faults.append(
                    f"variable {one.array.path!r}: the dataset {pieces[0].dataset!r} in {url!r} {pieces[0].problem},"
                    " and it is not certain which chunks it is; write the files one by one, or load the variable"
                    " yourself and put its values into the dataset"
                )

    def _take(self, url: str, file: h5py.File, array: VirtualArray, number: int, piece: Piece) -> None:
        index = array.references.index(number)
        what = f"variable {array.path!r}, chunk {index}: {piece.dataset!r} in {url!r} {piece.problem}"
        if not self._copy:
            self._faults.append(what)
            return
        try:
            self.copies.add(array.path, index, _encode(array.metadata, index, piece, read_piece(file, piece)))
            array.references.codes[number] = MISSING
        except (IceliteError, OSError, ValueError, TypeError, RuntimeError) as error:
            self._faults.append(f"{what}, and cannot be copied: {error}")


def _encode(metadata: ArrayV3Metadata, index: Index, piece: Piece, values: Any) -> bytes:
    """The bytes of a chunk with these values, as the array's codecs write it."""
    unit = chunk_shape(metadata)
    region = tuple(min(size, end - at * size) for at, size, end in zip(index, unit, metadata.shape, strict=True))
    shape = align(unit, piece.chunk, piece.shape) or align(region, piece.chunk, piece.shape)
    if shape is None:
        raise ValueError(f"its chunk has the shape {piece.chunk}, the array's {unit}")
    store = MemoryStore()
    config = ArrayConfig.from_dict({"write_empty_chunks": True})
    array = Array(AsyncArray(metadata.update_shape(unit), StorePath(store), config))
    array[tuple(map(slice, shape))] = np.reshape(values, shape)
    data: bytes = store._store_dict[metadata.encode_chunk_key((0,) * len(unit))].to_bytes()
    return data
