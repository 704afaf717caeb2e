"""Where in a group a dataset goes: into new arrays, behind those that exist, into a region of them, or over them.

References are whole chunks, so a region begins and ends on chunk borders, or at the array's end.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import xarray as xr
from zarr.core.metadata.v3 import ArrayV3Metadata

from icelite.errors import ErrorKind, InvalidInputError, NodeNotFoundError
from icelite.store import IceliteStore
from icelite.virtualizarr.arrays import chunk_shape, is_virtual
from icelite.virtualizarr.stored import (
    StoredGroup,
    check_alike,
    check_appendable,
    check_layout,
    check_no_groups,
    check_sizes,
    check_vacant,
    lookup_first_chunk,
)

Mode: TypeAlias = Literal["w", "w-", "a"]
Region: TypeAlias = Literal["auto"] | Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What `to_icelite` was asked for."""

    mode: Mode | None = None
    append_dim: str | None = None
    region: Region | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where one dataset goes.

    Attributes
    ----------
    append_dim
        The dimension along which arrays grow.
    region
        Half-open ranges of elements.
    over
        Whether arrays that exist are written over.
    unchanged
        Variables that are stored with the same values, and not written.
    """

    mode: Mode | None = None
    append_dim: str | None = None
    region: Mapping[Hashable, slice] | None = None
    over: bool = False
    unchanged: list[Hashable] = field(default_factory=list)

    @property
    def replaces_attributes(self) -> bool:
        """Whether arrays that exist get the variable's attributes."""
        return self.over

    def xarray_options(self, variable: xr.Variable) -> dict[str, Any]:
        """What ``to_zarr`` has to know to write one variable into an array that exists."""
        if self.region is not None:
            return {"region": {dim: part for dim, part in self.region.items() if dim in variable.dims}}
        return {"mode": "a"} if self.append_dim is None else {"append_dim": self.append_dim}

    def window(self, dim: Hashable, length: int) -> slice:
        """The part of an array that is written, along a dimension that had this length."""
        if self.region is not None and dim in self.region:
            return self.region[dim]
        return slice(length, None) if dim == self.append_dim else slice(None)

    def lookup_chunks(
        self, path: str, metadata: ArrayV3Metadata, stored: ArrayV3Metadata
    ) -> tuple[ArrayV3Metadata | None, tuple[int, ...]]:
        """The array's new metadata (None where it stays), and the grid position of the variable's first chunk.

        Raises
        ------
        InvalidInputError
            ``invalid-dataset``: the variable cannot be stored there, because of what differs.
        """
        if self.over:
            check_layout(path, metadata, stored, ("shape",))
            return metadata, (0,) * len(metadata.shape)
        check_alike(path, metadata, stored)
        if self.region is not None:
            return None, _region_chunks(path, metadata, stored, self.region)
        axis = (metadata.dimension_names or ()).index(self.append_dim)
        first, shape = [0] * len(stored.shape), list(stored.shape)
        first[axis] = lookup_first_chunk(path, stored, axis)
        shape[axis] += metadata.shape[axis]
        return stored.update_shape(tuple(shape)), tuple(first)


def find_place(
    store: IceliteStore, path: str, dataset: xr.Dataset, stored: StoredGroup | None, request: Request
) -> Place:
    """Check a request for one group.

    Raises
    ------
    AlreadyExistsError, NodeNotFoundError, InvalidInputError
        ``node-already-exists``; ``node-not-found``; ``invalid-dataset``, ``invalid-argument``.
    """
    place = Place(mode=request.mode)
    check_no_groups(path, dataset, stored or StoredGroup())
    if request.region is not None:
        return _find_region(store, path, dataset, stored, request.region)
    if request.append_dim is not None:
        if request.append_dim in dataset.dims:
            check_appendable(path, dataset, stored, request.append_dim)
        return replace(place, append_dim=request.append_dim)
    if request.mode == "a":
        check_sizes((stored or StoredGroup()).arrays, dataset)
        return replace(place, over=True)
    check_vacant(path, stored)
    return place


def _find_region(
    store: IceliteStore, path: str, dataset: xr.Dataset, stored: StoredGroup | None, region: Region
) -> Place:
    if not dataset.variables:
        return Place(region={})
    stored = stored or StoredGroup()
    arrays = stored.arrays
    absent = sorted(set(map(str, dataset.variables)) - arrays.keys())
    if absent:
        raise NodeNotFoundError(
            f"group {path!r} holds no array {', '.join(absent)} to write a region of: write it first, as a whole",
            ErrorKind.NODE_NOT_FOUND,
        )
    asked = dict.fromkeys(dataset.dims, "auto") if region == "auto" else dict(region)
    wanted = {dim: part for dim, part in asked.items() if dim in dataset.dims}
    lengths = {d: n for name in map(str, dataset.variables) for d, n in _sizes(arrays[name])}
    found = {
        dim: _locate(store, path, dataset, stored, dim)
        if isinstance(part, str)
        else _bounded(path, dim, part, lengths[dim], dataset.sizes[dim])
        for dim, part in wanted.items()
        if dim in lengths
    }
    check_sizes(arrays, dataset, *found)
    unchanged: list[Hashable] = [dim for dim in dataset.indexes if dim in dataset.dims]
    for dim in unchanged:
        index = _stored_index(store, path, stored, dim)[found.get(dim, slice(None))]
        _check_coordinate(path, dim, dataset.indexes[dim], index)
    outside = [n for n, v in dataset.variables.items() if n not in unchanged and not set(found) & set(v.dims)]
    if outside:
        raise InvalidInputError(
            f"variable {', '.join(map(repr, outside))} of group {path!r} has none of the dimensions"
            f" {list(map(str, found))} of the region: drop it (vds.drop_vars)",
            ErrorKind.INVALID_DATASET,
        )
    return Place(region=found, unchanged=unchanged)


def _sizes(array: ArrayV3Metadata) -> list[tuple[Hashable, int]]:
    return list(zip(array.dimension_names or (), array.shape, strict=False))


def _bounded(path: str, dim: Hashable, part: object, length: int, size: int) -> slice:
    """A slice of the caller's with both ends, which is as long as the data."""
    if not isinstance(part, slice) or part.step not in (None, 1):
        raise InvalidInputError(
            f"region {dim!r} must be 'auto' or a slice without a step, not {part!r}", ErrorKind.INVALID_ARGUMENT
        )
    start, stop = (int(end) + (length if end < 0 else 0) for end in (part.start or 0, _stop(part, length)))
    if not 0 <= start <= stop <= length or stop - start != size:
        raise InvalidInputError(
            f"region {dim!r} of group {path!r} is [{start}, {stop}), {stop - start} elements of the {length} stored;"
            f" the data have {size}: they must be equally many, and lie within what is stored (append_dim= appends)",
            ErrorKind.INVALID_DATASET,
        )
    return slice(start, stop)


def _stop(part: slice, length: int) -> int:
    stop: int = length if part.stop is None else part.stop
    return stop


def _stored_index(store: IceliteStore, path: str, stored: StoredGroup, dim: Hashable) -> pd.Index:
    with xr.open_zarr(
        store,
        group=path or None,
        drop_variables=stored.arrays.keys() - {dim},
        consolidated=False,
        zarr_format=3,
        chunks=None,
    ) as dataset:
        return dataset.indexes[dim]


def _locate(store: IceliteStore, path: str, dataset: xr.Dataset, stored: StoredGroup, dim: Hashable) -> slice:
    """Where the values of a coordinate are in the stored one."""
    if dim not in dataset.indexes:
        lengths = {size for array in stored.arrays.values() for name, size in _sizes(array) if name == dim}
        if lengths == {dataset.sizes[dim]} and not (dim in dataset.variables and is_virtual(dataset.variables[dim])):
            return slice(0, dataset.sizes[dim])
        raise InvalidInputError(
            f"region {dim!r} of group {path!r} cannot be found: the dataset has no loaded coordinate {dim!r};"
            " load it, or pass a slice",
            ErrorKind.INVALID_DATASET,
        )
    index = _stored_index(store, path, stored, dim)
    try:
        found = np.asarray(index.get_indexer(dataset.indexes[dim]))
    except (ValueError, TypeError, pd.errors.InvalidIndexError) as error:
        raise _not_found(path, dim, str(error)) from error
    if len(found) == 0 or (found < 0).any() or (np.diff(found) != 1).any():
        raise _not_found(path, dim, "its values are not stored one behind the other, in this order")
    return slice(int(found[0]), int(found[-1]) + 1)


def _not_found(path: str, dim: Hashable, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"region {dim!r} of group {path!r} cannot be found by the coordinate: {why}; pass a slice",
        ErrorKind.INVALID_DATASET,
    )


def _check_coordinate(path: str, dim: Hashable, given: pd.Index, stored: pd.Index) -> None:
    """A region does not change coordinates, so those of the data must be those that are stored there."""
    if not stored.equals(given):
        raise InvalidInputError(
            f"coordinate {dim!r} of group {path!r} differs from what is stored in the region: {list(stored[:3])}...,"
            f" the data have {list(given[:3])}...; choose another region, or drop the coordinate"
            f" (vds.drop_vars({dim!r}))",
            ErrorKind.INVALID_DATASET,
        )


def _region_chunks(
    path: str, metadata: ArrayV3Metadata, stored: ArrayV3Metadata, region: Mapping[Hashable, slice]
) -> tuple[int, ...]:
    first = []
    for (dim, length), size, chunk in zip(_sizes(stored), metadata.shape, chunk_shape(stored), strict=True):
        part = region.get(dim, slice(0, length))
        if part.start % chunk or (part.stop % chunk and part.stop != length) or part.stop - part.start != size:
            raise InvalidInputError(
                f"variable {path!r}: the region [{part.start}, {part.stop}) of {dim!r} does not begin and end on the"
                f" borders of its chunks of {chunk} elements, of {length}; references are whole chunks, so choose"
                " another region, or load the variable (loadable_variables=)",
                ErrorKind.INVALID_DATASET,
            )
        first.append(part.start // chunk)
    return tuple(first)
