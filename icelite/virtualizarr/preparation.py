"""All that `to_icelite` will write, worked out and checked before the first write.

A prepared group holds everything as it will be stored, but the values of dask arrays and of variables that are written
into arrays that exist, which xarray writes by itself. Those are first written into an empty copy of the array in
memory, on trial: what cannot be encoded raises there, and what would be read back as other values (times that the
stored units cannot express, integers that overflow) is refused, while xarray would store it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import xarray as xr
import zarr
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import MemoryStore

from icelite import cf
from icelite.errors import ErrorKind, InvalidInputError
from icelite.formats.attributes import PACKING_DTYPES, restore_dtypes
from icelite.formats.parsed import relabelled
from icelite.keys import check_path
from icelite.store import IceliteStore
from icelite.virtualizarr.arrays import (
    References,
    check_references,
    encode_attributes,
    fetch_through,
    is_virtual,
    read_references,
    read_times,
    stored_metadata,
)
from icelite.virtualizarr.sources import StampedSources
from icelite.virtualizarr.target import GroupTarget, Request, StoredGroup, find_stored, find_target

# What xarray raises for what it cannot store.
_UNENCODABLE = (TypeError, ValueError, KeyError, NotImplementedError, OverflowError)
_STORAGE_ENCODING = {"chunks", "preferred_chunks", "shards", "compressors", "compressor", "filters", "serializer"}


@dataclass(frozen=True, slots=True)
class VirtualArray:
    """One array of references to write.

    Attributes
    ----------
    document
        Its metadata, as it will be stored; None where it stays as it is.
    metadata
        That of the variable, which is smaller than the array where that exists.
    first_chunk
        Grid position where the references begin.
    exists
        Whether there is an array, in which chunks that are missing in the variable have to be deleted.
    """

    path: str
    document: ArrayV3Metadata | None
    metadata: ArrayV3Metadata
    references: References
    first_chunk: tuple[int, ...]
    exists: bool

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions."""
        return tuple(map(str, self.metadata.dimension_names or ()))


@dataclass(frozen=True, slots=True)
class LoadedArray:
    """One array of values to write: key below ``path`` to what is stored there."""

    path: str
    values: Mapping[str, Buffer]


@dataclass(frozen=True, slots=True)
class PreparedGroup:
    """One dataset: its arrays, and the loadable variables that xarray writes: dask arrays, and into arrays that exist.

    Attributes
    ----------
    target
        Where in the group's arrays.
    names
        Of all variables of the dataset.
    """

    path: str
    attributes: dict[str, Any]
    target: GroupTarget
    names: frozenset[str]
    arrays: list[VirtualArray | LoadedArray] = field(default_factory=list)
    lazy: dict[Hashable, xr.Variable] = field(default_factory=dict)
    existing: dict[Hashable, xr.Variable] = field(default_factory=dict)

    def virtual(self) -> list[VirtualArray]:
        """The arrays of references."""
        return [array for array in self.arrays if isinstance(array, VirtualArray)]


def prepare_group(
    store: IceliteStore, path: str, dataset: xr.Dataset, request: Request, sources: StampedSources
) -> PreparedGroup:
    """Check one dataset against its sources and what the session holds, and say what to write.

    Raises
    ------
    InvalidInputError, AlreadyExistsError, NodeNotFoundError, StorageError
        As `to_icelite`.
    """
    _check_names(path, dataset)
    stored = find_stored(store, path, request.mode)
    target = find_target(store, path, dataset, stored, request)
    stored = stored or StoredGroup()
    dataset = _with_stored_times(dataset, {} if target.over else stored.arrays, sources)
    dataset = dataset.drop_vars(target.unchanged)
    virtual: dict[Hashable, VirtualArray] = {}
    loadable: dict[Hashable, xr.Variable] = {}
    prepared = PreparedGroup(
        path, _group_attributes(path, dataset, stored), target, frozenset(map(str, dataset.variables))
    )
    for name, variable in dataset.variables.items():
        present = stored.arrays.get(str(name))
        if present is not None and target.append_dim is not None and target.append_dim not in variable.dims:
            continue
        if is_virtual(variable):
            virtual[name] = _prepare_virtual(_join(path, name), variable, present, target, sources)
        elif present is None:
            loadable[name] = _without_storage_encoding(name, variable)
        else:
            prepared.existing[name] = variable
    urls = {url: None for array in virtual.values() for url in array.references.first_url()}
    loadable = {name: _with_dtypes(name, variable, urls, sources) for name, variable in loadable.items()}
    arrays: dict[Hashable, VirtualArray | LoadedArray] = {**virtual, **_prepare_loadable(path, loadable)}
    prepared.lazy.update({name: variable for name, variable in loadable.items() if variable.chunks is not None})
    prepared.arrays.extend(arrays[name] for name in dataset.variables if name in arrays and name not in prepared.lazy)
    _try_encoding(path, prepared.existing, stored.arrays, target)
    return prepared


def _with_stored_times(
    dataset: xr.Dataset, stored: Mapping[str, ArrayV3Metadata], sources: StampedSources
) -> xr.Dataset:
    """The dataset with times in units that can be stored, and bounds that count as those times will."""
    encoding = dataset.encoding
    changes: dict[Hashable, xr.Variable] = {}
    for name, bounds in cf.find_bounds(dataset.variables):
        parent, variable = dataset.variables[name], dataset.variables[bounds]
        own, time = cf.find_time(parent), _find_stored_time(name, parent, stored)
        if own is None or time is None or (own == time and variable.dtype.kind not in "MO"):
            continue
        if variable.dtype.kind in "MO" and str(bounds) not in stored:
            continue  # xarray writes both alike
        times = read_times(variable, own, fetch_through(sources.access))
        numbers = _encode_bounds(str(bounds), times, time)
        if str(bounds) in stored:
            dtype = stored[str(bounds)].data_type.to_native_dtype()
            numbers = numbers.astype(dtype) if (numbers.values.astype(dtype) == numbers.values).all() else numbers
        numbers.attrs = {key: value for key, value in variable.attrs.items() if key not in cf.FILLS}
        changes[bounds] = numbers
    for name, variable in dataset.variables.items():
        own, time = cf.find_time(variable), _find_stored_time(name, variable, stored)
        if str(name) not in stored and time is not None and own != time and variable.dtype.kind in "MO":
            changes[name] = variable.copy(deep=False)
            kept = {key: value for key, value in variable.encoding.items() if key not in ("dtype", *cf.FILLS)}
            changes[name].encoding = {**kept, "units": time[0], "calendar": time[1]}
    if changes:
        coordinates = {name: changes.pop(name) for name in list(changes) if name in dataset.coords}
        dataset = dataset.assign(changes).assign_coords(xr.Coordinates(coordinates, indexes={}))
        dataset.encoding = encoding
    return dataset


def _encode_bounds(name: str, times: xr.Variable, time: cf.Time) -> xr.Variable:
    """Bounds as numbers that count as the times beside them; refused where that would round them."""
    numbers = cf.encode_times(times, time)
    found, expected = cf.decode_times(numbers, time).values, times.values
    rounded = (found != expected) & ~((found != found) & (expected != expected))  # NaT differs from itself
    if rounded.any():
        raise InvalidInputError(
            f"variable {name!r} cannot be written beside times that are stored in {time[0]!r}: {expected[rounded][0]}"
            f" would be stored as {found[rounded][0]}; write it to another group",
            ErrorKind.INVALID_DATASET,
        )
    return numbers


def _find_stored_time(name: Hashable, variable: xr.Variable, stored: Mapping[str, ArrayV3Metadata]) -> cf.Time | None:
    """The units and the calendar that a variable's times will have; None for other variables."""
    if str(name) in stored:
        return cf.time_of(stored[str(name)].attributes)
    time = cf.find_time(variable)
    if time is None or variable.dtype.kind not in "MO" or not variable.size or cf.can_encode(variable, time):
        return time
    return cf.choose_time([variable])


def _join(path: str, name: Hashable) -> str:
    return f"{path}/{name}".lstrip("/")


def _prepare_virtual(
    path: str, variable: xr.Variable, stored: ArrayV3Metadata | None, target: GroupTarget, sources: StampedSources
) -> VirtualArray:
    metadata = stored_metadata(path, variable)
    references = check_references(path, metadata, read_references(variable.data))
    sources.admit(references.urls, path)
    dtypes = sources.find_packing_dtypes(path.rpartition("/")[2], variable, references.first_url(), renamed=True)
    if dtypes is None and stored is not None and not target.replaces_attributes:  # unknown; the numbers are compared
        dtypes = cast(str | None, stored.attributes.get(PACKING_DTYPES))
    if dtypes:
        metadata = relabelled(metadata, {**metadata.attributes, PACKING_DTYPES: dtypes}, metadata.dimension_names)
    if stored is None:
        return VirtualArray(path, metadata, metadata, references, (0,) * len(metadata.shape), exists=False)
    document, first = target.lookup_chunks(path, metadata, stored)
    return VirtualArray(path, document, metadata, references, first, exists=True)


def _with_dtypes(name: Hashable, variable: xr.Variable, urls: Iterable[str], sources: StampedSources) -> xr.Variable:
    """A loadable variable that says how it was packed in the files that others refer to, as xarray packs it again."""
    dtypes = sources.find_packing_dtypes(str(name), variable, urls, renamed=False)
    if dtypes:
        variable = variable.copy(deep=False)
        variable.attrs = {**variable.attrs, PACKING_DTYPES: dtypes}
    return variable


def _prepare_loadable(path: str, variables: Mapping[Hashable, xr.Variable]) -> dict[Hashable, LoadedArray]:
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
        name: LoadedArray(
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
            warnings.warn(f"coordinate {name!r} has a space in its name: it will be read as data", stacklevel=6)
        elif name not in dataset.dims:
            names.append(name)
    listed = {"coordinates": " ".join(dict.fromkeys(names))} if names else {}
    return {**stored.attributes, **new, **listed}


def _without_storage_encoding(name: Hashable, variable: xr.Variable) -> xr.Variable:
    """The variable without its source's chunks and codecs: a coordinate of 10,000 files would have 10,000 chunks.

    Chunks that the caller chose stay.
    """
    chunks = find_chosen_chunks(name, variable)
    variable = variable.copy(deep=False)
    variable.encoding = {key: value for key, value in variable.encoding.items() if key not in _STORAGE_ENCODING}
    if chunks is not None:
        variable.encoding["chunks"] = chunks
    return variable


def find_chosen_chunks(name: Hashable, variable: xr.Variable) -> tuple[int, ...] | None:
    """The chunks in a variable's encoding, if somebody put them there; those of its source xarray prefers as well.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``: they are none for its dimensions, and xarray would ignore them.
    """
    chunks, source = variable.encoding.get("chunks"), variable.encoding.get("preferred_chunks")
    if chunks is None or (source is not None and chunks == tuple(source.values())):
        return None
    chosen = (chunks,) * variable.ndim if isinstance(chunks, int) else tuple(chunks)
    if len(chosen) != variable.ndim or not all(isinstance(size, int | np.integer) and size > 0 for size in chosen):
        raise InvalidInputError(
            f"variable {name!r} cannot be stored in chunks of {chunks!r}, as its encoding says: it has"
            f" {variable.ndim} dimensions {variable.dims}, each of which needs a length of 1 or more",
            ErrorKind.INVALID_DATASET,
        )
    return tuple(map(int, chosen))


def _try_encoding(
    path: str, variables: Mapping[Hashable, xr.Variable], stored: Mapping[str, ArrayV3Metadata], target: GroupTarget
) -> None:
    """Check that the values will be in the arrays; of dask arrays, only that they may be written there.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``, naming the variable and what does not fit.
    """
    for name, variable in variables.items():
        array = stored[str(name)]
        where = f"variable {f'{path}/{name}'.lstrip('/')!r}"
        options: dict[str, Any] = {"zarr_format": 3, "consolidated": False, "compute": variable.chunks is None}
        store = _empty_copy(str(name), array)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what they warn of is refused below, or written with the same warning
                alone(name, variable).to_zarr(store, **options, **target.xarray_options(variable))
        except _UNENCODABLE as error:
            raise InvalidInputError(
                f"{where} cannot be written into the stored array: {error}", ErrorKind.INVALID_DATASET
            ) from error
        if variable.chunks is None:
            _check_values(where, name, variable, _read_back(store, name, variable, array, target))


def alone(name: Hashable, variable: xr.Variable) -> xr.Dataset:
    """A dataset of one variable without an index, because xarray writes none into a region."""
    dataset = xr.Dataset({name: variable})
    return dataset.drop_indexes(list(dataset.indexes))


def _empty_copy(name: str, array: ArrayV3Metadata) -> MemoryStore:
    # it holds zeros: xarray decodes the first value, which a fill value such as 1e20 may not let it
    empty = dataclasses.replace(array, fill_value=array.data_type.default_scalar())
    documents = empty.to_buffer_dict(default_buffer_prototype())
    store = MemoryStore({f"{name}/{key}": value for key, value in documents.items()})
    zarr.create_group(store)
    return store


def _read_back(
    store: MemoryStore, name: Hashable, variable: xr.Variable, array: ArrayV3Metadata, target: GroupTarget
) -> tuple[xr.Variable, xr.Variable]:
    """The values as they were stored, raw and decoded."""
    with xr.open_zarr(store, consolidated=False, zarr_format=3, chunks=None, decode_cf=False) as dataset:
        window = {d: target.window(d, size) for d, size in zip(array.dimension_names or (), array.shape, strict=False)}
        raw = restore_dtypes(dataset.variables[name], str(name)).isel(window).load()
    return raw, _decode(name, raw, cftime=variable.dtype == object)


def _decode(name: Hashable, variable: xr.Variable, *, cftime: bool) -> xr.Variable:
    if cftime and " since " in str(variable.attrs.get("units")):
        times = xr.coders.CFDatetimeCoder(use_cftime=True)
        return xr.conventions.decode_cf_variable(name, variable, decode_times=times)
    return xr.conventions.decode_cf_variable(name, variable)


def _check_values(where: str, name: Hashable, given: xr.Variable, back: tuple[xr.Variable, xr.Variable]) -> None:
    raw, found = back
    expected = _decode(name, given, cftime=given.dtype == object)
    if expected.dtype.kind == found.dtype.kind == "f":
        scale = abs(float(raw.attrs.get("scale_factor", 0)))  # packed values are rounded to it
        relative = float(np.finfo(raw.dtype).eps) if raw.dtype.kind == "f" and not scale else 1e-6 if scale else 0.0
        agree: Any = np.isclose(found.values, expected.values, rtol=relative, atol=0.5 * scale, equal_nan=True)
    else:
        agree = expected.equals(found)  # type: ignore[no-untyped-call]
    if not np.all(agree):
        text = repr if expected.dtype == object else str  # that of a cftime object has its calendar
        wrong = ~np.broadcast_to(agree, expected.shape)
        pairs = zip(expected.values[wrong], found.values[wrong], strict=True)
        told = ((text(value), text(stored)) for value, stored in pairs)
        value, other = next((pair for pair in told if pair[0] != pair[1]), (f"{expected.dtype}", f"{found.dtype}"))
        raise InvalidInputError(
            f"{where} cannot be written into the stored array, which is {raw.dtype} with"
            f" {_encoding_of(raw) or 'no encoding'}: {value} would be stored as {other}",
            ErrorKind.INVALID_DATASET,
        )


def _encoding_of(raw: xr.Variable) -> str:
    return ", ".join(f"{key} {raw.attrs[key]!r}" for key in cf.MEANING if key in raw.attrs)
