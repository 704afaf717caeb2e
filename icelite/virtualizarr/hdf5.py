"""What an HDF5 file holds that a reference cannot express, and its values.

Two things look like data to a parser and are not: a chunk from which HDF5 left out filters (it does so when they
would not make it smaller), which decodes to garbage, and a dataset whose bytes are in other files (external storage,
virtual datasets), of which parsers find no chunk, so that it would read as fill values.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from icelite.errors import ErrorKind, InvalidInputError
from icelite.virtual.urls import existing_path, file_path
from icelite.virtualizarr.originals import SourceFile

if TYPE_CHECKING:
    import h5py

    from icelite.types import SourceStamp
    from icelite.virtual import Source, VirtualAccess

_MAGIC = b"\x89HDF\r\n\x1a\n"
_OTHERS = (b"GRIB", b"CDF", b"II*\0", b"MM\0*", b"SIMPLE")  # no user block begins like that
_WHAT = "chunks that cannot be referenced"  # in place of a chunk's key in messages


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a dataset that has no reference.

    Attributes
    ----------
    dataset
        Its path in the file.
    start, shape
        Elements; not beyond the dataset's end.
    chunk
        The shape that its chunk has in an array: as ``shape``, but for a chunk at the dataset's end.
    problem
        What is wrong with it, to follow its name.
    """

    dataset: str
    start: tuple[int, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    problem: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What one file holds.

    Attributes
    ----------
    names
        The paths of all datasets.
    masked
        Chunks that lack filters, by their first byte in the file.
    detached
        Whole datasets whose bytes are in other files.
    """

    names: set[str] = field(default_factory=set)
    masked: dict[int, Piece] = field(default_factory=dict)
    detached: list[Piece] = field(default_factory=list)


@contextmanager
def open_hdf5(access: VirtualAccess, url: str, stamp: SourceStamp) -> Iterator[h5py.File | None]:
    """The file at ``url``, through the same gates as chunks; None when it is of another format.

    Raises
    ------
    InvalidInputError, StorageError
        As `VirtualAccess.open` and `Source.read`.
    ImportError
        h5py is not installed.
    OSError
        h5py cannot open it.
    """
    location = access.locate(url, stamp=stamp, validate_container=False)
    access.allow(location)  # as writing the reference will
    source = access.open(location, _WHAT)
    if stamp.size is None or not _is_hdf5(source, stamp.size):
        yield None
        return
    import h5py

    if importlib.util.find_spec("hdf5plugin") is not None:
        __import__("hdf5plugin")  # registers more filters with HDF5
    name = os.path.realpath(existing_path(file_path(access.locator(location)))) if source.is_local else None
    # a name lets HDF5 find the files that hold external data; no lock, since whoever writes there must not be stopped
    target = SourceFile(source, stamp.size) if name is None else name
    with h5py.File(target, "r", **({} if name is None else {"locking": False})) as file:
        yield file


def _is_hdf5(source: Source, size: int) -> bool:
    """Whether HDF5's signature is at the start or, in a local file, behind a user block."""
    if size < len(_MAGIC):
        return False
    start = source.read(0, len(_MAGIC), _WHAT)
    if start == _MAGIC or start.startswith(_OTHERS) or not source.is_local:
        return start == _MAGIC
    at = 512
    while at + len(_MAGIC) <= size:
        if source.read(at, len(_MAGIC), _WHAT) == _MAGIC:
            return True
        at *= 2
    return False


def inspect(file: h5py.File) -> Findings:
    """Look at every dataset's layout, and at the chunks of those with filters; no values are read."""
    import h5py

    found = Findings()

    def visit(path: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset):
            return
        plist = node.id.get_create_plist()
        found.names.add(path)
        if plist.get_layout() == h5py.h5d.CHUNKED:
            if plist.get_nfilters():
                found.masked.update(_masked(path, node, plist))
        elif node.shape is not None and (plist.get_external_count() or plist.get_layout() == h5py.h5d.VIRTUAL):
            problem = "is stored in other files" if plist.get_external_count() else "is a view of other files"
            found.detached.append(Piece(path, (0,) * node.ndim, node.shape, node.shape, node.dtype, problem))

    file.visititems(visit)
    return found


def _masked(path: str, node: h5py.Dataset, plist: Any) -> Iterator[tuple[int, Piece]]:
    chunks: list[Any] = []
    node.id.chunk_iter(chunks.append)
    for chunk in (chunk for chunk in chunks if chunk.filter_mask):
        filters = [plist.get_filter(n) for n in range(plist.get_nfilters()) if chunk.filter_mask >> n & 1]
        names = ", ".join(one[3].decode(errors="replace") or str(one[0]) for one in filters)
        limits = zip(chunk.chunk_offset, node.chunks, node.shape, strict=True)
        shape = tuple(min(size, end - start) for start, size, end in limits)
        problem = f"was stored without its filters {names}"
        yield chunk.byte_offset, Piece(path, chunk.chunk_offset, shape, node.chunks, node.dtype, problem)


def read_piece(file: h5py.File, piece: Piece) -> Any:
    """The values of a piece.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``: its data are in a file outside the directory of ``file``, or not there.
    OSError
        HDF5 cannot read it.
    """
    import h5py

    external = _list_files(file, piece)
    _check_files(file, piece, external)
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    if external:
        access.set_efile_prefix(b"${ORIGIN}")  # else HDF5 looks in the working directory
    dataset = h5py.Dataset(h5py.h5d.open(file.id, piece.dataset.encode(), access))
    return dataset[tuple(slice(at, at + size) for at, size in zip(piece.start, piece.shape, strict=True))]


def _list_files(file: h5py.File, piece: Piece) -> list[str]:
    dataset = file[piece.dataset]
    if dataset.is_virtual:
        return [source.file_name for source in dataset.virtual_sources() if source.file_name != "."]
    return [os.fsdecode(name) for name, *_ in dataset.external or ()]


def _check_files(file: h5py.File, piece: Piece, others: list[str]) -> None:
    """Data of other files are copied only from the file's own directory: a stranger's file may name any file."""
    if others and file.driver == "fileobj":
        raise _unreadable(piece, f"the file is remote and names {others[0]!r}")
    directory = os.path.dirname(file.filename)
    for name in others:
        path = os.path.realpath(os.path.join(directory, name))
        if os.path.commonpath([directory, path]) != directory:
            raise _unreadable(piece, f"{name!r} is not under {directory!r}")
        if "%" not in name and not os.path.isfile(path):
            raise _unreadable(piece, f"{name!r} is not there")


def _unreadable(piece: Piece, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"dataset {piece.dataset!r} {piece.problem}, which cannot be read: {why}; load the variable yourself"
        " and put its values into the dataset",
        ErrorKind.INVALID_VIRTUAL_REF,
    )
