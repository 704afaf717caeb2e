"""The part of a group that a dataset is written to: new arrays, those that exist, their ends, or a region of them.

Old and new chunks of one array must read alike: same type, chunks, codecs, fill value, scaling and units. References
are whole chunks, so an append begins on a chunk border, and a region begins and ends on one, or at the array's end.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import xarray as xr
import zarr
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.errors import ContainsArrayError, GroupNotFoundError

from icelite import cf
from icelite.errors import AlreadyExistsError, ErrorKind, InvalidInputError, NodeNotFoundError
from icelite.formats.attributes import PACKING_DTYPES
from icelite.store import IceliteStore
from icelite.store.references import SHOWN
from icelite.virtualizarr.arrays import chunk_shape, describe_codecs, is_virtual

Mode: TypeAlias = Literal["w", "w-", "a"]
Region: TypeAlias = Literal["auto"] | Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """The way of writing that `to_icelite` was asked for."""

    mode: Mode | None = None
    append_dim: str | None = None
    region: Region | None = None


@dataclass(frozen=True, slots=True)
class GroupTarget:
    """The part of a group that one dataset goes to.

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


def find_target(
    store: IceliteStore, path: str, dataset: xr.Dataset, stored: StoredGroup | None, request: Request
) -> GroupTarget:
    """Check a request for one group.

    Raises
    ------
    AlreadyExistsError, NodeNotFoundError, InvalidInputError
        ``node-already-exists``; ``node-not-found``; ``invalid-dataset``, ``invalid-argument``.
    """
    target = GroupTarget(mode=request.mode)
    check_no_groups(path, dataset, stored or StoredGroup())
    if request.region is not None:
        return _find_region(store, path, dataset, stored, request.region)
    if request.append_dim is not None:
        if request.append_dim in dataset.dims:
            check_appendable(path, dataset, stored, request.append_dim)
        return replace(target, append_dim=request.append_dim)
    if request.mode == "a":
        check_sizes((stored or StoredGroup()).arrays, dataset)
        return replace(target, over=True)
    check_vacant(path, stored)
    return target


def _find_region(
    store: IceliteStore, path: str, dataset: xr.Dataset, stored: StoredGroup | None, region: Region
) -> GroupTarget:
    if not dataset.variables:
        return GroupTarget(region={})
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
    return GroupTarget(region=found, unchanged=unchanged)


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
    absent = dataset.indexes[dim][found < 0] if len(found) else []
    if len(absent):
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        raise _not_found(path, dim, f"{', '.join(map(str, absent[:SHOWN]))}{more} not among the {len(index)} stored")
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


_LAYOUT_KEYS = ("data_type", "dimension_names", "chunk_grid", "fill_value")


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """What the session already holds at a group's path."""

    attributes: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, ArrayV3Metadata] = field(default_factory=dict)
    groups: frozenset[str] = frozenset()


def find_group(store: IceliteStore, path: str) -> StoredGroup | None:
    """What is stored at ``path``, or None.

    Raises
    ------
    AlreadyExistsError
        ``node-already-exists``: there is an array at the path or above it.
    InvalidInputError
        ``invalid-argument``: a group at the path or above it is stored in Zarr format 2.
    """
    parts = path.split("/") if path else []
    group = None
    for depth in range(len(parts) + 1):
        at = "/".join(parts[:depth])
        try:
            group = zarr.open_group(store, path=at, mode="r", use_consolidated=False)
        except GroupNotFoundError:
            group = None
        except ContainsArrayError as error:
            raise AlreadyExistsError(
                f"cannot write the group {path!r}: {at!r} is an array; choose another group=",
                ErrorKind.NODE_ALREADY_EXISTS,
            ) from error
        if group is not None and group.metadata.zarr_format != 3:
            raise InvalidInputError(
                f"group {at!r} is stored in Zarr format {group.metadata.zarr_format}; virtual datasets are written in"
                " format 3, which cannot be mixed with it: choose another group=",
                ErrorKind.INVALID_ARGUMENT,
            )
    if group is None:
        return None
    members = dict(group.members())
    return StoredGroup(
        dict(group.attrs),
        {name: member.metadata for name, member in members.items() if isinstance(member.metadata, ArrayV3Metadata)},
        frozenset(name for name, member in members.items() if isinstance(member, zarr.Group)),
    )


def find_stored(store: IceliteStore, path: str, mode: str | None) -> StoredGroup | None:
    """`find_group`, as a mode sees it: ``"w"`` sees nothing, for it deletes what is there.

    Raises
    ------
    AlreadyExistsError, InvalidInputError
        As `find_group`; ``node-already-exists`` also when there is a group and the mode is ``"w-"``.
    """
    if mode == "w":
        return None
    stored = find_group(store, path)
    if stored is not None and mode == "w-":
        raise AlreadyExistsError(
            f"group {path!r} exists: choose another group=, or mode='w' to replace it, mode='a' to add to it",
            ErrorKind.NODE_ALREADY_EXISTS,
        )
    return stored


def check_vacant(path: str, stored: StoredGroup | None) -> None:
    """Check that a new dataset may be written into the group.

    Raises
    ------
    AlreadyExistsError
        ``node-already-exists``: it holds arrays.
    """
    if stored is None:
        return
    if stored.arrays:
        raise AlreadyExistsError(
            f"group {path!r} already holds {', '.join(sorted(stored.arrays))}: pass append_dim= to append to it,"
            " mode='a' to add to it, mode='w' to replace it, or choose another group=",
            ErrorKind.NODE_ALREADY_EXISTS,
        )


def check_no_groups(path: str, dataset: xr.Dataset, stored: StoredGroup) -> None:
    """Check that no variable has the name of a group in its group.

    Raises
    ------
    AlreadyExistsError
        ``node-already-exists``.
    """
    taken = sorted(stored.groups & set(map(str, dataset.variables)))
    if taken:
        raise AlreadyExistsError(
            f"group {path!r} already holds the groups {', '.join(taken)}: rename the variables, or choose another one",
            ErrorKind.NODE_ALREADY_EXISTS,
        )


def check_appendable(path: str, dataset: xr.Dataset, stored: StoredGroup | None, append_dim: str) -> None:
    """Check that after the append the group's arrays will agree on the length of every dimension.

    Raises
    ------
    NodeNotFoundError
        ``node-not-found``: a variable has no array to be appended to.
    InvalidInputError
        ``invalid-dataset``: a length would differ.
    """
    arrays = stored.arrays if stored is not None else {}
    growing = {name for name, array in arrays.items() if append_dim in (array.dimension_names or ())}
    given = {str(name) for name, variable in dataset.variables.items() if append_dim in variable.dims}
    if not growing or given - growing:
        raise NodeNotFoundError(
            f"group {path!r} holds no array {', '.join(sorted(given - growing)) or 'at all'} with the dimension"
            f" {append_dim!r} to append to: write the first part without append_dim=",
            ErrorKind.NODE_NOT_FOUND,
        )
    if growing - given:
        raise InvalidInputError(
            f"group {path!r} also holds {', '.join(sorted(growing - given))} along {append_dim!r}, which the dataset"
            " lacks, so the lengths would differ: add them to the dataset",
            ErrorKind.INVALID_DATASET,
        )
    lengths = {arrays[name].shape[(arrays[name].dimension_names or ()).index(append_dim)] for name in growing}
    if len(lengths) > 1:
        raise InvalidInputError(
            f"the arrays of group {path!r} have the lengths {sorted(lengths)} along {append_dim!r}: make them equal"
            " before appending",
            ErrorKind.INVALID_DATASET,
        )
    check_sizes(arrays, dataset, append_dim)


def check_sizes(arrays: Mapping[str, ArrayV3Metadata], dataset: xr.Dataset, *but: Hashable) -> None:
    """Check that stored arrays and a dataset agree on the length of every dimension ``but`` these.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``.
    """
    for name, array in arrays.items():
        for dim, size in zip(array.dimension_names or (), array.shape, strict=False):
            if dim not in but and dim in dataset.sizes and dataset.sizes[dim] != size:
                only = f"only {', '.join(map(repr, but))} may differ" if but else "they must be equal"
                raise InvalidInputError(
                    f"the stored variable {name!r} has length {size} along {dim!r}, the dataset has"
                    f" {dataset.sizes[dim]}: {only}",
                    ErrorKind.INVALID_DATASET,
                )


def check_alike(path: str, metadata: ArrayV3Metadata, stored: ArrayV3Metadata) -> None:
    """Check that new chunks read like those of the stored array beside which they will be.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``, naming what differs.
    """
    check_layout(path, metadata, stored)
    _check_equal(path, (*cf.MEANING, PACKING_DTYPES), stored.attributes, metadata.attributes)


def check_layout(path: str, metadata: ArrayV3Metadata, stored: ArrayV3Metadata, also: tuple[str, ...] = ()) -> None:
    """Check that two arrays agree in type, dimensions, chunks, codecs and fill value, and in ``also``.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``, naming what differs.
    """
    _check_equal(path, (*_LAYOUT_KEYS, *also), stored.to_dict(), metadata.to_dict())
    if describe_codecs(stored) != describe_codecs(metadata):
        _check_equal(path, ("codecs",), stored.to_dict(), metadata.to_dict())


def _check_equal(path: str, keys: tuple[str, ...], stored: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for key in keys:
        expected, found = stored.get(key), new.get(key)
        if cf.as_text(key, expected) != cf.as_text(key, found):
            raise InvalidInputError(
                f"variable {path!r} cannot be written into the stored array: its {key} is {found}, the stored array's"
                f" is {expected}; write it to another group, or load it (loadable_variables=) so that it is rewritten",
                ErrorKind.INVALID_DATASET,
            )


def lookup_first_chunk(path: str, stored: ArrayV3Metadata, axis: int) -> int:
    """Index of the first new chunk along ``axis`` of an array that grows.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``: the last chunk is partly filled.
    """
    length, chunk = stored.shape[axis], chunk_shape(stored)[axis]
    if length % chunk:
        raise InvalidInputError(
            f"variable {path!r} cannot be appended: it has {length} elements in chunks of {chunk}, so its last chunk"
            " is partly filled and a referenced chunk cannot be joined to it; write all parts at once, or load the"
            " variable (loadable_variables=)",
            ErrorKind.INVALID_DATASET,
        )
    return length // chunk
