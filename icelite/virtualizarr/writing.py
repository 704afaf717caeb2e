"""`to_icelite` and the accessors ``ds.icelite`` and ``tree.icelite``: a virtual dataset written into a store.

Everything is checked, and what must be copied is read, before the first write: bad input leaves the session as it was.
Loadable variables are written as real chunks by xarray, in the store's own chunks and codecs, not their source's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

import numpy as np
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from icelite.catalog.database import Transaction
from icelite.change_set import ChangeSet
from icelite.errors import ErrorKind, InvalidInputError, ReadOnlyError
from icelite.formats.parsed import OWN_COORDINATES
from icelite.interrupts import heard_interrupts
from icelite.keys import check_path
from icelite.store import IceliteStore
from icelite.store.references import MISSING, CodedUrls, ReferenceWriter, stamp_of
from icelite.types import chunk_name
from icelite.virtualizarr.arrays import encode_document
from icelite.virtualizarr.copies import Copier, Copies
from icelite.virtualizarr.preparation import PreparedGroup, VirtualArray, alone, prepare_group
from icelite.virtualizarr.sources import StampedSources, parsed_stamps
from icelite.virtualizarr.target import Mode, Region, Request, find_group

_DOCUMENT = "zarr.json"
_MODES = ("w", "w-", "a")
_LOOKED_UP = 10_000  # missing chunks: more are found faster by listing the array's


@dataclass(frozen=True, slots=True)
class WriteSummary:
    """What one call of `to_icelite` wrote.

    Attributes
    ----------
    references
        Chunks that are references to files.
    inlined
        Chunks whose bytes the manifests held.
    copied
        Path of an array to the number of its chunks that cannot be referenced, and were copied.
    loaded
        Paths of the arrays that were written from values.
    unchecked
        URL of a file to the reason why it was not searched for chunks that cannot be referenced.
    """

    references: int
    inlined: int
    copied: Mapping[str, int]
    loaded: Sequence[str]
    unchecked: Mapping[str, str]


@heard_interrupts()
def to_icelite(
    vds: xr.Dataset | xr.DataTree,
    store: IceliteStore,
    *,
    group: str | None = None,
    mode: Mode | None = None,
    append_dim: str | None = None,
    region: Region | None = None,
    validate_containers: bool = True,
    last_updated_at: datetime | None = None,
    on_unreferenceable: Literal["copy", "raise"] = "copy",
    write_inherited_coords: bool = False,
) -> WriteSummary:
    """Write a virtual dataset into the store of a writable session; commit the session afterwards.

    Variables that wrap a ``ManifestArray`` become arrays of virtual references; others are written as real
    chunks. What each source looked like (size, modification time, ETag) is recorded with its references: when it was
    parsed, if ``vds.encoding["icelite_sources"]`` says so, else now, for objects on S3 if they may be read; a source
    that changes afterwards is an error when it is read.

    Chunks of HDF5 files that a reference would misread are copied: those that HDF5 stored without some of their
    filters, and datasets whose data are in other files (external storage, virtual datasets), which parsers hand on
    as if nothing were there. Local files are opened once each to find them (h5py), remote ones only if their
    references leave room for such chunks and they may be read.

    Packed values are decoded to the type of ``scale_factor`` and ``add_offset`` in their file, often `float32`. JSON
    has no such types and VirtualiZarr drops them, so they are read from the header of the first file that a variable
    refers to (HDF5, netCDF-3) and recorded in the array's attribute ``icelite_packing_dtypes``, which the engine
    ``icelite`` applies and hides; see `icelite.formats.attributes`. A file that may not be read gives a warning.

    Parameters
    ----------
    vds
        What ``virtualizarr.open_virtual_dataset``, ``open_virtual_mfdataset`` or ``open_virtual_datatree``
        returned, combined as wanted. Each node of a tree is written to its own group.
    store
        ``session.store`` of a writable session.
    group
        Path of the group to write; the root by default.
    mode
        ``None``: the group must not hold arrays yet. ``"w-"``: it must not exist. ``"w"``: it is deleted first, with
        all below it. ``"a"``: arrays in it are kept; one that has a variable's name must have the same shape, type,
        chunks and codecs, and is written over.
    append_dim
        Append along this dimension to the arrays that the group holds. Variables without it that are stored
        already are left as they are. The stored length of virtual variables must be a whole number of chunks.
    region
        Write into this part of the arrays that the group holds: dimension to a slice, half-open in elements and as
        long as the data, or to ``"auto"``, which finds the coordinate's values among those stored; ``"auto"`` alone
        does so for every dimension. Virtual variables begin and end on borders of chunks, or at the array's end.
        Attributes and coordinates stay; coordinates of the data must equal them. What the data have no chunk for
        becomes missing.
    validate_containers
        Whether every location must be one that the repository declares.
    last_updated_at
        The sources must not be modified after this time, which has a time zone; it replaces their recorded
        size and modification time.
    on_unreferenceable
        ``"raise"`` refuses what would be copied, with a list.
    write_inherited_coords
        Whether a tree's nodes repeat the coordinates they inherit.

    Returns
    -------
    WriteSummary
        What was written, counted.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``, ``invalid-dataset``, ``bad-metadata``, ``invalid-path``, ``zero-length-chunk``,
        ``invalid-virtual-ref`` or as `IceliteStore.set_virtual_refs_arr` for what cannot be referenced (nor copied),
        with a list. Nothing was written.
    AlreadyExistsError
        ``node-already-exists``: the group holds arrays and none of ``mode``, ``append_dim``, ``region`` allows that.
    NodeNotFoundError
        ``node-not-found``: there is no group, or no array of that name, to write to.
    StorageError
        ``virtual-chunk-modified``: a source changed since it was parsed. Nothing was written.
    ReadOnlyError
        ``read-only-store``.
    """
    request = Request(mode, append_dim, region)
    _check_arguments(vds, store, group, request, last_updated_at, on_unreferenceable)
    top = check_path(group or "")
    if mode == "w" and top:
        find_group(store, top.rpartition("/")[0])  # what is above stays, and must be groups
    datasets = list(_datasets(vds, top, write_inherited_coords))
    parsed = parsed_stamps(dataset for _, dataset in datasets)
    sources = StampedSources(store.session.access, validate_containers, last_updated_at, parsed)
    sources.note(dataset for _, dataset in datasets)
    prepared = [prepare_group(store, path, dataset, request, sources) for path, dataset in datasets]
    copier = Copier(sources, prepared, copy=on_unreferenceable == "copy")
    copier.run()
    for array in (array for each in prepared for array in each.virtual()):
        sources.check_packing(array.path, array.references.urls)
    for url, problem in sources.unread.items():
        warnings.warn(f"packed values of {url!r} may be decoded to float64 instead of float32: {problem}", stacklevel=2)
    if mode == "w":
        sync(store.delete_dir(top))
    for each in prepared:
        _write_group(store, each, copier.copies, sources)
    summary = _summarise(prepared, copier)
    copier.copies.close()
    return summary


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
        mode: Mode | None = None,
        append_dim: str | None = None,
        region: Region | None = None,
        validate_containers: bool = True,
        last_updated_at: datetime | None = None,
        on_unreferenceable: Literal["copy", "raise"] = "copy",
        write_inherited_coords: bool = False,
    ) -> WriteSummary:
        """Write this virtual dataset or tree into a store; see `icelite.virtualizarr.to_icelite`."""
        return to_icelite(
            self._data,
            store,
            group=group,
            mode=mode,
            append_dim=append_dim,
            region=region,
            validate_containers=validate_containers,
            last_updated_at=last_updated_at,
            on_unreferenceable=on_unreferenceable,
            write_inherited_coords=write_inherited_coords,
        )


def _datasets(vds: xr.Dataset | xr.DataTree, group: str, inherited: bool) -> Iterator[tuple[str, xr.Dataset]]:
    """Yield ``(group path, dataset)``; a tree's nodes from the top, what they inherit inside it if wanted."""
    if isinstance(vds, xr.Dataset):
        yield group, vds
        return
    for node in vds.subtree:
        below = "" if node is vds else node.relative_to(vds)
        dataset = node.to_dataset(inherit=inherited or node is vds)
        repeated = [name for name in dataset.encoding.get(OWN_COORDINATES, ()) if name not in dataset]
        if repeated:  # the file has them in both groups, and either may be opened alone
            whole = node.to_dataset(inherit=True)
            dataset = dataset.assign_coords({name: whole.coords[name] for name in repeated if name in whole.coords})
        yield f"{group}/{below}".strip("/"), dataset


def _write_group(store: IceliteStore, prepared: PreparedGroup, copies: Copies, sources: StampedSources) -> None:
    """Create the group, let xarray write what it writes by itself, write the arrays."""
    options: dict[str, Any] = {"group": prepared.path or None, "zarr_format": 3, "consolidated": False}
    zarr.open_group(store, path=prepared.path, mode="a", zarr_format=3, use_consolidated=False)
    if prepared.lazy:
        xr.Dataset(prepared.lazy).to_zarr(store, mode="a", **options)
    for name, variable in prepared.existing.items():
        alone(name, variable).to_zarr(store, **options, **prepared.target.xarray_options(variable))
    changes = store.session.changes
    changes.nodes.set_documents(_documents(prepared))
    with changes.lock, changes.catalog.stage() as txn:
        writer = ReferenceWriter(changes, store.session.access, sources.validate_containers)
        for array in prepared.virtual():
            _stage_references(txn, writer, changes, array, sources)
    for each in prepared.arrays:
        if isinstance(each, VirtualArray):
            _write_chunks(store, each, copies)
            continue
        for name, value in each.values.items():
            if name != _DOCUMENT:
                store.set_sync(f"{each.path}/{name}", value)
    if prepared.target.region is None:
        # last: xarray's to_zarr replaces the attributes of the group it writes to
        group = zarr.open_group(store, path=prepared.path, mode="r+", use_consolidated=False)
        group.update_attributes(prepared.attributes)


def _documents(prepared: PreparedGroup) -> Iterator[tuple[str, str, str]]:
    """Path, name and text of the metadata to write, in the order of the arrays."""
    for array in prepared.arrays:
        if isinstance(array, VirtualArray):
            if array.document is not None:
                yield array.path, _DOCUMENT, encode_document(array.document)
        else:
            yield array.path, _DOCUMENT, array.values[_DOCUMENT].to_bytes().decode()


def _stage_references(
    txn: Transaction, writer: ReferenceWriter, changes: ChangeSet, array: VirtualArray, sources: StampedSources
) -> None:
    references = array.references
    if not references.urls:
        return
    entry, info = changes.nodes.lookup_array(array.path)
    writer.write_arrays(
        txn,
        array.path,
        entry.node.node_id,
        info,
        references.grid,
        array.first_chunk,
        CodedUrls(references.urls, references.codes),
        references.offsets,
        references.lengths,
        sources.stamps if sources.last_updated_at is None else {},
        stamp_of(sources.last_updated_at),
    )


def _write_chunks(store: IceliteStore, array: VirtualArray, copies: Copies) -> None:
    """Delete the chunks that the variable lacks, and write those that are no references."""
    buffer = default_buffer_prototype().buffer
    if array.exists:
        _delete_missing(store, array)
    for chunks in (array.references.inlined.items(), copies.chunks(array.path)):
        for index, data in chunks:
            name = array.metadata.encode_chunk_key(_shifted(index, array))
            store.set_sync(f"{array.path}/{name}", buffer.from_bytes(data))


def _delete_missing(store: IceliteStore, array: VirtualArray) -> None:
    """Delete the chunks of the array that the variable lacks, so that they read as fill values there too."""
    numbers = np.flatnonzero(array.references.missing())
    if len(numbers) == 0:
        return
    positions = np.stack(np.unravel_index(numbers, array.references.grid or (1,)), axis=1)
    first = array.first_chunk
    missing = [chunk_name(place) for place in (positions[:, : len(first)] + np.array(first, np.int64)).tolist()]
    changes = store.session.changes
    node_id = changes.nodes.lookup_array(array.path)[0].node.node_id
    if len(missing) > _LOOKED_UP:
        missing = list({chunk for chunk, _ in changes.chunks.sizes(node_id)}.intersection(missing))
    changes.chunks.delete(node_id, missing)


def _shifted(index: tuple[int, ...], array: VirtualArray) -> tuple[int, ...]:
    return tuple(at + first for at, first in zip(index, array.first_chunk, strict=True))


def _summarise(prepared: Sequence[PreparedGroup], copier: Copier) -> WriteSummary:
    virtual = [array.references for each in prepared for array in each.virtual()]
    loaded = [array.path for each in prepared for array in each.arrays if not isinstance(array, VirtualArray)]
    by_xarray = [f"{each.path}/{name}".lstrip("/") for each in prepared for name in (*each.lazy, *each.existing)]
    return WriteSummary(
        references=sum(int((references.codes != MISSING).sum()) for references in virtual),
        inlined=sum(len(references.inlined) for references in virtual),
        copied=copier.copies.counts(),
        loaded=[*loaded, *by_xarray],
        unchecked=copier.unchecked,
    )


def _check_arguments(
    vds: object, store: object, group: object, request: Request, last_updated_at: object, on_unreferenceable: object
) -> None:
    """Refuse arguments that cannot be meant.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``.
    ReadOnlyError
        ``read-only-store``.
    """
    if not isinstance(vds, xr.Dataset | xr.DataTree):
        raise _invalid(f"to_icelite writes an xarray Dataset or DataTree, not {type(vds).__name__}")
    if not isinstance(store, IceliteStore):
        raise _invalid(f"to_icelite writes to an IceliteStore, not {type(store).__name__}: pass session.store")
    if store.read_only:
        raise ReadOnlyError(
            f"{store} is read-only: write to the store of repo.writable_session(branch)", ErrorKind.READ_ONLY_STORE
        )
    if group is not None and not isinstance(group, str):
        raise _invalid(f"group must be a path, not {group!r}")
    if last_updated_at is not None and (not isinstance(last_updated_at, datetime) or last_updated_at.tzinfo is None):
        raise _invalid(f"last_updated_at must be a datetime with a time zone, not {last_updated_at!r}")
    if on_unreferenceable not in ("copy", "raise"):
        raise _invalid(f"on_unreferenceable must be 'copy' or 'raise', not {on_unreferenceable!r}")
    _check_request(vds, request)


def _check_request(vds: xr.Dataset | xr.DataTree, request: Request) -> None:
    mode, region = cast(object, request.mode), cast(object, request.region)
    append_dim = cast(object, request.append_dim)
    if mode is not None and (not isinstance(mode, str) or mode not in _MODES):
        raise _invalid(f"mode must be None or one of {_MODES}, not {mode!r}")
    if append_dim is not None and region is not None:
        raise _invalid("append_dim and region exclude each other: append first, then write the region")
    if (append_dim is not None or region is not None) and mode in ("w", "w-"):
        given = f"append_dim={append_dim!r}" if append_dim is not None else f"region={region!r}"
        raise _invalid(f"mode {mode!r} makes a new group, {given} writes into one that exists: drop one of them")
    if append_dim is not None and not isinstance(append_dim, str):
        raise _invalid(f"append_dim must be the name of a dimension, not {append_dim!r}")
    nodes = [vds] if isinstance(vds, xr.Dataset) else vds.subtree
    known = {dim for node in nodes for dim in node.dims}
    if append_dim is not None and append_dim not in known:
        raise _invalid(
            f"append_dim {append_dim!r} is not a dimension of the dataset, which has {sorted(map(str, known))}"
        )
    if region is None or (isinstance(region, str) and region == "auto"):
        return
    if not isinstance(region, Mapping) or not region:
        raise _invalid(f"region must be 'auto' or a mapping from dimensions to slices or 'auto', not {region!r}")
    for dim, part in region.items():
        if dim not in known:
            raise _invalid(f"region {dim!r} is not a dimension of the dataset, which has {sorted(map(str, known))}")
        if not isinstance(part, slice) and not (isinstance(part, str) and part == "auto"):
            raise _invalid(f"region {dim!r} must be a slice or 'auto', not {part!r}")


def _invalid(message: str) -> InvalidInputError:
    return InvalidInputError(message, ErrorKind.INVALID_ARGUMENT)
