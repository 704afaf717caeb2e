"""What an HDF5 dataset is like: whether its chunks can be referenced, its dimensions, its attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from icelite.errors import ErrorKind, InvalidInputError
from icelite.formats.manifests import as_text, build_array, is_fill_value, json_attributes
from icelite.formats.source import SourceFile

# Filters that Zarr has the same codec for, by their HDF5 number: deflate, shuffle, Fletcher-32, Blosc, Zstandard.
_CODECS = {1, 2, 3, 32001, 32015}
_BUILT_IN = {1, 2, 3}
_FILTERS = {4: "szip", 5: "nbit", 6: "scaleoffset", 307: "bzip2", 32000: "lzf", 32001: "blosc", 32004: "lz4"}
_FILTERS |= {32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32017: "sz", 32024: "sz3", 32026: "blosc2"}
_HIDDEN = {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "DIMENSION_LABELS"}
_HIDDEN |= {"_Netcdf4Dimid", "_Netcdf4Coordinates", "_nc3_strict", "_NCProperties"}


def find_reason(source: SourceFile, dataset: Any, file: Any) -> str | None:
    """Why the dataset's chunks cannot be referenced, or None.

    Raises
    ------
    InvalidInputError
        ``missing-package``: it has a filter that only hdf5plugin has, and that is not installed.
    """
    if dataset.shape is None:
        return "it has no values (a null dataspace)"
    if dataset.file.filename != file.filename:
        return "it is in another file (an external link)"
    if dataset.is_virtual:
        return "it is a virtual dataset, with its values in other files"
    properties = dataset.id.get_create_plist()
    if properties.get_external_count():
        return "its values are in another file (external storage)"
    if any(dtype.kind == "O" for dtype in _fields(dataset.dtype)):
        return "its values have a variable length"
    if "_FillValue" in dataset.attrs and not is_fill_value(_plain(dataset.attrs["_FillValue"]), dataset.dtype):
        return "its _FillValue is text, or no value of its type, which Zarr has no form for"
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    for number in filters:
        if number not in _BUILT_IN:
            _check_filter(source, dataset, number)
    unknown = [describe_filter(number) for number in filters if number not in _CODECS]
    return f"Zarr has no codec for the HDF5 filter {', '.join(unknown)}" if unknown else None


def _fields(dtype: np.dtype[Any]) -> Iterator[np.dtype[Any]]:
    if dtype.names:
        for name in dtype.names:
            yield from _fields(dtype[name])
    else:
        yield dtype.base


def describe_filter(number: int) -> str:
    """A filter by name and number."""
    return f"{_FILTERS[number]} ({number})" if number in _FILTERS else f"number {number}"


def _check_filter(source: SourceFile, dataset: Any, number: int) -> None:
    try:
        import hdf5plugin  # noqa: F401  (registers its filters)
    except ImportError:
        if h5py.h5z.filter_avail(number) and number not in _CODECS:
            return
    else:
        if h5py.h5z.filter_avail(number):
            return
    raise InvalidInputError(
        f"variable {dataset.name!r} of {source.url!r} is compressed with the HDF5 filter {describe_filter(number)},"
        " which needs the package 'hdf5plugin' (pip install hdf5plugin) or a plugin of its own; or leave the variable"
        " out (drop_variables=)",
        ErrorKind.MISSING_PACKAGE,
    )


def check_storable(source: SourceFile, dataset: Any) -> None:
    """Check that Zarr has a type for the values, copied or not.

    Raises
    ------
    InvalidInputError
        ``unreferenceable-data``.
    """
    dtype = dataset.dtype
    problem = None
    if h5py.check_vlen_dtype(dtype) in (str, bytes) or dataset.shape is None:
        return
    if h5py.check_vlen_dtype(dtype) is not None:
        problem = f"lists of variable length of {h5py.check_vlen_dtype(dtype)}"
    elif h5py.check_ref_dtype(dtype) is not None:
        problem = "references to other objects of the file"
    elif any(field.kind == "O" for field in _fields(dtype)):
        problem = f"records with fields of variable length ({dtype})"
    elif dtype.kind == "f" and dtype.itemsize > 8:
        problem = f"numbers of {8 * dtype.itemsize} bits"
    if problem:
        raise InvalidInputError(
            f"variable {dataset.name!r} of {source.url!r} holds {problem}, which Zarr cannot store: leave it out"
            " (drop_variables=)",
            ErrorKind.UNREFERENCEABLE_DATA,
        )


def dims_of(datasets: dict[str, Any], phony: list[int]) -> dict[str, tuple[str, ...]]:
    """Names of the dimensions of all datasets of a group.

    Those without a dimension scale are numbered, one for each length, as netCDF does; ``phony`` has the lengths so
    far, in this group and those above it, and is added to.
    """
    return {name: tuple(_dims(dataset, phony)) for name, dataset in datasets.items()}


def _dims(dataset: Any, phony: list[int]) -> Iterator[str]:
    shape = (0,) if dataset.shape is None else dataset.shape
    taken: set[int] = set()
    for axis, size in enumerate(shape):
        scales = [] if dataset.shape is None else list(dataset.dims[axis].values())
        if dataset.shape is not None and h5py.h5ds.is_scale(dataset.id) and len(shape) == 1:
            yield dataset.name.rpartition("/")[2]
        elif scales and scales[0].name:
            yield scales[0].name.rpartition("/")[2]
        else:
            number = next((n for n, length in enumerate(phony) if length == size and n not in taken), len(phony))
            if number == len(phony):
                phony.append(size)
            taken.add(number)
            yield f"phony_dim_{number}"


def text_attributes(dataset: Any) -> dict[str, Any]:
    """The attributes of a dataset that is copied, without those that HDF5 and netCDF4 keep for themselves."""
    attributes = {}
    for name in dataset.attrs:
        if name not in _HIDDEN:
            attributes[name] = _plain(dataset.attrs[name])
    return attributes


def _plain(value: Any) -> Any:
    if isinstance(value, h5py.Empty):
        return ""
    if isinstance(value, bytes):
        return as_text(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "SO":
        texts = [as_text(item) if isinstance(item, bytes) else str(item) for item in value.ravel()]
        return texts[0] if len(texts) == 1 else texts
    if isinstance(value, np.ndarray) and value.size == 1:
        return value.ravel()[0]
    return value


def is_unwritten(dataset: Any) -> bool:
    """Whether it has no values but its fill value, as a netCDF variable that says how a grid is projected."""
    return dataset.shape is not None and not dataset.is_virtual and not dataset.id.get_storage_size()


def unwritten(source: SourceFile, dataset: Any) -> Any:
    """An array without chunks for such a dataset."""
    dtype = np.dtype(dataset.dtype.str)
    return build_array(
        url=source.url,
        shape=dataset.shape,
        chunks=dataset.chunks or dataset.shape,
        dtype=dtype,
        stored=dtype,
        offsets=np.array(0),
        lengths=np.array(0),
        dims=tuple(f"dim_{axis}" for axis in range(dataset.ndim)),
        attributes=json_attributes(text_attributes(dataset), dtype),
        fill_value=dataset.fillvalue,
    )
