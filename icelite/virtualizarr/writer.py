"""`to_icelite` and the accessors ``ds.icelite`` and ``tree.icelite``: a virtual dataset written into a store.

Everything is checked before the first write, so bad input leaves the session as it was.
Loadable variables are written as real chunks by xarray, in the store's own chunks and codecs, not their source's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime

import xarray as xr
import zarr
from zarr.core.buffer import Buffer
from zarr.core.sync import sync

from icelite.errors import ErrorKind, InvalidInputError, ReadOnlyError
from icelite.keys import check_path
from icelite.store import IceliteStore
from icelite.virtualizarr.plan import PlannedArray, PlannedGroup, plan_group
from icelite.virtualizarr.sources import Sources


def to_icelite(
    vds: xr.Dataset | xr.DataTree,
    store: IceliteStore,
    *,
    group: str | None = None,
    append_dim: str | None = None,
    validate_containers: bool = True,
    last_updated_at: datetime | None = None,
) -> None:
    """Write a virtual dataset into the store of a writable session; commit the session afterwards.

    Variables that wrap a ``ManifestArray`` become arrays of virtual references; others are written as real
    chunks. What each source looks like now (size, modification time, ETag) is recorded with its references, for
    objects on S3 if they may be read; a source that changes afterwards is an error when it is read.

    Packed values are decoded to the type of ``scale_factor`` and ``add_offset`` in their file, often `float32`. JSON
    has no such types and VirtualiZarr drops them, so they are read from the header of the first file that a variable
    refers to (HDF5, netCDF-3) and recorded in the array's attribute ``icelite_packing_dtypes``, which the engine
    ``icelite`` applies and hides; see `icelite.virtualizarr.packing`. A file that may not be read gives a warning.

    Parameters
    ----------
    vds
        What ``virtualizarr.open_virtual_dataset``, ``open_virtual_mfdataset`` or ``open_virtual_datatree``
        returned, combined as wanted. Each node of a tree is written to its own group.
    store
        ``session.store`` of a writable session.
    group
        Path of the group to write; the root by default. It must not hold arrays yet, unless ``append_dim``.
    append_dim
        Append along this dimension to the arrays that the group holds. Variables without it that are stored
        already are left as they are. The stored length must be a whole number of chunks.
    validate_containers
        Whether every location must be one that the repository declares.
    last_updated_at
        The sources must not be modified after this time, which has a time zone; it replaces their recorded
        size and modification time.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``, ``invalid-dataset``, ``bad-metadata``, ``invalid-path``, ``zero-length-chunk``, or as
        `IceliteStore.set_virtual_refs_arr` for a location that cannot be referenced. Nothing was written.
    AlreadyExistsError
        ``node-already-exists``: the group holds arrays and ``append_dim`` is not given.
    NodeNotFoundError
        ``node-not-found``: there is no group, or no array of that name, to append to.
    ReadOnlyError
        ``read-only-store``.
    """
    _check_arguments(vds, store, group, append_dim, last_updated_at)
    sources = Sources(store.session.access, validate_containers, last_updated_at)
    datasets = _datasets(vds, check_path(group or ""))
    plans = [plan_group(store, path, dataset, append_dim, sources) for path, dataset in datasets]
    for url, problem in sources.unread.items():
        warnings.warn(f"packed values of {url!r} may be decoded to float64 instead of float32: {problem}", stacklevel=2)
    for plan in plans:
        _write_loadable(store, plan)
        for array in plan.arrays:
            _write_array(store, array, sources)
        # last: xarray's to_zarr replaces the attributes of the group it writes to
        zarr.open_group(store, path=plan.path, mode="r+", use_consolidated=False).update_attributes(plan.attributes)


@xr.register_dataset_accessor("icelite")  # type: ignore[no-untyped-call]
@xr.register_datatree_accessor("icelite")  # type: ignore[no-untyped-call]
class IceliteAccessor:
    """``ds.icelite`` and ``tree.icelite``: what icelite adds to xarray's objects."""

    def __init__(self, data: xr.Dataset | xr.DataTree) -> None:
        self._data = data

    def to_icelite(
        self,
        store: IceliteStore,
        *,
        group: str | None = None,
        append_dim: str | None = None,
        validate_containers: bool = True,
        last_updated_at: datetime | None = None,
    ) -> None:
        """Write this virtual dataset or tree into a store; see `icelite.virtualizarr.to_icelite`."""
        to_icelite(
            self._data,
            store,
            group=group,
            append_dim=append_dim,
            validate_containers=validate_containers,
            last_updated_at=last_updated_at,
        )


def _check_arguments(
    vds: object, store: object, group: object, append_dim: str | None, last_updated_at: object
) -> None:
    if not isinstance(vds, xr.Dataset | xr.DataTree):
        raise InvalidInputError(
            f"to_icelite writes an xarray Dataset or DataTree, not {type(vds).__name__}", ErrorKind.INVALID_ARGUMENT
        )
    if not isinstance(store, IceliteStore):
        raise InvalidInputError(
            f"to_icelite writes to an IceliteStore, not {type(store).__name__}: pass session.store",
            ErrorKind.INVALID_ARGUMENT,
        )
    if store.read_only:
        raise ReadOnlyError(
            f"{store} is read-only: write to the store of repo.writable_session(branch)", ErrorKind.READ_ONLY_STORE
        )
    if group is not None and not isinstance(group, str):
        raise InvalidInputError(f"group must be a path, not {group!r}", ErrorKind.INVALID_ARGUMENT)
    if last_updated_at is not None and (not isinstance(last_updated_at, datetime) or last_updated_at.tzinfo is None):
        raise InvalidInputError(
            f"last_updated_at must be a datetime with a time zone, not {last_updated_at!r}", ErrorKind.INVALID_ARGUMENT
        )
    nodes = [vds] if isinstance(vds, xr.Dataset) else vds.subtree
    if append_dim is not None and not any(append_dim in node.dims for node in nodes):
        raise InvalidInputError(
            f"append_dim {append_dim!r} is not a dimension of the dataset, which has {sorted(map(str, vds.dims))}",
            ErrorKind.INVALID_ARGUMENT,
        )


def _datasets(vds: xr.Dataset | xr.DataTree, group: str) -> Iterator[tuple[str, xr.Dataset]]:
    """Yield ``(group path, dataset)``; a tree's nodes from the top, without what they inherit inside it."""
    if isinstance(vds, xr.Dataset):
        yield group, vds
        return
    for node in vds.subtree:
        below = "" if node is vds else node.relative_to(vds)
        yield f"{group}/{below}".strip("/"), node.to_dataset(inherit=node is vds)


def _write_loadable(store: IceliteStore, plan: PlannedGroup) -> None:
    """Create the group and write the variables that xarray writes by itself."""
    zarr.open_group(store, path=plan.path, mode="a", zarr_format=3, use_consolidated=False)
    for variables, along in ((plan.lazy, None), (plan.appended, plan.append_dim)):
        if variables:
            xr.Dataset(variables).to_zarr(
                store,
                group=plan.path or None,
                mode="a" if along is None else None,  # with append_dim xarray chooses the mode
                append_dim=along,
                zarr_format=3,
                consolidated=False,
            )


def _write_array(store: IceliteStore, array: PlannedArray, sources: Sources) -> None:
    sync(_set_values(store, array.path, array.values))
    if array.references is not None and array.references.urls:
        store.set_virtual_refs_arr(
            array.path,
            array.references.grid,
            array.references.locations,
            array.references.offsets,
            array.references.lengths,
            validate_containers=sources.validate_containers,
            arr_offset=array.first_chunk if any(array.first_chunk) else None,
            checksum=sources.last_updated_at,
            stamps=sources.stamps if sources.last_updated_at is None else None,
        )


async def _set_values(store: IceliteStore, path: str, values: Mapping[str, Buffer]) -> None:
    for name, value in values.items():
        await store.set(f"{path}/{name}", value)
