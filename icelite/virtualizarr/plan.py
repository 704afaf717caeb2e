"""What `to_icelite` will write, worked out and checked before the first write.

A plan holds everything as it will be stored, but the values of dask arrays and of variables that are appended to,
which xarray writes by itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import xarray as xr
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import MemoryStore

from icelite.errors import ErrorKind, InvalidInputError
from icelite.keys import check_path
from icelite.store import IceliteStore
from icelite.virtualizarr.arrays import (
    References,
    check_references,
    encode_attributes,
    is_virtual,
    read_references,
    stored_metadata,
)
from icelite.virtualizarr.packing import PACKING_DTYPES
from icelite.virtualizarr.sources import Sources
from icelite.virtualizarr.stored import StoredGroup, check_appendable, check_vacant, find_group, lookup_first_chunk

_UNENCODABLE = (TypeError, ValueError, NotImplementedError)  # what xarray raises for what it cannot store
_STORAGE_ENCODING = {"chunks", "preferred_chunks", "shards", "compressors", "compressor", "filters", "serializer"}


@dataclass(frozen=True, slots=True)
class PlannedArray:
    """One array to write.

    Attributes
    ----------
    values
        Key below ``path`` to what is stored there: the metadata, and the chunks that are not references.
    references
        None for a loadable variable.
    first_chunk
        Grid position where the references begin.
    """

    path: str
    values: Mapping[str, Buffer]
    references: References | None = None
    first_chunk: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedGroup:
    """One dataset: its arrays, and the loadable variables that xarray writes: dask arrays, and those that grow."""

    path: str
    attributes: dict[str, Any]
    append_dim: str | None
    arrays: list[PlannedArray] = field(default_factory=list)
    lazy: dict[Hashable, xr.Variable] = field(default_factory=dict)
    appended: dict[Hashable, xr.Variable] = field(default_factory=dict)


def plan_group(
    store: IceliteStore, path: str, dataset: xr.Dataset, append_dim: str | None, sources: Sources
) -> PlannedGroup:
    """Check one dataset against its sources and what the session holds, and say what to write.

    Raises
    ------
    InvalidInputError, AlreadyExistsError, NodeNotFoundError
        As `to_icelite`.
    """
    stored = find_group(store, path)
    _check_names(path, dataset)
    if append_dim is None:
        check_vacant(path, dataset, stored)
    elif append_dim in dataset.dims:
        check_appendable(path, dataset, stored, append_dim)
    stored = stored or StoredGroup()
    arrays: dict[Hashable, PlannedArray] = {}
    loadable: dict[Hashable, xr.Variable] = {}
    plan = PlannedGroup(path, _group_attributes(path, dataset, stored), append_dim)
    for name, variable in dataset.variables.items():
        present = stored.arrays.get(str(name))
        if present is not None and append_dim not in variable.dims:
            continue
        if is_virtual(variable):
            axis = None if present is None else variable.dims.index(cast(str, append_dim))
            arrays[name] = _plan_virtual(_join(path, name), variable, present, axis, sources)
        elif present is None:
            loadable[name] = _without_storage_encoding(variable)
        else:
            plan.appended[name] = variable
    urls = {url: None for array in arrays.values() for url in _first_url(array.references)}
    loadable = {name: _with_dtypes(name, variable, urls, sources) for name, variable in loadable.items()}
    arrays |= _plan_loadable(path, loadable)
    plan.lazy.update({name: variable for name, variable in loadable.items() if variable.chunks is not None})
    plan.arrays.extend(arrays[name] for name in dataset.variables if name in arrays and name not in plan.lazy)
    return plan


def _join(path: str, name: Hashable) -> str:
    return f"{path}/{name}".lstrip("/")


def _plan_virtual(
    path: str, variable: xr.Variable, stored: ArrayV3Metadata | None, axis: int | None, sources: Sources
) -> PlannedArray:
    metadata = stored_metadata(path, variable)
    references = read_references(variable.data.manifest)
    check_references(path, metadata, references)
    sources.admit(references.urls, path)
    dtypes = sources.find_packing_dtypes(path.rpartition("/")[2], variable, _first_url(references), renamed=True)
    if dtypes is None and stored is not None:  # unknown; the numbers will be compared
        dtypes = cast(str | None, stored.attributes.get(PACKING_DTYPES))
    if dtypes:
        metadata = metadata.update_attributes({**metadata.attributes, PACKING_DTYPES: dtypes})
    first = [0] * len(metadata.shape)
    if stored is not None and axis is not None:
        first[axis] = lookup_first_chunk(path, metadata, stored, axis)
        shape = list(stored.shape)
        shape[axis] += metadata.shape[axis]
        metadata = stored.update_shape(tuple(shape))
    prototype = default_buffer_prototype()
    values = metadata.to_buffer_dict(prototype)
    for index, data in references.inlined.items():
        key = metadata.encode_chunk_key(tuple(i + shift for i, shift in zip(index, first, strict=True)))
        values[key] = prototype.buffer.from_bytes(data)
    return PlannedArray(path, values, references, tuple(first))


def _first_url(references: References | None) -> list[str]:
    """The file that a combined variable has its attributes from, if any."""
    locations = references.locations if references is not None else []
    return [next(filter(None, locations))] if any(locations) else []


def _with_dtypes(name: Hashable, variable: xr.Variable, urls: Iterable[str], sources: Sources) -> xr.Variable:
    """A loadable variable that says how it was packed in the files that others refer to, as xarray packs it again."""
    dtypes = sources.find_packing_dtypes(str(name), variable, urls, renamed=False)
    if dtypes:
        variable = variable.copy(deep=False)
        variable.attrs = {**variable.attrs, PACKING_DTYPES: dtypes}
    return variable


def _plan_loadable(path: str, variables: Mapping[Hashable, xr.Variable]) -> dict[Hashable, PlannedArray]:
    """The arrays of loadable variables, by variable; those of dask arrays only to know that they can be stored."""
    try:
        encoded = _encode(variables)
    except _UNENCODABLE as error:
        names = [name for name, variable in variables.items() if not _is_encodable(name, variable)] or list(variables)
        raise InvalidInputError(
            f"variable {', '.join(repr(_join(path, name)) for name in names)} cannot be stored: {error}",
            ErrorKind.INVALID_DATASET,
        ) from error
    return {
        name: PlannedArray(
            _join(path, name),
            {key.removeprefix(f"{name}/"): value for key, value in encoded.items() if key.startswith(f"{name}/")},
        )
        for name in variables
    }


def _encode(variables: Mapping[Hashable, xr.Variable]) -> dict[str, Buffer]:
    """What xarray would store: every key and value, but no chunks of dask arrays."""
    encoded: dict[str, Buffer] = {}
    if variables:
        eager = all(variable.chunks is None for variable in variables.values())  # or else dask is there to defer
        xr.Dataset(variables).to_zarr(  # type: ignore[call-overload]  # knows literal bools only
            MemoryStore(encoded), zarr_format=3, consolidated=False, compute=eager
        )
    return encoded


def _is_encodable(name: Hashable, variable: xr.Variable) -> bool:
    try:
        _encode({name: variable})
    except _UNENCODABLE:
        return False
    return True


def _check_names(path: str, dataset: xr.Dataset) -> None:
    for name, variable in dataset.variables.items():
        for word in (name, *variable.dims):
            if not isinstance(word, str) or not word or "/" in word:
                raise InvalidInputError(
                    f"variable {name!r} of group {path!r}: {word!r} is not a name that Zarr can store;"
                    " it must be a string without '/': rename it",
                    ErrorKind.INVALID_PATH,
                )
        check_path(f"{path}/{name}")


def _group_attributes(path: str, dataset: xr.Dataset, stored: StoredGroup) -> dict[str, Any]:
    """The attributes to write, with the names of the coordinates that are not dimensions, as xarray keeps them."""
    new = encode_attributes(dataset.attrs, path)
    names = f"{stored.attributes.get('coordinates', '')} {new.get('coordinates', '')}".split()
    for name in map(str, dataset.coords):
        if " " in name:
            warnings.warn(f"coordinate {name!r} has a space in its name: it will be read as data", stacklevel=5)
        elif name not in dataset.dims:
            names.append(name)
    listed = {"coordinates": " ".join(dict.fromkeys(names))} if names else {}
    return {**stored.attributes, **new, **listed}


def _without_storage_encoding(variable: xr.Variable) -> xr.Variable:
    """The variable without its source's chunks and codecs: a coordinate of 10,000 files would have 10,000 chunks."""
    variable = variable.copy(deep=False)
    variable.encoding = {key: value for key, value in variable.encoding.items() if key not in _STORAGE_ENCODING}
    return variable
