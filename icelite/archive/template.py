"""Templates: a group of full length with nothing in it yet, made as one file says it.

Steps that no file was written to read as missing. `filling` writes files to them, in any order.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata.v3 import ArrayV3Metadata

from icelite.archive.extents import growing_arrays
from icelite.archive.fit import Compat, Fitting, align_files, combine_files
from icelite.archive.inputs import Sources, list_inputs, name_of
from icelite.archive.labels import describe_kind, describe_range, find_direction, find_values
from icelite.archive.layouts import as_virtual, reads_as_missing, unwritten_like
from icelite.archive.reach import reach_of
from icelite.archive.records import METADATA, Recorded
from icelite.archive.scan import Parsing, ScannedFile, scan_files
from icelite.archive.virtualize import Access, make_fitting, opened
from icelite.config import RepositoryConfig
from icelite.conflicts import ConflictDetector
from icelite.errors import ErrorKind, InvalidInputError
from icelite.keys import check_path
from icelite.repository import Repository
from icelite.session import Session
from icelite.storage import StorageConfig
from icelite.virtualizarr.arrays import is_virtual
from icelite.virtualizarr.target import find_group
from icelite.virtualizarr.writing import to_icelite

_LONGEST_CHUNK = 65_536  # of the coordinate, in steps


def template(
    repository: str | os.PathLike[str] | StorageConfig | Repository,
    sample: str | os.PathLike[str],
    *,
    concat_dim: str,
    index: Any,
    fill_value: Mapping[str, Any] | None = None,
    group: str | None = None,
    branch: str = "main",
    message: str | None = None,
    parser: Any = "auto",
    source_group: str | None = None,
    loadable_variables: Iterable[str] | None = None,
    drop_variables: Iterable[str] | None = None,
    decode_times: bool | None = None,
    compat: Compat = "equals",
    preprocess: Callable[[xr.Dataset], xr.Dataset] | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Access | None = None,
) -> str:
    """Make a group of full length with nothing in it, as one file says it, and commit that as one snapshot.

    ``icelite.virtualize(files, repository, concat_dim=..., region="auto")`` fills it in any order, from many processes.
    The sample gives names, types, chunks, attributes and what lacks the dimension; its own steps are not filled.

    Parameters
    ----------
    repository
        The catalog's path, made if there is none; or an open repository.
    sample
        One file of those that will fill the group.
    concat_dim
        The dimension that the steps are along.
    index
        The labels of all steps, strictly in order: an array, a `pandas.DatetimeIndex`, cftime objects.
    fill_value
        By the name of a variable, what steps read as that no file was written to. By default they are missing: NaN, by
        the fill value of the file or, for floats without one, by NaN; other variables without one need it.
    group, branch, message, parser, source_group, loadable_variables, drop_variables, decode_times, compat, preprocess
        As for `virtualize`, which is to be called with the same.
    config, authorize_virtual_chunk_access
        As for `Repository.open`, when a path is given.

    Returns
    -------
    str
        Id of the snapshot.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``: labels out of order or of another kind than the sample's; a variable along the dimension
        without a value that means missing; ``invalid-dataset``: labels that the sample's type and units cannot hold.
    AlreadyExistsError
        ``node-already-exists``: the group holds arrays.
    StorageError
        ``unreadable-source``.
    """
    fitting = make_fitting(concat_dim, compat, None)
    assert fitting is not None
    making = TemplateMaking(fitting, check_path(group or ""), branch, message, dict(fill_value or {}))
    options = {
        "parser": parser,
        "group": source_group,
        "loadable_variables": None if loadable_variables is None else list(loadable_variables),
        "drop_variables": None if drop_variables is None else list(drop_variables),
        "decode_times": decode_times,
    }
    with opened(repository, config, authorize_virtual_chunk_access, True) as found:
        return making.make(sample, index, found, Parsing(options=options, preprocess=preprocess))


@dataclass(frozen=True, slots=True)
class TemplateMaking:
    """A group to be made; the fields are parameters of `icelite.template`."""

    fitting: Fitting
    group: str
    branch: str
    message: str | None
    fill_value: Mapping[str, Any]

    def make(self, sample: Sources, index: Any, repository: Repository, parsing: Parsing) -> str:
        """Make and commit it; the new snapshot's id. Raises as `icelite.template`."""
        dim = self.fitting.concat_dim
        session = repository.writable_session(self.branch)
        file, dataset = self._open(sample, session, parsing)
        labels = _check_index(index, dataset, dim)
        to_icelite(_with_room(dataset, dim, len(labels)), session.store, group=self.group or None)
        self._remove_steps(session)
        full = self._prolong(dataset, labels)
        to_icelite(full, session.store, group=self.group or None, append_dim=dim)
        self._set_fill_values(session, [str(name) for name, found in full.variables.items() if is_virtual(found)])
        recorded = Recorded(hashes=dict(file.hashes), certain=True)
        record = {"group": self.group, "concat_dim": dim, "template": name_of(file.url)}
        span = describe_range(labels[0], labels[-1])
        message = self.message or f"Make a template of {len(labels)} steps along {dim}: {span}"
        record |= recorded.to_json(Recorded())
        return session.commit(message, {METADATA: record}, rebase_with=ConflictDetector())

    def _open(self, sample: Sources, session: Session, parsing: Parsing) -> tuple[ScannedFile, xr.Dataset]:
        """The sample, and its dataset with the dimension."""
        dim = self.fitting.concat_dim
        url, *others = list_inputs(sample, session.access)
        if others:
            raise _invalid(f"a template is made from one file, and {len(others) + 1} were given")
        reach = reach_of([url], session.access, None)
        (scanned,) = scan_files([url], replace(parsing, reach=reach, concat_dim=dim, hashed=True), workers=1)
        if scanned.file is None:
            raise scanned.problem or _invalid(f"{url!r} cannot be used")
        (file,) = align_files([scanned.file], self.fitting, reach.fetch)
        dataset = combine_files([file], self.fitting, reach.fetch)
        if dim not in {*scanned.file.dataset.dims, *scanned.file.dataset.variables}:
            dims = ", ".join(map(str, dataset.dims))
            raise _invalid(
                f"{name_of(url)!r} has no dimension {dim!r}, which the index is of; its dimensions are {dims}"
            )
        return file, dataset

    def _growing(self, session: Session) -> dict[str, ArrayV3Metadata]:
        found = find_group(session.store, self.group)
        return growing_arrays({} if found is None else found.arrays, self.fitting.concat_dim)

    def _array(self, session: Session, name: str) -> zarr.Array[Any]:
        return zarr.open_array(session.store, path=f"{self.group}/{name}".lstrip("/"), mode="r+")

    def _remove_steps(self, session: Session) -> None:
        """Let the arrays along the dimension be as the sample's, but without a step."""
        dim = self.fitting.concat_dim
        for name, metadata in self._growing(session).items():
            lengths = zip(metadata.dimension_names or (), metadata.shape, strict=True)
            self._array(session, name).resize(tuple(0 if other == dim else size for other, size in lengths))

    def _prolong(self, dataset: xr.Dataset, labels: Any) -> xr.Dataset:
        """What has the dimension, at full length: the labels, and nothing or missing values for the rest."""
        dim = self.fitting.concat_dim
        unknown = sorted(name for name in self.fill_value if dim not in getattr(dataset.get(name), "dims", ()))
        if unknown:
            raise _invalid(f"fill_value= names {', '.join(map(repr, unknown))}, which no variable along {dim!r} is")
        full: dict[Hashable, xr.Variable] = {}
        for name, variable in dataset.variables.items():
            if name == dim:
                full[name] = xr.Variable((dim,), labels, variable.attrs)
            elif dim in variable.dims and is_virtual(variable):
                full[name] = unwritten_like(variable, dim, len(labels))
            elif dim in variable.dims:
                shape = tuple(len(labels) if other == dim else size for other, size in variable.sizes.items())
                value = self.fill_value.get(str(name), _missing_value(str(name), variable))
                full[name] = xr.Variable(variable.dims, np.full(shape, value, variable.dtype), variable.attrs)
        coordinates = {name: full.pop(name) for name in list(full) if name in dataset.coords}
        return xr.Dataset(full, coords=xr.Coordinates(coordinates, indexes={}))

    def _set_fill_values(self, session: Session, names: list[str]) -> None:
        """Let what no file was written to read as missing, or as the caller says.

        Raises
        ------
        InvalidInputError
            ``invalid-argument``, naming the variables that have no value for it.
        """
        arrays = self._growing(session)
        unclear = []
        for name in names:
            metadata = arrays[name]
            if name not in self.fill_value and reads_as_missing(as_virtual(metadata)):
                continue
            if name not in self.fill_value and metadata.data_type.to_native_dtype().kind != "f":
                unclear.append(name)
                continue
            value = self.fill_value.get(name, np.nan)
            try:
                changed = dataclasses.replace(metadata, fill_value=metadata.data_type.cast_scalar(value))
            except (TypeError, ValueError, OverflowError) as error:
                raise _invalid(f"fill_value={{{name!r}: {value!r}}} is none of its type: {error}") from error
            document = changed.to_buffer_dict(default_buffer_prototype())["zarr.json"]
            session.store.set_sync(f"{self.group}/{name}/zarr.json".lstrip("/"), document)
        if unclear:
            raise _invalid(
                f"variable {', '.join(map(repr, unclear))} has no value that means missing, so a step that no file was"
                f" written to would read as {arrays[unclear[0]].fill_value!r}; say what it is to read as:"
                f" fill_value={{{unclear[0]!r}: ...}}"
            )


def _check_index(index: Any, dataset: xr.Dataset, dim: str) -> Any:
    """The labels of all steps, which must be in order, and have those of the sample's kind."""
    labels = np.asarray(index)
    known = find_values(dataset, dim)
    if known is None:
        raise _invalid(
            f"the sample has no loaded coordinate {dim!r} with an order, by which files could find their place"
        )
    if labels.ndim != 1 or not len(labels) or find_direction(labels) is None:
        raise _invalid(f"index= must be the labels of all steps along {dim!r}: one or more, strictly in order")
    if describe_kind(labels) != describe_kind(known):
        raise _invalid(
            f"index= has values of the kind {describe_kind(labels)}, the sample's are {describe_kind(known)}"
        )
    return labels


def _with_room(dataset: xr.Dataset, dim: str, length: int) -> xr.Dataset:
    """The sample, its loaded values in chunks that no other file shares; but the labels, which are known, in few."""
    dataset = dataset.copy()
    for name, variable in dataset.variables.items():
        if dim in variable.dims and not is_virtual(variable):
            chunks = (min(length, _LONGEST_CHUNK),) if name == dim else tuple(max(1, size) for size in variable.shape)
            variable.encoding = {**variable.encoding, "chunks": chunks, "preferred_chunks": None}
    return dataset


def _missing_value(name: str, variable: xr.Variable) -> Any:
    kind = variable.dtype.kind
    if kind not in "fMm":
        raise _invalid(
            f"variable {name!r} has no value that means missing; say what steps that no file was written to read as:"
            f" fill_value={{{name!r}: ...}}"
        )
    return np.nan if kind == "f" else np.array("NaT", variable.dtype)


def _invalid(message: str) -> InvalidInputError:
    return InvalidInputError(message, ErrorKind.INVALID_ARGUMENT)
