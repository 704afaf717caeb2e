"""Values for arrays that exist, first written into an empty copy of them in memory.

xarray encodes them as the array's own values are. What cannot be encoded raises there, and what would be read back as
other values (times that the stored units cannot express, integers that overflow) is refused here: xarray stores it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import MemoryStore

from icelite import cf
from icelite.errors import ErrorKind, InvalidInputError
from icelite.formats.packing import restore_dtypes
from icelite.virtualizarr.place import Place

UNENCODABLE = (
    TypeError,
    ValueError,
    KeyError,
    NotImplementedError,
    OverflowError,
)  # what xarray raises for what it cannot store


def rehearse(
    path: str, variables: Mapping[Hashable, xr.Variable], stored: Mapping[str, ArrayV3Metadata], place: Place
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
                xr.Dataset({name: variable}).to_zarr(store, **options, **place.xarray_options(variable))
        except UNENCODABLE as error:
            raise InvalidInputError(
                f"{where} cannot be written into the stored array: {error}", ErrorKind.INVALID_DATASET
            ) from error
        if variable.chunks is None:
            _check_values(where, name, variable, _read_back(store, name, variable, array, place))


def _empty_copy(name: str, array: ArrayV3Metadata) -> MemoryStore:
    # it holds zeros: xarray decodes the first value, which a fill value such as 1e20 may not let it
    empty = dataclasses.replace(array, fill_value=array.data_type.default_scalar())
    documents = empty.to_buffer_dict(default_buffer_prototype())
    store = MemoryStore({f"{name}/{key}": value for key, value in documents.items()})
    zarr.create_group(store)
    return store


def _read_back(
    store: MemoryStore, name: Hashable, variable: xr.Variable, array: ArrayV3Metadata, place: Place
) -> tuple[xr.Variable, xr.Variable]:
    """The values as they were stored, raw and decoded."""
    with xr.open_zarr(store, consolidated=False, zarr_format=3, chunks=None, decode_cf=False) as dataset:
        window = {d: place.window(d, size) for d, size in zip(array.dimension_names or (), array.shape, strict=False)}
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
