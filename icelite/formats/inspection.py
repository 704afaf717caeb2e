"""What other parsers' references leave out of a file: their datasets are inspected when they are written.

What they take for data and is not: chunks of an HDF5 dataset from which filters were left out (HDF5 does so where they
would not make it smaller, and at the borders if it is told to); values whose type or filters numpy and Zarr have no
form for; and datasets whose bytes are in other files (external storage, virtual datasets) or among the metadata
(compact storage), of which they find no chunk, so that those would read as fill values.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from icelite.errors import ErrorKind, InvalidInputError, StorageError
from icelite.formats.attributes import PACKING_KEYS, Named, packing_attributes
from icelite.formats.parsed import FileInspection, Gap
from icelite.virtual.urls import existing_path, file_path

if TYPE_CHECKING:
    import h5py

    from icelite.types import SourceStamp
    from icelite.virtual import Source, VirtualAccess

_MAGIC = b"\x89HDF\r\n\x1a\n"
_BLOCK_BYTES = 262_144  # read at a time: HDF5 asks for a few hundred bytes here and there
_BLOCKS_KEPT = 64
_WHAT = "what references leave out"  # in place of a chunk's key in messages
_OTHERS = (b"GRIB", b"CDF", b"II*\0", b"MM\0*", b"SIMPLE")  # no user block begins like that


class SourceStream(io.RawIOBase):
    """A source as a stream that can be sought."""

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._size = size
        self._at = 0
        self._block = lru_cache(_BLOCKS_KEPT)(self._read_block)

    def _read_block(self, number: int) -> bytes:
        start = number * _BLOCK_BYTES
        return self._source.read(start, min(_BLOCK_BYTES, self._size - start), _WHAT)

    def readable(self) -> bool:  # noqa: D102  (as in io, also below)
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        if self._at >= self._size:
            return 0
        number, skipped = divmod(self._at, _BLOCK_BYTES)
        data = self._block(number)[skipped : skipped + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def inspect_source(access: VirtualAccess, url: str, stamp: SourceStamp, *, chunks: bool) -> FileInspection:
    """Inspect a file that another parser parsed; nothing is found in formats that keep nothing from references.

    Parameters
    ----------
    chunks
        Whether to look at every chunk of a remote file, which costs requests.

    Raises
    ------
    InvalidInputError, StorageError
        As `VirtualAccess.open` and `Source.read`; ``unreadable-source`` for a file that is damaged.
    ImportError
        h5py is not installed.
    """
    _, source = _open(access, url, stamp)
    try:
        return _inspect(_stream(source, stamp), stamp.size or 0, chunks=chunks or source.is_local)
    except (OSError, RuntimeError, ValueError, LookupError, struct.error) as error:
        raise StorageError(f"source {url!r} cannot be inspected: {error}", ErrorKind.UNREADABLE_SOURCE) from error


@contextmanager
def open_source(access: VirtualAccess, url: str, stamp: SourceStamp) -> Iterator[h5py.File]:
    """The HDF5 file at ``url``, through the same gates as chunks, to read its gaps.

    Raises
    ------
    InvalidInputError, StorageError
        As `VirtualAccess.open` and `Source.read`.
    OSError
        h5py cannot open it.
    """
    import h5py

    from icelite.formats.hdf5 import register_filters

    location, source = _open(access, url, stamp)
    register_filters()
    stream = _stream(source, stamp)
    if not source.is_local:
        with h5py.File(stream, "r") as file:
            yield file
        return
    # a name lets HDF5 find the files that hold external data; no lock, since whoever writes there must not be stopped
    name = os.path.realpath(existing_path(file_path(access.locator(location))))
    try:
        opened = h5py.File(name, "r", locking=False)
    except OSError:  # this process has it open with other locks
        opened = h5py.File(stream, "r")
    with opened as file:
        yield file


def _open(access: VirtualAccess, url: str, stamp: SourceStamp) -> tuple[Any, Source]:
    location = access.locate(url, stamp=stamp, validate_container=False)
    access.allow(location)  # as writing the reference will
    source = access.open(location, _WHAT)
    if stamp.size is None:
        raise StorageError(f"{url!r} is not there", ErrorKind.VIRTUAL_CHUNK_FETCH)
    return location, source


def _stream(source: Source, stamp: SourceStamp) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(SourceStream(source, stamp.size or 0)))


def _inspect(stream: BinaryIO, size: int, *, chunks: bool) -> FileInspection:
    start = stream.read(len(_MAGIC))
    stream.seek(0)
    if start[:3] == b"CDF":
        return _inspect_netcdf3(stream)
    if not _is_hdf5(stream, start, size):
        return FileInspection()
    import h5py

    from icelite.formats.hdf5 import register_filters

    stream.seek(0)
    register_filters()
    with h5py.File(stream, "r") as file:
        return _inspect_hdf5(file, chunks=chunks)


def _is_hdf5(stream: BinaryIO, start: bytes, size: int) -> bool:
    """Whether HDF5's signature is at the start or behind a user block, of which other formats have none."""
    if start == _MAGIC or start.startswith(_OTHERS) or len(start) < len(_MAGIC):
        return start == _MAGIC
    at = 512
    while at + len(_MAGIC) <= size:
        stream.seek(at)
        if stream.read(len(_MAGIC)) == _MAGIC:
            return True
        at *= 2
    return False


def _inspect_netcdf3(stream: BinaryIO) -> FileInspection:
    from icelite.formats.netcdf3 import read_header

    variables = read_header(stream).variables
    return FileInspection(
        packed=tuple((variable.name, packing_attributes(variable.attributes)) for variable in variables)
    )


def _inspect_hdf5(file: h5py.File, *, chunks: bool) -> FileInspection:
    import h5py

    names: list[str] = []
    unfiltered: dict[int, Gap] = {}
    detached: list[Gap] = []
    packed: list[Named] = []

    def visit(path: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset):
            return
        names.append(path)
        attributes = {key: node.attrs[key] for key in PACKING_KEYS if key in node.attrs}
        packed.append((path.rpartition("/")[2], packing_attributes(attributes)))
        if node.shape is None:
            return
        problem = _find_detachment(node)
        if problem:
            detached.append(Gap(path, (0,) * node.ndim, node.shape, node.shape, node.dtype, problem))
        elif chunks:
            unfiltered.update(_find_gaps(path, node))

    file.visititems(visit)
    return FileInspection(frozenset(names), unfiltered, tuple(detached), tuple(packed), chunks)


def _find_detachment(dataset: h5py.Dataset) -> str | None:
    from h5py import h5d

    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5d.VIRTUAL:
        return "is a view of other files"
    if plist.get_layout() == h5d.COMPACT:
        return "is stored among the file's metadata"
    return "is stored in other files" if plist.get_external_count() else None


def _find_gaps(path: str, dataset: h5py.Dataset) -> Iterator[tuple[int, Gap]]:
    """The chunks that a reference misreads, by their first byte: all of a dataset that is not recognised."""
    from icelite.formats.hdf5_layout import Recognition, gap_of

    layout = Recognition().find_layout(path, dataset.id, dataset.shape, dataset.id.get_create_plist())
    if not isinstance(layout, str):
        yield from layout.gaps.items()
        return
    problem = f"cannot be referenced: {layout}"
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        if offset is not None:
            yield offset, Gap(path, (0,) * dataset.ndim, dataset.shape, dataset.shape, dataset.dtype, problem)
        return
    stored: list[Any] = []
    dataset.id.chunk_iter(stored.append)
    for chunk in stored:
        yield chunk.byte_offset, gap_of(path, dataset, dataset.chunks, chunk, problem)


def read_gap(file: h5py.File, gap: Gap) -> Any:
    """The values of a gap.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``: its data are in a file outside the directory of ``file``, or not there.
    OSError
        HDF5 cannot read it.
    """
    from icelite.formats.hdf5 import find_problem_elsewhere, reopened

    dataset = reopened(file, gap.dataset)
    why = find_problem_elsewhere(file, dataset)
    if why is not None:
        raise InvalidInputError(
            f"dataset {gap.dataset!r} {gap.problem}, which cannot be read: {why}; load the variable yourself"
            " and put its values into the dataset",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    return dataset[tuple(slice(at, at + size) for at, size in zip(gap.start, gap.shape, strict=True))]
