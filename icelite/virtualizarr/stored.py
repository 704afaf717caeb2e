"""What a session holds at a group's path, and whether a virtual dataset may be written or appended there.

Old and new chunks of one array must read alike: same type, chunks, codecs, fill value, scaling and time units.
An append begins on a chunk border, because a reference cannot be joined to a chunk that is partly filled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import xarray as xr
import zarr
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.errors import ContainsArrayError, GroupNotFoundError

from icelite.errors import AlreadyExistsError, ErrorKind, InvalidInputError, NodeNotFoundError
from icelite.store import IceliteStore
from icelite.virtualizarr.arrays import chunk_shape
from icelite.virtualizarr.packing import PACKING_DTYPES, PACKING_KEYS

_LAYOUT_KEYS = ("data_type", "dimension_names", "chunk_grid", "codecs", "fill_value")
_MEANING_KEYS = ("_FillValue", "missing_value", *PACKING_KEYS, PACKING_DTYPES, "_Unsigned")


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


def check_vacant(path: str, dataset: xr.Dataset, stored: StoredGroup | None) -> None:
    """Check that a new dataset may be written into the group.

    Raises
    ------
    AlreadyExistsError
        ``node-already-exists``: it holds arrays, or a group with a variable's name.
    """
    if stored is None:
        return
    taken = sorted(stored.arrays) or sorted(stored.groups & set(map(str, dataset.variables)))
    if taken:
        raise AlreadyExistsError(
            f"group {path!r} already holds {', '.join(taken)}: pass append_dim= to append to it,"
            " choose another group=, or delete it first",
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
    _check_sizes(arrays, dataset, append_dim)


def _check_sizes(arrays: Mapping[str, ArrayV3Metadata], dataset: xr.Dataset, append_dim: str) -> None:
    for name, array in arrays.items():
        for dim, size in zip(array.dimension_names or (), array.shape, strict=False):
            if dim != append_dim and dim in dataset.sizes and dataset.sizes[dim] != size:
                raise InvalidInputError(
                    f"the stored variable {name!r} has length {size} along {dim!r}, the dataset to append has"
                    f" {dataset.sizes[dim]}: only {append_dim!r} may grow",
                    ErrorKind.INVALID_DATASET,
                )


def lookup_first_chunk(path: str, metadata: ArrayV3Metadata, stored: ArrayV3Metadata, axis: int) -> int:
    """Index of the first new chunk along ``axis``, after checking that old and new chunks read alike.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``, naming what differs, or a last chunk that is partly filled.
    """
    layouts, attributes = (stored.to_dict(), metadata.to_dict()), (stored.attributes, metadata.attributes)
    in_time = any(" since " in str(found.get("units")) for found in attributes)
    meanings = (*_MEANING_KEYS, "units", "calendar") if in_time else _MEANING_KEYS
    for key, (old, new) in [*((key, layouts) for key in _LAYOUT_KEYS), *((key, attributes) for key in meanings)]:
        expected, found = old.get(key), new.get(key)
        if json.dumps(expected) != json.dumps(found):  # as text, because NaN differs from itself
            raise InvalidInputError(
                f"variable {path!r} cannot be appended: its {key} is {found}, the stored array's is {expected};"
                " write it to another group, or load it (loadable_variables=) so that it is rewritten",
                ErrorKind.INVALID_DATASET,
            )
    length, chunk = stored.shape[axis], chunk_shape(stored)[axis]
    if length % chunk:
        raise InvalidInputError(
            f"variable {path!r} cannot be appended: it has {length} elements in chunks of {chunk}, so its last chunk"
            " is partly filled and a referenced chunk cannot be joined to it; write all parts at once, or load the"
            " variable (loadable_variables=)",
            ErrorKind.INVALID_DATASET,
        )
    return length // chunk
