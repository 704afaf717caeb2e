"""Zarr stores of other people, format 2 and 3, sharded, as a directory or in a zip file.

- Each array of a directory is referenced by VirtualiZarr, or copied with zarr where that is not possible. A zip file is
  referenced or copied as a whole.
- An array at the root of a store is the variable ``data``. Dimensions without a name are ``phony_dim_0`` and so on, one
  for each length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, cast

import numpy as np
import xarray as xr
import zarr
from virtualizarr import parsers
from virtualizarr.manifests import ManifestArray
from xarray.backends.zarr import FillValueCoder
from zarr.core.sync import sync

from icelite.errors import ErrorKind, InvalidInputError
from icelite.formats.attributes import is_fill_value
from icelite.formats.parsed import Copied, ParsedGroup, lazy_copy, no_group
from icelite.formats.source import SourceFile, describe
from icelite.types import SourceStamp

_AT_ROOT = "data"
_HAS_ZIP = hasattr(parsers, "ZippedZarrParser")  # since VirtualiZarr 2.8
_NUMBERS = "iufcb"
_SEPARATORS = {2: ".", 3: "/"}  # in the names of chunks, by default
_DOCUMENTS = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}


def parse(
    source: SourceFile, stamp: SourceStamp, group: str, dropped: Collection[str], whole_tree: bool
) -> ParsedGroup:
    """Parse one group, and with ``whole_tree`` all below it.

    A zip file is copied if its members are compressed, and by VirtualiZarr before 2.8, which reads none.
    """
    if source.is_directory():
        store, key = _directory(source)
        node = _lookup_node(source, store, key, group)
        if isinstance(node, zarr.Array):
            parsed = ParsedGroup()
            _add_array(parsed, source, stamp, _AT_ROOT, node)
        else:
            parsed = _parse_group(source, stamp, node, dropped, whole_tree)
        return _with_phony_dims(parsed)
    if not _HAS_ZIP:
        reason = "it is in a zip file, which VirtualiZarr reads from 2.8 on"
        return _with_phony_dims(_copy_zip(source, stamp, group, dropped, reason))
    try:
        parser = parsers.ZippedZarrParser(group=group or None, skip_variables=dropped)
        parsed = ParsedGroup.of_store(parser(source.url, source.stores))
        if source.path is not None:
            with _opened_zip(source) as node:
                _correct(parsed, cast("zarr.Group", node[group] if group else node))
    except NotImplementedError:
        reason = "it is compressed once more, in a zip file"
        parsed = _copy_zip(source, stamp, group, dropped, reason)
    except Exception as error:  # of VirtualiZarr, about what it does not reference
        if source.path is None:
            raise
        parsed = _copy_zip(source, stamp, group, dropped, f"VirtualiZarr does not reference it: {describe(error)}")
    return _with_phony_dims(parsed)


# -- directories -----------------------------------------------------------------------------------------------------


def _directory(source: SourceFile) -> tuple[Any, str]:
    """The store that a directory is in, and its key there."""
    from obstore.store import LocalStore

    if source.path is not None:
        return zarr.storage.ObjectStore(LocalStore(), read_only=True), source.path.strip("/")
    store, key = source.directory_stores.resolve(source.url)
    return zarr.storage.ObjectStore(store, read_only=True), str(key).strip("/")


def _lookup_node(source: SourceFile, store: Any, key: str, group: str) -> zarr.Group | zarr.Array[Any]:
    try:
        return _open_node(store, f"{key}/{group}".rstrip("/"))
    except FileNotFoundError:
        if group:
            raise no_group(source, group, _names(store, key)) from None
        raise source.unreadable("it holds no Zarr group or array") from None


def _open_node(store: Any, key: str) -> zarr.Group | zarr.Array[Any]:
    """A group or an array, whatever the store says of others that it holds.

    Raises
    ------
    FileNotFoundError
        There is neither.
    """
    try:
        return zarr.open_group(store, path=key, mode="r", use_consolidated=False)
    except (FileNotFoundError, zarr.errors.ContainsArrayError):  # what it raises for an array depends on its format
        return zarr.open_array(store, path=key, mode="r")


def _names(store: Any, key: str) -> list[str]:
    async def listed() -> list[str]:
        return [name async for name in store.list_dir(key)]

    return sorted({name.rstrip("/") for name in sync(listed())} - _DOCUMENTS)


def _parse_group(
    source: SourceFile, stamp: SourceStamp, group: zarr.Group, dropped: Collection[str], whole_tree: bool
) -> ParsedGroup:
    attributes = dict(group.attrs)
    coordinates = str(attributes.pop("coordinates", "")).split()
    parsed = ParsedGroup(attributes=attributes, coordinates=tuple(coordinates))
    for name in _names(group.store, group.path):
        if name in dropped:
            continue
        try:
            node = _open_node(group.store, f"{group.path}/{name}")
        except FileNotFoundError:
            continue
        except Exception as error:  # noqa: BLE001  # of zarr, about this node: it does not cost the others
            parsed.skipped[name] = f"zarr does not read it: {describe(error)}"
            continue
        if isinstance(node, zarr.Array):
            _add_array(parsed, source, stamp, name, node)
        elif whole_tree:
            parsed.groups[name] = _parse_group(source, stamp, node, dropped, whole_tree)
    return parsed


def _add_array(parsed: ParsedGroup, source: SourceFile, stamp: SourceStamp, name: str, array: zarr.Array[Any]) -> None:
    reason = _find_reason(array)
    if reason is None:
        try:
            found = sync(_reference(array, _root_of(source)))
            # VirtualiZarr 2.5 writes file:/data for file:///data
            found = found.rename_paths(_with_slashes) if source.path is not None else found
            parsed.arrays[name] = _described(found, array)
            return
        except Exception as error:  # noqa: BLE001  # of VirtualiZarr, about what it does not reference
            reason = f"VirtualiZarr does not reference it: {describe(error)}"
    if array.dtype.kind == "O" and array.metadata.zarr_format == 2 and not array.metadata.filters:
        parsed.skipped[name] = "its values are Python objects of which nothing says how they are stored"
        return
    parsed.copied[name] = Copied(_copy(source, stamp, array, array.path), reason)


def _find_reason(array: zarr.Array[Any]) -> str | None:
    """Why an array cannot be referenced, as far as its metadata says."""
    metadata: Any = array.metadata
    if metadata.zarr_format == 2 and array.dtype.kind not in _NUMBERS:
        return f"format 3 of Zarr has another form for values of the type {array.dtype}"
    if metadata.zarr_format == 3 and metadata.chunk_key_encoding.name != "default":
        return "its chunks have names of format 2, which VirtualiZarr does not find"
    separator = metadata.dimension_separator if metadata.zarr_format == 2 else metadata.chunk_key_encoding.separator
    if not _HAS_ZIP and separator != _SEPARATORS[metadata.zarr_format]:
        return "its chunks have names that VirtualiZarr finds from 2.8 on"
    return None


async def _reference(array: zarr.Array[Any], root: str) -> Any:
    module = import_module(f"virtualizarr.parsers.zarr{'.zarr' if _HAS_ZIP else ''}")  # a package since 2.8
    return await module.construct_manifest_array(array._async_array, root)


def _with_slashes(url: str) -> str:
    rest = url.removeprefix("file:")
    return url if rest is url else "file:///" + rest.lstrip("/")


def _root_of(source: SourceFile) -> str:
    """URL of what the paths of a directory's arrays begin at."""
    if source.path is not None:
        return "file:///"
    key = str(source.directory_stores.resolve(source.url)[1])
    return source.url.rstrip("/").removesuffix(key.strip("/"))


# -- arrays ----------------------------------------------------------------------------------------------------------


def _correct(parsed: ParsedGroup, group: zarr.Group) -> None:
    for name, array in parsed.arrays.items():
        parsed.arrays[name] = _described(array, cast("zarr.Array[Any]", group[name]))
    for name, below in parsed.groups.items():
        _correct(below, cast("zarr.Group", group[name]))


def _described(array: ManifestArray, original: zarr.Array[Any]) -> ManifestArray:
    """The array with the fill value of format 2 as ``_FillValue``, as xarray takes it."""
    attributes = dict(array.metadata.attributes)
    fill = original.fill_value
    if original.metadata.zarr_format == 2 and fill is not None and is_fill_value(fill, original.dtype):
        attributes["_FillValue"] = FillValueCoder.encode(fill, original.dtype)
    attributes.pop("_ARRAY_DIMENSIONS", None)
    return ManifestArray(dataclasses.replace(array.metadata, attributes=attributes), array.manifest)


def _copy(source: SourceFile, stamp: SourceStamp, array: zarr.Array[Any], path: str) -> xr.Variable:
    attributes: dict[str, Any] = dict(array.attrs)
    named: Any = attributes.pop("_ARRAY_DIMENSIONS", None) or getattr(array.metadata, "dimension_names", None)
    dims = tuple(name or "" for name in named or ("",) * array.ndim)
    if array.metadata.zarr_format == 2 and array.fill_value is not None:
        if is_fill_value(array.fill_value, array.dtype):
            attributes["_FillValue"] = array.fill_value  # as xarray takes it
    elif "_FillValue" in attributes:
        attributes["_FillValue"] = FillValueCoder.decode(attributes["_FillValue"], array.dtype.str)
    return lazy_copy(source, stamp, path, partial(read_values, path), dims, array.shape, array.dtype, attributes)


def read_values(path: str, source: SourceFile, name: str, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """Values of one array."""
    if source.is_directory():
        return np.asarray(zarr.open_array(_directory(source)[0], path=path, mode="r")[key])
    with _opened_zip(source) as node:
        return np.asarray(cast("zarr.Array[Any]", node[path] if path else node)[key])


def _with_phony_dims(parsed: ParsedGroup) -> ParsedGroup:
    """The group with a name for each dimension that has none: one for each length, and for each of an array's axes."""
    names: dict[tuple[int, int], str] = {}
    taken = {dim for array in parsed.arrays.values() for dim in array.metadata.dimension_names or ()}
    taken |= {str(dim) for copied in parsed.copied.values() for dim in copied.variable.dims}
    free = (name for name in (f"phony_dim_{number}" for number in range(1 << 20)) if name not in taken)

    def named(dims: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[str, ...]:
        seen: dict[int, int] = {}
        found = []
        for dim, size in zip(dims, shape, strict=True):
            if not dim:
                seen[size] = seen.get(size, 0) + 1
                key = (size, seen[size])
                names[key] = dim = names.get(key) or next(free)
            found.append(str(dim))
        return tuple(found)

    for name in sorted(parsed.arrays.keys() | parsed.copied.keys()):
        if name in parsed.arrays:
            array = parsed.arrays[name]
            dims = named(tuple(array.metadata.dimension_names or ("",) * array.ndim), array.shape)
            metadata = dataclasses.replace(array.metadata, dimension_names=dims)
            parsed.arrays[name] = ManifestArray(metadata, array.manifest)
        else:
            copied = parsed.copied[name]
            dims = named(copied.variable.dims, copied.variable.shape)
            variable = xr.Variable(
                dims, copied.variable._data, copied.variable.attrs, copied.variable.encoding, fastpath=True
            )
            parsed.copied[name] = Copied(variable, copied.reason)
    for below in parsed.groups.values():
        _with_phony_dims(below)
    return parsed


# -- zip files -------------------------------------------------------------------------------------------------------


@contextmanager
def _opened_zip(source: SourceFile) -> Iterator[Any]:
    if source.path is None:
        raise source.unreadable("only a local zip file can be copied: download it first")
    with zarr.storage.ZipStore(source.path, mode="r") as store:
        yield _open_node(store, "")


def _copy_zip(source: SourceFile, stamp: SourceStamp, group: str, dropped: Collection[str], reason: str) -> ParsedGroup:
    with _opened_zip(source) as node:
        if isinstance(node, zarr.Array):
            return ParsedGroup(copied={_AT_ROOT: Copied(_copy(source, stamp, node, ""), reason)})
        try:
            found = node[group] if group else node
        except KeyError:
            raise no_group(source, group, node.group_keys()) from None
        if not isinstance(found, zarr.Group):
            raise InvalidInputError(f"{group!r} in {source.url!r} is an array, not a group", ErrorKind.INVALID_ARGUMENT)
        return _copy_group(source, stamp, found, dropped, reason)


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
            parsed.copied[name] = Copied(_copy(source, stamp, member, member.path), reason)
    return parsed
