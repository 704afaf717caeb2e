"""What a session holds at a group's path, and whether a virtual dataset may be written or appended there.

Old and new chunks of one array must read alike: same type, chunks, codecs, fill value, scaling and time units.
An append begins on a chunk border, because a reference cannot be joined to a chunk that is partly filled.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import xarray as xr
import zarr
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.errors import ContainsArrayError, GroupNotFoundError

from icelite import cf
from icelite.errors import AlreadyExistsError, ErrorKind, InvalidInputError, NodeNotFoundError
from icelite.formats.packing import PACKING_DTYPES
from icelite.store import IceliteStore
from icelite.virtualizarr.arrays import chunk_shape, describe_codecs

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
