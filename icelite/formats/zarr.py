"""Zarr stores of other people, format 2 and 3, sharded, as a directory or in a zip file: VirtualiZarr's parsers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import xarray as xr
import zarr
from virtualizarr import parsers
from virtualizarr.manifests import ManifestArray
from xarray.backends.zarr import FillValueCoder

from icelite.formats.manifests import is_fill_value
from icelite.formats.parsed import Copied, ParsedGroup, lazy_copy
from icelite.formats.source import SourceFile
from icelite.types import SourceStamp


def parse(
    source: SourceFile, stamp: SourceStamp, group: str, dropped: Collection[str], whole_tree: bool
) -> ParsedGroup:
    """Parse one group, and with ``whole_tree`` all below it.

    A zip file is copied if its members are compressed, and by VirtualiZarr before 2.8, which reads none.
    """
    settings: dict[str, Any] = {"group": group or None, "skip_variables": dropped}
    if source.is_directory():
        return _parse_directory(source, _opened_directory(source, group), group, dropped, whole_tree)
    if not hasattr(parsers, "ZippedZarrParser"):
        return _copy_zip(source, stamp, group, dropped, "it is in a zip file, which VirtualiZarr reads from 2.8 on")
    try:
        parsed = ParsedGroup.of_store(parsers.ZippedZarrParser(**settings)(source.url, source.stores))
    except NotImplementedError:
        return _copy_zip(source, stamp, group, dropped, "it is compressed once more, in a zip file")
    if source.path is None:
        return parsed
    with _opened(source, group) as opened:
        return _corrected(source, parsed, opened)


def _parse_directory(
    source: SourceFile, opened: zarr.Group, path: str, dropped: Collection[str], whole_tree: bool
) -> ParsedGroup:
    parser = parsers.ZarrParser(group=path or None, skip_variables=dropped)
    parsed = _corrected(source, ParsedGroup.of_store(parser(source.url, source.stores)), opened)
    for name, below in opened.groups() if whole_tree else ():
        if name not in parsed.groups:  # VirtualiZarr 2.5 stays in one group
            parsed.groups[name] = _parse_directory(source, below, f"{path}/{name}".lstrip("/"), dropped, whole_tree)
    return parsed


def _opened_directory(source: SourceFile, group: str) -> zarr.Group:
    if source.path is not None:
        return zarr.open_group(source.path, path=group, mode="r", use_consolidated=False)
    store, key = source.stores.resolve(source.url)
    place = zarr.storage.ObjectStore(store, read_only=True)
    return zarr.open_group(place, path=f"{key}/{group}".rstrip("/"), mode="r", use_consolidated=False)


def _corrected(source: SourceFile, parsed: ParsedGroup, group: zarr.Group) -> ParsedGroup:
    """With the fill values of format 2 as ``_FillValue``, as xarray takes them, and URLs as they are written here."""
    local = source.url if source.path is not None else None
    for name, array in parsed.arrays.items():
        original = group[name]
        assert isinstance(original, zarr.Array)
        attributes = dict(array.metadata.attributes)
        fill = original.fill_value
        if original.metadata.zarr_format == 2 and fill is not None and is_fill_value(fill, original.dtype):
            attributes["_FillValue"] = FillValueCoder.encode(fill, original.dtype)
        attributes.pop("_ARRAY_DIMENSIONS", None)
        metadata = dataclasses.replace(array.metadata, attributes=attributes)
        array = ManifestArray(metadata=metadata, chunkmanifest=array.manifest)
        # VirtualiZarr 2.5 writes file:/data for file:///data
        parsed.arrays[name] = array.rename_paths(_with_slashes) if local else array
    for name, below in parsed.groups.items():
        inner = group[name]
        assert isinstance(inner, zarr.Group)
        _corrected(source, below, inner)
    return parsed


def _with_slashes(url: str) -> str:
    rest = url.removeprefix("file:")
    return url if rest is url else "file:///" + rest.lstrip("/")


@contextmanager
def _opened(source: SourceFile, group: str) -> Iterator[zarr.Group]:
    if source.path is None:
        raise source.unreadable("only a local zip file can be copied: download it first")
    with zarr.storage.ZipStore(source.path, mode="r") as store:
        yield zarr.open_group(store, path=group, mode="r", use_consolidated=False)


def _copy_zip(source: SourceFile, stamp: SourceStamp, group: str, dropped: Collection[str], reason: str) -> ParsedGroup:
    with _opened(source, group) as opened:
        return _copy_group(source, stamp, opened, dropped, reason)


def _copy_group(
    source: SourceFile, stamp: SourceStamp, group: zarr.Group, dropped: Collection[str], reason: str
) -> ParsedGroup:
    attributes = dict(group.attrs)
    coordinates = str(attributes.pop("coordinates", "")).split()
    parsed = ParsedGroup(attributes=attributes, coordinates=tuple(coordinates))
    for name, member in group.members():
        if isinstance(member, zarr.Group):
            parsed.groups[name] = _copy_group(source, stamp, member, dropped, reason)
        elif name not in dropped:
            parsed.copied[name] = Copied(_copy(source, stamp, member), reason)
    return parsed


def _copy(source: SourceFile, stamp: SourceStamp, array: zarr.Array[Any]) -> xr.Variable:
    attributes: dict[str, Any] = dict(array.attrs)
    named: Any = attributes.pop("_ARRAY_DIMENSIONS", None) or getattr(array.metadata, "dimension_names", None)
    dims = tuple(named or (f"dim_{axis}" for axis in range(array.ndim)))
    if array.metadata.zarr_format == 2 and array.fill_value is not None:
        if is_fill_value(array.fill_value, array.dtype):
            attributes["_FillValue"] = array.fill_value  # as xarray takes it
    elif "_FillValue" in attributes:
        attributes["_FillValue"] = FillValueCoder.decode(attributes["_FillValue"], array.dtype.str)
    return lazy_copy(source, stamp, array.path, read_values, dims, array.shape, array.dtype, attributes)


def read_values(source: SourceFile, name: str, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """Values of one array in a zip file."""
    with _opened(source, "") as group:
        return np.asarray(cast("zarr.Array[Any]", group[name])[key])
