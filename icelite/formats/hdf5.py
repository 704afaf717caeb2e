"""HDF5 and netCDF4: VirtualiZarr's ``HDFParser`` for what can be referenced, h5py for what must be copied.

Every dataset is looked at with h5py first, because the parser would read some as fill values without a word: external
storage, virtual datasets, external links, dimensions that grew in one variable only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import xarray as xr

from icelite.formats.hdf5_datasets import (
    check_storable,
    dims_of,
    find_reason,
    is_unwritten,
    text_attributes,
    unwritten,
)
from icelite.formats.manifests import is_fill_value, packing_attributes, with_dims
from icelite.formats.parsed import Copied, ParsedGroup, lazy_copy, no_group
from icelite.formats.source import SourceFile, describe
from icelite.types import SourceStamp

_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
_PREFIX = "_nc4_non_coord_"  # netCDF4 marks so a variable that has a dimension's name and is not its coordinate


def parse(
    source: SourceFile, stamp: SourceStamp, group: str, dropped: Collection[str], whole_tree: bool
) -> ParsedGroup:
    """Parse one group, and with ``whole_tree`` all below it.

    Raises
    ------
    InvalidInputError
        ``invalid-argument`` for a group that is not there, ``unreferenceable-data`` for values that Zarr cannot
        store at all, ``missing-package`` for a filter that only hdf5plugin has.
    """
    with _opened(source) as file:
        node = file.get(group or "/")
        if not isinstance(node, h5py.Group):
            groups = [name for name, member in file.items() if isinstance(member, h5py.Group)]
            raise no_group(source, group, groups)
        return _parse_group(source, stamp, node, frozenset(dropped), whole_tree, [])


@contextmanager
def _opened(source: SourceFile) -> Iterator[Any]:
    if source.path is not None:
        with h5py.File(source.path, "r") as file:
            yield file
        return
    with source.open() as stream, h5py.File(stream, "r") as file:
        yield file


def _parse_group(
    source: SourceFile, stamp: SourceStamp, node: Any, dropped: frozenset[str], whole_tree: bool, phony: list[int]
) -> ParsedGroup:
    members = {name: node.get(name) for name in node}
    below = {name for name, member in members.items() if isinstance(member, h5py.Group)}
    datasets = {name: member for name, member in members.items() if isinstance(member, h5py.Dataset)}
    variables = {name: one for name, one in datasets.items() if name not in dropped and not _is_dimension_only(one)}
    copied = {name: reason for name, one in variables.items() if (reason := find_reason(source, one, node.file))}
    for name in copied:
        check_storable(source, variables[name])
    empty = [
        name for name, one in variables.items() if name not in copied and is_unwritten(one) and not one.dtype.names
    ]
    whole = [name for name in variables if name not in copied and name not in empty]
    arrays, attributes, failed = _reference(source, node, list(members), whole)
    copied |= failed
    arrays |= {name: unwritten(source, variables[name]) for name in empty}
    dims = dims_of(datasets, phony)
    sizes = _sizes(variables, dims)
    parsed = ParsedGroup(attributes=attributes)
    for name, dataset in variables.items():
        shape = tuple(sizes[dim] for dim in dims[name])
        if name in arrays:
            parsed.arrays[name.removeprefix(_PREFIX)] = with_dims(arrays[name], dims[name], shape)
            parsed.packing[name.removeprefix(_PREFIX)] = packing_attributes(dataset.attrs)
        else:
            path = f"{node.name.rstrip('/')}/{name}"
            variable = _copy(source, stamp, path, dataset, dims[name], shape)
            parsed.copied[name.removeprefix(_PREFIX)] = Copied(variable, copied[name])
    if whole_tree:
        for name in sorted(below - dropped):
            parsed.groups[name] = _parse_group(source, stamp, members[name], dropped, whole_tree, phony)
    return parsed


def _is_dimension_only(dataset: Any) -> bool:
    """Whether it is netCDF4's stand-in for a dimension that has no coordinate variable."""
    name = dataset.attrs.get("NAME", b"") if h5py.h5ds.is_scale(dataset.id) else b""
    return isinstance(name, bytes | np.bytes_) and bytes(name).startswith(_NO_VARIABLE)


def _reference(
    source: SourceFile, node: Any, members: list[str], names: list[str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """The arrays and attributes of a group, and why the parser refused others."""
    try:
        arrays, attributes = _run_parser(source, node.name, members, names)
    except Exception:  # noqa: BLE001  # the parser's; found out below for each variable
        arrays, failed = {}, {}
        for name in names:
            try:
                arrays |= _run_parser(source, node.name, members, [name])[0]
            except Exception as error:  # noqa: BLE001
                failed[name] = describe(error)
                check_storable(source, node[name])
        return arrays, text_attributes(node), failed
    return arrays, attributes, {}


def _run_parser(
    source: SourceFile, group: str, members: list[str], names: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    from virtualizarr.parsers import HDFParser

    parser = HDFParser(group=None if group == "/" else group, drop_variables=[n for n in members if n not in names])
    if source.path is not None:
        path: Any = source.path  # h5py takes one too: four times faster than a stream, and links to other files work
        parser.reader_factory = lambda *_: path
    parsed = ParsedGroup.of_store(parser(url=source.url, registry=source.stores))
    return parsed.arrays, parsed.attributes


def _sizes(variables: dict[str, Any], dims: dict[str, tuple[str, ...]]) -> dict[str, int]:
    """Length of every dimension: that of the variable in which it has grown most, as netCDF has it."""
    sizes: dict[str, int] = {}
    for name, dataset in variables.items():
        for dim, size in zip(dims[name], dataset.shape or (), strict=False):
            sizes[dim] = max(size, sizes.get(dim, 0))
        if dataset.shape is None:
            sizes[dims[name][0]] = 0
    return sizes


def _copy(
    source: SourceFile, stamp: SourceStamp, path: str, dataset: Any, dims: tuple[str, ...], shape: tuple[int, ...]
) -> xr.Variable:
    attributes = text_attributes(dataset)
    if "_FillValue" in attributes and not is_fill_value(attributes["_FillValue"], dataset.dtype):
        del attributes["_FillValue"]
    vlen = h5py.check_vlen_dtype(dataset.dtype)
    dtype = h5py.string_dtype() if vlen in (str, bytes) else np.dtype(dataset.dtype.str)
    if dataset.dtype.names:
        dtype = dataset.dtype
    return lazy_copy(source, stamp, path, read_values, dims, shape, dtype, attributes)


def read_values(source: SourceFile, name: str, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """Values of one dataset; where it is shorter than its dimension, its fill value."""
    with _opened(source) as file:
        dataset = file[name]
        if dataset.shape is None:
            return np.asarray(np.empty(0, dataset.dtype)[key])
        strings = h5py.check_vlen_dtype(dataset.dtype) in (str, bytes)
        values = np.asarray(dataset.asstr()[()] if strings else dataset[()], dtype=object if strings else None)
        stops = [part.stop if isinstance(part, slice) else part + 1 for part in key]
        missing = [max(0, (stop or 0) - size) for stop, size in zip(stops, dataset.shape, strict=True)]
        if any(missing):
            fill = "" if strings else dataset.fillvalue
            values = np.pad(values, [(0, n) for n in missing], constant_values=fill)
        return np.asarray(values[key])
