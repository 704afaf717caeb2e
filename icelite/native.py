"""`make_native`: variables of a virtual dataset become chunks of the repository itself, in a shape of their own.

Values are copied as they are stored, block by block: packed numbers stay packed, and what decoding needs stays in the
attributes. A block is made of whole new chunks, and as large as its budget allows where that spares reading a source
chunk twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.abc.codec import ArrayArrayCodec, ArrayBytesCodec, BytesBytesCodec
from zarr.core.metadata.v3 import ArrayV3Metadata

from icelite.errors import ErrorKind, InvalidInputError
from icelite.interrupts import heard_interrupts
from icelite.keys import check_path
from icelite.repository import Repository
from icelite.session import Session

if TYPE_CHECKING:
    from icelite.types import Progress

BLOCK_BYTES = 128 << 20  # of values held at once; a single chunk may be larger
_WHOLE = -1  # as a chunk's length: the whole dimension
# Codecs that write what they read, whatever the chunks; an array with any other gets zarr's default ones.
_KEPT_CODECS = frozenset(
    {"bytes", "vlen-utf8", "vlen-bytes", "gzip", "zstd", "blosc", "crc32c", "transpose"}
    | {f"numcodecs.{name}" for name in ("zlib", "gzip", "zstd", "lz4", "blosc", "bz2", "shuffle", "bitshuffle")}
)


@dataclass(frozen=True, slots=True)
class NativeSummary:
    """What `make_native` committed.

    Attributes
    ----------
    snapshot_id
        The new snapshot.
    chunks
        Path of each array to the shape of its chunks.
    bytes
        Bytes of the values, before compression.
    """

    snapshot_id: str
    chunks: Mapping[str, tuple[int, ...]]
    bytes: int

    def __str__(self) -> str:
        arrays = ", ".join(f"{path} in chunks of {' x '.join(map(str, shape))}" for path, shape in self.chunks.items())
        return f"snapshot {self.snapshot_id}: {arrays}; {self.bytes:,} bytes of values"


@heard_interrupts()
def make_native(
    repository: Repository,
    variables: str | Sequence[str],
    *,
    chunks: Mapping[str, int] | None = None,
    group: str | None = None,
    branch: str = "main",
    message: str | None = None,
    dask_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> NativeSummary:
    """Copy variables into the repository, in other chunks, and commit that as one snapshot.

    Afterwards they need none of the files that they referred to. Values are equal to the last bit; attributes,
    dimension names, fill values and known codecs stay. Memory holds a block of at most 128 MiB, or of one chunk where
    that is larger. Data with chunks of their own are not continued by `virtualize`, whose files have others; but
    coordinates that it loads are.

    Parameters
    ----------
    repository
        An open repository that may read the files (``authorize_virtual_chunk_access``).
    variables
        Names of arrays in the group.
    chunks
        Name of a dimension to the length of a chunk in elements; -1 is the whole dimension. Others stay as they are.
    group
        Path of the group; the root by default.
    message
        Of the commit; by default it says what was copied.
    dask_options
        Let dask read and write blocks at the same time, with these options of `dask.compute`, such as
        ``{"scheduler": "processes"}``; an empty mapping takes dask's defaults. It holds a block for each worker.
    progress
        Called with the blocks that were copied and all there are; not with dask.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``: a dimension that no variable has, a length that is none, no variable.
    NodeNotFoundError, RefNotFoundError
        ``node-not-found``, ``not-an-array``; ``branch-not-found``.
    StorageError
        ``virtual-chunk-modified``, ``virtual-chunk-fetch`` and others of reading. Nothing was written.
    ConflictError
        ``commit-conflict``: somebody else committed to the branch meanwhile; run it again.
    """
    names = [variables] if isinstance(variables, str) else list(variables)
    if not names:
        raise _invalid("no variable was named: give one or more of the group")
    session = repository.writable_session(branch)
    paths = [check_path(f"{group or ''}/{name}".strip("/")) for name in dict.fromkeys(names)]
    reader = repository.readonly_session(snapshot_id=session.snapshot_id)
    sources = [_open(reader, path) for path in paths]
    shapes = _chunk_shapes(sources, dict(chunks or {}))
    targets = [_create(session, source, shape) for source, shape in zip(sources, shapes, strict=True)]
    if dask_options is None:
        _copy(sources, targets, progress)
    else:
        _copy_by_dask(sources, targets, dask_options)
    snapshot_id = session.commit(message or f"Copy {', '.join(paths)} into the repository")
    return NativeSummary(snapshot_id, dict(zip(paths, shapes, strict=True)), sum(source.nbytes for source in sources))


def _open(session: Session, path: str) -> zarr.Array[Any]:
    session.changes.nodes.lookup_array(path)  # raises, naming it
    return zarr.open_array(session.store, path=path, mode="r")


def _dims(array: zarr.Array[Any]) -> Sequence[str | None]:
    if isinstance(array.metadata, ArrayV3Metadata):
        return array.metadata.dimension_names or [None] * array.ndim
    names: Any = array.attrs.get("_ARRAY_DIMENSIONS")
    return names if isinstance(names, list) and len(names) == array.ndim else [None] * array.ndim


def _chunk_shapes(arrays: Sequence[zarr.Array[Any]], wanted: Mapping[str, int]) -> list[tuple[int, ...]]:
    known = {name for array in arrays for name in _dims(array) if name is not None}
    for dim, length in wanted.items():
        if dim not in known:
            raise _invalid(f"no variable has the dimension {dim!r} that chunks= names; they have {sorted(known)}")
        given: object = length
        if not isinstance(given, int) or isinstance(given, bool) or (length < 1 and length != _WHOLE):
            raise _invalid(f"chunks={{{dim!r}: {length!r}}} is no length: 1 or more elements, or -1 for all")
    shapes = []
    for array in arrays:
        lengths = [
            chunk if dim is None else wanted.get(dim, chunk)
            for dim, chunk in zip(_dims(array), _stored_chunks(array), strict=True)
        ]
        shapes.append(
            tuple(
                max(size, 1) if length == _WHOLE else length for length, size in zip(lengths, array.shape, strict=True)
            )
        )
    return shapes


def _stored_chunks(array: zarr.Array[Any]) -> tuple[int, ...]:
    """The chunks of an array, or its shards; of an irregular grid the longest along each dimension."""
    try:
        return array.chunks if array.shards is None else array.shards
    except NotImplementedError:  # chunks of several lengths
        return tuple(max(sizes, default=1) for sizes in array.write_chunk_sizes)


def _create(session: Session, source: zarr.Array[Any], chunks: tuple[int, ...]) -> zarr.Array[Any]:
    """The new array in place of the old one, without values."""
    metadata = source.metadata
    options: dict[str, Any] = {}
    if isinstance(metadata, ArrayV3Metadata):
        options["dimension_names"] = metadata.dimension_names
        if {str(codec.to_dict()["name"]) for codec in metadata.codecs} <= _KEPT_CODECS:
            options["filters"] = [codec for codec in metadata.codecs if isinstance(codec, ArrayArrayCodec)]
            options["serializer"] = next(codec for codec in metadata.codecs if isinstance(codec, ArrayBytesCodec))
            options["compressors"] = [codec for codec in metadata.codecs if isinstance(codec, BytesBytesCodec)]
    else:
        options["order"] = metadata.order
    return zarr.create_array(
        session.store,
        name=source.path,
        shape=source.shape,
        chunks=chunks,
        dtype=metadata.dtype,
        fill_value=metadata.fill_value,
        attributes=source.attrs.asdict(),
        zarr_format=metadata.zarr_format,
        overwrite=True,
        config={"write_empty_chunks": not _is_exact(metadata.fill_value)},
        **options,
    )


def _is_exact(fill_value: Any) -> bool:
    """Whether what equals a fill value has its bits: then a chunk of nothing else need not be written."""
    value = np.asarray(fill_value)
    return value.dtype.kind not in "cV" and bool((value == value).all())


# -- block by block -----------------------------------------------------------------------------------------------


def _copy(sources: Sequence[zarr.Array[Any]], targets: Sequence[zarr.Array[Any]], progress: Progress | None) -> None:
    pairs = list(zip(sources, targets, strict=True))
    grids = [_blocks(source, target) for source, target in pairs]
    total, done = sum(math.prod(len(axis) for axis in grid) for grid in grids), 0
    for (source, target), grid in zip(pairs, grids, strict=True):
        for block in product(*grid):
            target[block or ...] = source[block or ...]
            done += 1
            if progress is not None:
                progress(done, total)


def _copy_by_dask(
    sources: Sequence[zarr.Array[Any]], targets: Sequence[zarr.Array[Any]], options: Mapping[str, Any]
) -> None:
    import dask.array

    from icelite.dask import store_dask

    lazy = [
        dask.array.from_array(source, chunks=_block_shape(source, target), lock=False)  # type: ignore[no-untyped-call]
        for source, target in zip(sources, targets, strict=True)
    ]
    store_dask(sources=lazy, targets=targets, **options)


def _blocks(source: zarr.Array[Any], target: zarr.Array[Any]) -> list[list[slice]]:
    """Along each dimension the half-open parts that are copied at once."""
    shape = _block_shape(source, target)
    return [
        [slice(start, min(start + length, size)) for start in range(0, size, length)]
        for length, size in zip(shape, source.shape, strict=True)
    ]


def _block_shape(source: zarr.Array[Any], target: zarr.Array[Any]) -> tuple[int, ...]:
    """A block of whole new chunks, prolonged where that spares most reads of source chunks."""
    sizes, old, new = source.shape, _stored_chunks(source), target.chunks
    block = [min(chunk, max(size, 1)) for chunk, size in zip(new, sizes, strict=True)]
    bytes_of_block = math.prod(block) * source.dtype.itemsize
    for _ in block:
        gains = {}
        for axis, length in enumerate(block):
            fitting = BLOCK_BYTES * length // max(bytes_of_block, 1)
            longer = min(sizes[axis], math.lcm(new[axis], old[axis]))  # no source chunk is read twice
            if longer > fitting:
                longer = fitting // new[axis] * new[axis]
            if longer > length:
                before, after = (_reads(part, old[axis], sizes[axis]) for part in (length, longer))
                gains[axis] = before / after, longer
        best = max(gains, key=lambda axis: gains[axis], default=None)
        if best is None or gains[best][0] <= 1:
            break
        longer = gains[best][1]
        bytes_of_block = bytes_of_block // block[best] * longer
        block[best] = longer
    return tuple(block)


def _reads(length: int, chunk: int, size: int) -> float:
    """How often a source chunk is read along a dimension of some size, on average, by blocks of a length."""
    cuts = -(-size // length) - -(-size // math.lcm(length, chunk))  # borders of blocks inside a chunk
    return 1 + cuts / -(-size // chunk)


def _invalid(message: str) -> InvalidInputError:
    return InvalidInputError(message, ErrorKind.INVALID_ARGUMENT)
