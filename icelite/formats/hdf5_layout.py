"""Recognition of an HDF5 dataset: its bytes as the chunks of a Zarr array, or the reason why they cannot be that.

A positive list: each type, storage layout and filter that is named here is known to read alike in HDF5 and in Zarr.
Everything else has a reason, and is copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from h5py import h5d, h5t

from icelite.formats.parsed import Gap, assemble_array, find_metadata, grid_of, relabelled

if TYPE_CHECKING:
    from virtualizarr.manifests import ManifestArray

_FLOATS = tuple(getattr(h5t, f"IEEE_F{bits}{order}") for bits in (16, 32, 64) for order in ("LE", "BE"))
_COMPLEXES = tuple(
    (getattr(h5t, f"COMPLEX_IEEE_F{bits}{order}"), np.dtype(f"{mark}c{bits // 4}"))
    for bits in (32, 64)
    for order, mark in (("LE", "<"), ("BE", ">"))
    if hasattr(h5t, "COMPLEX_IEEE_F32LE")  # HDF5 2
)
_BITFIELDS = tuple(
    (getattr(h5t, f"STD_B{8 * size}{order}"), np.dtype(f"{mark}u{size}"))
    for size in (1, 2, 4, 8)
    for order, mark in (("LE", "<"), ("BE", ">"))
)
_DEFLATE, _SHUFFLE, _FLETCHER32, _BLOSC, _ZSTD = 1, 2, 3, 32001, 32015
_COMPRESSORS = (_DEFLATE, _BLOSC, _ZSTD)
_CHECKSUM_BYTES = 4
_BLOSC_NAMES = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
_NAMES = {4: "szip", 5: "nbit", 6: "scaleoffset", 307: "bzip2", 32000: "lzf", 32001: "blosc", 32004: "lz4"}
_NAMES |= {32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32017: "sz", 32024: "sz3", 32026: "blosc2"}
_NAMES |= {305: "lzo", _DEFLATE: "deflate", _SHUFFLE: "shuffle", _FLETCHER32: "fletcher32"}

_TEXT: Any = np.dtypes.StringDType()

Filter = tuple[int, tuple[int, ...]]  # number and settings


@dataclass(frozen=True, slots=True)
class DatasetLayout:
    """A dataset that was recognised in full.

    Attributes
    ----------
    chunks
        Elements of the Zarr array's chunks.
    codecs
        Zarr codecs that do what the HDF5 filters do, in their order.
    where
        Grid positions of the chunks that are stored, one a row; None for the only chunk of a contiguous dataset.
    offsets, lengths
        Their bytes in the file.
    gaps
        Chunks that were stored otherwise, by their first byte; their references have to be replaced.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    fill_value: Any
    codecs: list[dict[str, Any]]
    where: np.ndarray[Any, Any] | None
    offsets: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any]
    gaps: Mapping[int, Gap] = field(default_factory=dict)

    def build(
        self, url: str, shape: tuple[int, ...], dims: tuple[str, ...], attributes: dict[str, Any]
    ) -> ManifestArray:
        """An array of references, grown to ``shape`` with chunks that are missing."""
        grid = grid_of(shape, self.chunks)
        paths: Any = np.full(grid, "", _TEXT)
        offsets, lengths = np.zeros(grid, np.uint64), np.zeros(grid, np.uint64)
        if len(self.offsets):
            at: Any = (0,) * len(grid) if self.where is None else tuple(self.where.T)
            paths[at], offsets[at], lengths[at] = url, *self._extents()
        metadata = find_metadata(shape, self.chunks, self.dtype, self.fill_value, self.codecs, dims)
        return assemble_array(relabelled(metadata, attributes, dims), paths, offsets, lengths)

    def _extents(self) -> tuple[Any, Any]:
        return (self.offsets[0], self.lengths[0]) if self.where is None else (self.offsets, self.lengths)


class Recognition:
    """Finds the layouts of datasets; what they have in common is worked out once."""

    def __init__(self) -> None:
        self._dtypes: dict[bytes, np.dtype[Any] | str] = {}  # by HDF5's own description of a type
        self._codecs: dict[tuple[Any, ...], list[dict[str, Any]] | str] = {}

    def find_layout(
        self, path: str, id_: h5d.DatasetID, shape: tuple[int, ...] | None, plist: Any
    ) -> DatasetLayout | str:
        """The layout of a dataset at a path of its file, or why its bytes cannot be referenced.

        Parameters
        ----------
        shape
            None for a null dataspace.
        plist
            The dataset's creation properties.
        """
        if shape is None:
            return "it has no values (a null dataspace)"
        storage = plist.get_layout()
        if storage == h5d.VIRTUAL:
            return "it is a virtual dataset, with its values in other files"
        if plist.get_external_count():
            return "its values are in another file (external storage)"
        if storage == h5d.COMPACT:
            return "its values are in the file's metadata (compact storage)"
        if storage not in (h5d.CONTIGUOUS, h5d.CHUNKED):
            return f"its storage layout has the number {storage}, which is unknown"
        kind = id_.get_type()
        dtype = self._dtype(kind)
        if isinstance(dtype, str):
            return dtype
        filters = filters_of(plist)
        size = kind.get_size()
        codecs = self._find_codecs(filters, size)
        if isinstance(codecs, str):
            return codecs
        layout = _find_chunks(path, id_, plist, shape, size, dtype, codecs)
        return layout if isinstance(layout, str) else _with_inner(layout)

    def _dtype(self, kind: Any) -> np.dtype[Any] | str:
        described = kind.encode()
        if described not in self._dtypes:
            self._dtypes[described] = find_dtype(kind)
        return self._dtypes[described]

    def _find_codecs(self, filters: list[Filter], size: int) -> list[dict[str, Any]] | str:
        key = (*filters, size)
        if key not in self._codecs:
            self._codecs[key] = find_codecs(filters, size)
        return self._codecs[key]


def filters_of(plist: Any) -> list[Filter]:
    """The filters of a dataset by number and settings, in the order in which they are applied in writing."""
    found = [plist.get_filter(index) for index in range(plist.get_nfilters())]
    return [(number, tuple(settings)) for number, _, settings, _ in found]


def describe_filter(number: int) -> str:
    """A filter by name and number."""
    return f"{_NAMES[number]} ({number})" if number in _NAMES else f"number {number}"


def find_dtype(kind: Any) -> np.dtype[Any] | str:
    """The numpy type that has the same bytes as an HDF5 type, or why there is none."""
    number = kind.get_class()
    if number == h5t.ENUM:
        whole = find_dtype(kind.get_super())
        return np.dtype(bool) if isinstance(whole, np.dtype) and _is_bool(kind) else whole
    if number == h5t.INTEGER:
        return _find_integer(kind)
    if number == h5t.FLOAT:
        known = any(kind.equal(each) for each in _FLOATS)
        return np.dtype(kind.dtype) if known else "its floating-point numbers have a layout that numpy has no type for"
    if number == h5t.STRING:
        return _find_string(kind)
    if number == h5t.OPAQUE:
        return _find_opaque(kind)
    if number == h5t.COMPOUND:
        return _find_record(kind)
    if number == h5t.ARRAY:
        base = find_dtype(kind.get_super())
        return base if isinstance(base, str) else np.dtype((base, kind.get_array_dims()))
    for each, dtype in (*_COMPLEXES, *_BITFIELDS):
        if kind.equal(each):
            return dtype
    return f"its values are of a type that Zarr has no form for (HDF5 class {number})"


def _is_bool(kind: Any) -> bool:
    return bool(kind.dtype == np.dtype(bool))


def _find_integer(kind: Any) -> np.dtype[Any] | str:
    size = kind.get_size()
    if size not in (1, 2, 4, 8) or kind.get_precision() != 8 * size or kind.get_offset():
        return f"its integers use {kind.get_precision()} of {8 * size} bits, from bit {kind.get_offset()} on"
    if size > 1 and kind.get_order() not in (h5t.ORDER_LE, h5t.ORDER_BE):
        return f"its integers have the byte order {kind.get_order()}"
    order = ">" if kind.get_order() == h5t.ORDER_BE else "<"
    return np.dtype(f"{order}{'i' if kind.get_sign() == h5t.SGN_2 else 'u'}{size}")


def _find_string(kind: Any) -> np.dtype[Any] | str:
    if kind.is_variable_str():
        return "its values have a variable length"
    size, padding = kind.get_size(), kind.get_strpad()
    if padding == h5t.STR_NULLPAD or (padding == h5t.STR_NULLTERM and size == 1):
        return np.dtype(f"S{size}")
    return "its strings are padded with blanks" if padding == h5t.STR_SPACEPAD else "its strings end with a NUL"


def _find_opaque(kind: Any) -> np.dtype[Any] | str:
    dtype = kind.dtype
    if dtype.kind == "V" and not dtype.names and dtype.itemsize == kind.get_size():
        return np.dtype(f"V{dtype.itemsize}")
    return f"its values are opaque, and numpy has them as {dtype}"


def _find_record(kind: Any) -> np.dtype[Any] | str:
    members = [kind.get_member_type(index) for index in range(kind.get_nmembers())]
    offsets = [kind.get_member_offset(index) for index in range(kind.get_nmembers())]
    sizes = [member.get_size() for member in members]
    if offsets != [sum(sizes[:index]) for index in range(len(sizes))] or sum(sizes) != kind.get_size():
        return "its records have gaps, or fields in another order than their bytes"
    types: list[np.dtype[Any]] = []
    for member in members:
        dtype = find_dtype(member)
        if isinstance(dtype, str):
            return f"of its records: {dtype}"
        types.append(dtype)
    if kind.dtype.kind == "c":
        alike = len(types) == 2 and types[0] == types[1]
        return np.dtype(f"{_order(types[0])}c{kind.get_size()}") if alike else "its complex numbers are of two types"
    if any(dtype.kind not in "iufbS" or _order(dtype) == ">" or dtype.subdtype for dtype in types):
        return "its records have fields that Zarr has no form for"
    names = [kind.get_member_name(index).decode(errors="surrogateescape") for index in range(len(types))]
    return np.dtype(list(zip(names, types, strict=True)))


def _order(dtype: Any) -> str:
    return ">" if dtype.byteorder == ">" else "<"


def find_codecs(filters: Sequence[Filter], size: int) -> list[dict[str, Any]] | str:
    """Zarr codecs that undo these filters, or why there are none.

    Shuffling comes first, or behind a checksum that is whole elements, because HDF5 leaves bytes that do not fill an
    element where they are and numcodecs refuses them; there is one compressor, as numcodecs needs to know what comes
    out; a checksum may be before or after it.

    Parameters
    ----------
    size
        Bytes of an element.
    """
    unknown = [number for number, _ in filters if number not in (_SHUFFLE, _FLETCHER32, *_COMPRESSORS)]
    if unknown:
        return f"Zarr has no codec for the HDF5 filter {', '.join(map(describe_filter, unknown))}"
    numbers = [number for number, _ in filters]
    rest = numbers[1:] if numbers[:1] == [_SHUFFLE] else numbers
    if numbers[:2] == [_FLETCHER32, _SHUFFLE] and _CHECKSUM_BYTES % size == 0:
        rest = [_FLETCHER32, *numbers[2:]]
    if _SHUFFLE in rest or sum(number in _COMPRESSORS for number in rest) > 1 or rest.count(_FLETCHER32) > 1:
        return f"Zarr's codecs cannot undo the HDF5 filters {', '.join(map(describe_filter, numbers))} in this order"
    codecs = [_find_codec(number, settings, size) for number, settings in filters]
    problem = next((codec for codec in codecs if isinstance(codec, str)), None)
    return problem if problem is not None else [codec for codec in codecs if isinstance(codec, dict)]


def _find_codec(number: int, settings: tuple[int, ...], size: int) -> dict[str, Any] | str:
    if number == _DEFLATE and settings:
        return {"name": "numcodecs.zlib", "configuration": {"level": settings[0]}}
    if number == _SHUFFLE and settings[:1] == (size,):
        return {"name": "numcodecs.shuffle", "configuration": {"elementsize": size}}
    if number == _FLETCHER32:
        return {"name": "numcodecs.fletcher32", "configuration": {}}
    if number == _ZSTD:
        return {"name": "numcodecs.zstd", "configuration": {"level": settings[0] if settings else 3, "checksum": False}}
    if number == _BLOSC and len(settings) == 7 and settings[6] < len(_BLOSC_NAMES) and settings[5] < 3:
        found = {"cname": _BLOSC_NAMES[settings[6]], "clevel": settings[4], "shuffle": settings[5]}
        return {"name": "numcodecs.blosc", "configuration": {**found, "blocksize": settings[3]}}
    return f"the settings {settings} of its HDF5 filter {describe_filter(number)} are unknown"


def _find_chunks(
    path: str,
    id_: h5d.DatasetID,
    plist: Any,
    shape: tuple[int, ...],
    size: int,
    dtype: np.dtype[Any],
    codecs: list[Any],
) -> DatasetLayout | str:
    fill = _fill_value(plist, dtype)
    nothing = np.empty(0, np.int64)
    if plist.get_layout() == h5d.CONTIGUOUS:
        offset, length, found = id_.get_offset(), math.prod(shape) * dtype.itemsize, id_.get_storage_size()
        chunks = tuple(max(size, 1) for size in shape)
        if offset is None or not found:
            return DatasetLayout(shape, chunks, dtype, fill, codecs, None, nothing, nothing)
        if found != length:
            return f"it has {found} bytes where {length} are expected"
        return DatasetLayout(shape, chunks, dtype, fill, codecs, None, np.array([offset]), np.array([length]))
    stored: list[Any] = []
    id_.chunk_iter(stored.append)
    unit = plist.get_chunk()
    chunks, length = _trimmed(unit, shape, bool(codecs)), math.prod(unit) * dtype.itemsize
    if not codecs and any(chunk.size != length for chunk in stored):
        return "its chunks are not as long as their values"
    gaps = find_gaps(path, id_, size, stored, plist) if codecs else {}
    count = len(stored)
    where = np.array([chunk.chunk_offset for chunk in stored], np.int64).reshape(count, len(shape)) // unit
    offsets = np.fromiter((chunk.byte_offset for chunk in stored), np.int64, count)
    lengths = np.fromiter((chunk.size for chunk in stored), np.int64, count)
    if chunks != unit:
        lengths[:] = math.prod(chunks) * dtype.itemsize
    return DatasetLayout(shape, chunks, dtype, fill, codecs, where, offsets, lengths, gaps)


def _trimmed(unit: tuple[int, ...], shape: tuple[int, ...], filtered: bool) -> tuple[int, ...]:
    """The chunk, cut to an array that it is longer than, so that others can be appended: its first bytes are enough.

    Only along the first dimension, and of a chunk without filters, are those the first bytes.
    """
    cut = tuple(min(size, max(length, 1)) for size, length in zip(unit, shape, strict=True))
    return unit if filtered or cut[1:] != unit[1:] else cut


def _fill_value(plist: Any, dtype: np.dtype[Any]) -> Any:
    """The value where nothing was written: zero if the file has none, None for one of several elements."""
    value = np.zeros((), dtype.base)
    if plist.fill_value_defined() == h5d.FILL_VALUE_USER_DEFINED:
        if dtype.subdtype is not None:
            return None
        plist.get_fill_value(value)
    return value[()].item() if dtype.names is None else value[()]


def _with_inner(layout: DatasetLayout) -> DatasetLayout | str:
    """The layout of elements that are arrays, whose dimensions become the last ones of the Zarr array."""
    inner = layout.dtype.shape
    if not inner:
        return layout
    if layout.gaps or layout.fill_value is None:
        return "its elements are arrays, with a fill value or chunks without filters"
    where = layout.where
    if where is not None:
        where = np.concatenate([where, np.zeros((len(where), len(inner)), np.int64)], axis=1)
    return DatasetLayout(
        (*layout.shape, *inner),
        (*layout.chunks, *inner),
        layout.dtype.base,
        layout.fill_value,
        layout.codecs,
        where,
        layout.offsets,
        layout.lengths,
    )


def find_gaps(path: str, id_: h5d.DatasetID, size: int, stored: Sequence[Any], plist: Any) -> dict[int, Gap]:
    """The chunks that lack filters, by their first byte.

    Parameters
    ----------
    size
        Bytes of an element in the file.
    stored
        All chunks of a dataset that has filters, as h5py's ``chunk_iter`` gives them.
    """
    unit = plist.get_chunk()
    bare = [chunk for chunk in stored if chunk.filter_mask]
    length = math.prod(unit) * size
    whole = [chunk for chunk in stored if chunk.size == length and not chunk.filter_mask]
    if not bare and not whole:
        return {}
    dataset = h5py.Dataset(id_)
    filters = [plist.get_filter(index) for index in range(plist.get_nfilters())]
    found = {}
    for chunk in bare:
        left = [each for index, each in enumerate(filters) if chunk.filter_mask >> index & 1]
        names = ", ".join(each[3].decode(errors="replace") or str(each[0]) for each in left)
        found[chunk.byte_offset] = gap_of(path, dataset, unit, chunk, f"was stored without its filters {names}")
    for chunk in _find_bare_borders(dataset, whole, unit, dataset.shape):
        problem = "is at the border, where filters are left out"
        found[chunk.byte_offset] = gap_of(path, dataset, unit, chunk, problem)
    return found


def gap_of(path: str, dataset: h5py.Dataset, unit: tuple[int, ...], chunk: Any, problem: str) -> Gap:
    """One chunk as a gap."""
    limits = zip(chunk.chunk_offset, unit, dataset.shape, strict=True)
    shape = tuple(min(size, end - start) for start, size, end in limits)
    return Gap(path, chunk.chunk_offset, shape, unit, dataset.dtype, problem)


def _find_bare_borders(
    dataset: h5py.Dataset, whole: Sequence[Any], unit: tuple[int, ...], shape: tuple[int, ...]
) -> list[Any]:
    """The chunks that reach over the dataset's end, if HDF5 was told to leave out filters there (H5Pset_chunk_opts).

    The file's filter masks do not say so, and h5py does not tell. Such a chunk has exactly the bytes of its values:
    one that has as many and others in them was filtered, and then all were.

    Parameters
    ----------
    whole
        The chunks that have as many bytes as their values.
    """
    dtype = dataset.dtype
    if dtype.hasobject or dtype.itemsize != dataset.id.get_type().get_size():
        return []  # its values do not have the bytes of the file, whatever they are
    ends = [size - size % step for size, step in zip(shape, unit, strict=True)]
    borders = [chunk for chunk in whole if any(at >= end for at, end in zip(chunk.chunk_offset, ends, strict=True))]
    return borders if all(_is_bare(dataset, chunk, unit, shape) for chunk in borders) else []


def _is_bare(dataset: h5py.Dataset, chunk: Any, unit: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    _, data = dataset.id.read_direct_chunk(chunk.chunk_offset)
    inside = tuple(
        slice(0, min(step, size - at)) for at, step, size in zip(chunk.chunk_offset, unit, shape, strict=True)
    )
    region = tuple(slice(at, at + part.stop) for at, part in zip(chunk.chunk_offset, inside, strict=True))
    bare = np.frombuffer(data, dataset.dtype).reshape(unit)[inside]
    return bool(bare.tobytes() == np.ascontiguousarray(dataset[region]).tobytes())
