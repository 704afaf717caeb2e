"""Whether files fit together: `check_agreement` finds what combining them would hide.

References are concatenated without looking at a value, and what has no concatenation dimension is taken from the
first file. So every file must say the same as the first about types, chunks, codecs, scaling, units and the grid.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from icelite.archive.inputs import name_of
from icelite.errors import ErrorKind, InvalidInputError
from icelite.virtualizarr.arrays import chunk_shape, is_virtual

Opened = tuple[str, xr.Dataset]  # a file's URL and what is in it

# What decides how stored numbers are read; xarray may have moved it from the attributes to the encoding.
_MEANING = ("_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned", "units", "calendar")
_LAYOUT = ("data_type", "codecs", "fill_value")


def check_agreement(files: Sequence[Opened], concat_dim: str) -> None:
    """Check that all files can be one dataset along ``concat_dim``.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``, naming the file, the variable and both values.
    """
    first_url, first = files[0]
    stacked = stacked_names(first, concat_dim)
    for url, dataset in files[1:]:
        try:
            _check_names(dataset, first, concat_dim)
            for name, variable in dataset.variables.items():
                varies = name in stacked or concat_dim in variable.dims
                _check_variable(str(name), variable, first.variables[name], varies)
        except _Disagreement as problem:
            raise InvalidInputError(
                f"{url!r} does not fit {name_of(first_url)!r}: {problem}", ErrorKind.INVALID_DATASET
            ) from None


def stacked_names(dataset: xr.Dataset, concat_dim: str) -> set[Hashable]:
    """The variables that a new dimension is added to: all data, and coordinates that are a single value."""
    if concat_dim in dataset.dims:
        return set()
    return {*dataset.data_vars, *(name for name, variable in dataset.coords.items() if variable.ndim == 0)}


def check_chunk_borders(files: Sequence[Opened], concat_dim: str) -> None:
    """Check that each file but the last, in the order of concatenation, ends at the end of a chunk.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``, naming the file and the variable.
    """
    for url, dataset in files[:-1]:
        for name, variable in dataset.variables.items():
            if concat_dim not in variable.dims or not is_virtual(variable):
                continue
            axis = variable.dims.index(concat_dim)
            length, chunk = variable.shape[axis], chunk_shape(variable.data.metadata)[axis]
            if length % chunk:
                raise InvalidInputError(
                    f"{url!r} has {length} elements of {name!r} along {concat_dim!r} in chunks of {chunk}, so its last"
                    " chunk is partly filled and nothing can follow it; load the variable"
                    f" (loadable_variables=[..., {str(name)!r}]), or rewrite the files",
                    ErrorKind.INVALID_DATASET,
                )


class _Disagreement(Exception):
    """What two files say differently."""


def _check_names(dataset: xr.Dataset, first: xr.Dataset, concat_dim: str) -> None:
    missing = [str(name) for name in first.variables if name not in dataset.variables]
    added = [str(name) for name in dataset.variables if name not in first.variables]
    for names, what in ((missing, "it lacks"), (added, "only it has")):
        if names:
            raise _Disagreement(f"{what} {', '.join(map(repr, names))}; leave out what differs with drop_variables=")
    for dim, size in first.sizes.items():
        if dim != concat_dim and dataset.sizes.get(dim) != size:
            raise _Disagreement(f"the grids differ: {dim!r} has length {dataset.sizes.get(dim)} instead of {size}")
    if (concat_dim in first.dims) != (concat_dim in dataset.dims):
        raise _Disagreement(f"only one of them has the dimension {concat_dim!r}")


def _check_variable(name: str, found: xr.Variable, first: xr.Variable, varies: bool) -> None:
    _same(name, "dimensions", found.dims, first.dims)
    virtual = is_virtual(found)
    if virtual != is_virtual(first):
        words = ["loaded or copied", "referenced"]
        raise _Disagreement(
            f"variable {name!r} is {words[virtual]} instead of {words[not virtual]}; load it from all of them"
            f" (loadable_variables=[..., {name!r}])"
        )
    if virtual:
        _check_layout(name, found, first)
    elif varies:
        _same(name, "kind of value", _kind(found), _kind(first))
        for key in _MEANING:  # of values that were not decoded
            _same(name, key, *(_text(variable.attrs.get(key)) for variable in (found, first)))
    elif not _is_equal(found, first):
        raise _Disagreement(
            f"the grids differ: {_first_difference(name, found, first)}; if that does not matter, leave it out"
            f" (drop_variables=[{name!r}]) or make it equal (preprocess=)"
        )


def _check_layout(name: str, found: xr.Variable, first: xr.Variable) -> None:
    _same(name, "dtype", str(found.dtype), str(first.dtype))
    ours, theirs = found.data.metadata, first.data.metadata
    _same(name, "chunk shape", chunk_shape(ours), chunk_shape(theirs))
    layouts = ours.to_dict(), theirs.to_dict()
    for key in _LAYOUT:
        _same(name, "codec" if key == "codecs" else key, *(_text(layout.get(key)) for layout in layouts))
    for key in _MEANING:
        _same(name, key, *(_text(_meaning(variable, key)) for variable in (found, first)))


def _meaning(variable: xr.Variable, key: str) -> Any:
    return variable.attrs.get(key, variable.encoding.get(key))


def _text(value: Any) -> str:
    """A value as text that is equal for equal values: NaN differs from itself."""
    return json.dumps(
        value, default=lambda other: np.asarray(other).tolist() if hasattr(other, "dtype") else str(other)
    )


def _same(name: str, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise _Disagreement(f"variable {name!r} has the {what} {found} instead of {expected}")


def _kind(variable: xr.Variable) -> str:
    """What kind of value, for values that are loaded: numbers may differ in type, but not in calendar."""
    kind = variable.dtype.kind
    if kind == "O" and variable.size:
        value = variable.values.flat[0]
        return f"{type(value).__name__} ({getattr(value, 'calendar', 'object')})"
    return "number" if kind in "iufb" else {"M": "datetime64", "m": "timedelta64"}.get(kind, kind)


def _is_equal(found: xr.Variable, first: xr.Variable) -> bool:
    return found.shape == first.shape and bool(found.equals(first))  # type: ignore[no-untyped-call]


def _first_difference(name: str, found: xr.Variable, first: xr.Variable) -> str:
    if found.shape != first.shape:
        return f"{name!r} has the shape {found.shape} instead of {first.shape}"
    for index in _differing(found.values, first.values):
        return f"{name!r} is {found.values[index]} instead of {first.values[index]} at {list(map(int, index))}"
    return f"{name!r} differs"


def _differing(found: np.ndarray[Any, Any], first: np.ndarray[Any, Any]) -> Iterator[tuple[int, ...]]:
    for index in np.ndindex(found.shape):
        ours, theirs = found[index], first[index]
        if ours != theirs and not (ours != ours and theirs != theirs):  # NaN differs from itself
            yield index
