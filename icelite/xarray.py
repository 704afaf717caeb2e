"""The xarray engine ``icelite``: ``xr.open_dataset("ocean.icelite")`` and its siblings; and `to_icelite`, which writes.

The engine reads one snapshot through a read-only session, so an opened dataset never changes under its user.
What an open call opened, closing its last dataset closes; a repository, session or store of the caller stays open.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import xarray as xr
from xarray.backends import StoreBackendEntrypoint, ZarrBackendEntrypoint, ZarrStore
from xarray.backends.common import ArrayWriter, datatree_from_dict_with_io_cleanup
from zarr.core.sync import sync

import icelite.virtualizarr  # noqa: F401  (registers the accessors ds.icelite and tree.icelite)
from icelite.catalog.checks import is_catalog
from icelite.errors import ErrorKind, IceliteError, InvalidInputError
from icelite.formats.attributes import restore_dtypes
from icelite.interrupts import heard_interrupts
from icelite.repository import Repository
from icelite.session import Session
from icelite.storage import StorageConfig
from icelite.store import IceliteStore

if TYPE_CHECKING:
    from icelite.config import RepositoryConfig

_UNNAMED = "__xarray_dataarray_variable__"  # what xarray calls the variable of a DataArray without a name

Source: TypeAlias = str | os.PathLike[str] | StorageConfig | Repository | Session | IceliteStore


class _Opened:
    """A store to read, and the repository that was opened for it, which its last dataset closes.

    Pickling a dataset pickles its closer: that of a copy closes nothing, because the copy's store has its own file.
    """

    def __init__(self, store: IceliteStore | None = None, repository: Repository | None = None) -> None:
        self.store = store
        self._repository = repository
        self._lent = 0

    def __enter__(self) -> IceliteStore:
        assert self.store is not None
        return self.store

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._repository is not None:
            self._repository.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Opened, ()

    def lend_to(self, datasets: Collection[xr.Dataset]) -> None:
        """Let the last of these that is closed close the repository."""
        self._lent = len(datasets)
        for dataset in datasets:
            dataset.set_close(self._take_back)

    def _take_back(self) -> None:
        self._lent -= 1
        if self._lent == 0 and self._repository is not None:
            self._repository.close()


@dataclass(frozen=True, slots=True)
class _Opening:
    """What to open and which snapshot of it: the parameters that the engine adds to xarray's."""

    branch: str | None
    tag: str | None
    snapshot_id: str | None
    as_of: datetime | None
    authorize_virtual_chunk_access: Mapping[str, Any] | None
    config: RepositoryConfig | None

    def open(self, source: Source) -> _Opened:
        """Open the snapshot to read."""
        if isinstance(source, IceliteStore | Session):
            self._refuse(source, "branch", "tag", "snapshot_id", "as_of", "authorize_virtual_chunk_access", "config")
            return _Opened(source if isinstance(source, IceliteStore) else source.store)
        if isinstance(source, Repository):
            self._refuse(source, "authorize_virtual_chunk_access", "config")
            return _Opened(self._choose(source))
        if not isinstance(source, StorageConfig):
            source = os.fspath(source)
            source = source if "://" in source else os.path.expanduser(source)
        repository = Repository.open(
            source,
            config=self.config,
            authorize_virtual_chunk_access=self.authorize_virtual_chunk_access,
        )
        try:
            return _Opened(self._choose(repository), repository)
        except IceliteError:
            repository.close()
            raise

    def _choose(self, repository: Repository) -> IceliteStore:
        branch = "main" if (self.branch, self.tag, self.snapshot_id) == (None, None, None) else self.branch
        session = repository.readonly_session(branch, tag=self.tag, snapshot_id=self.snapshot_id, as_of=self.as_of)
        return session.store

    def _refuse(self, source: Source, *names: str) -> None:
        given = [name for name in names if getattr(self, name) is not None]
        if given:
            raise InvalidInputError(
                f"{', '.join(given)} cannot be given with an open {type(source).__name__}, which has them already:"
                " open the repository by its path",
                ErrorKind.INVALID_ARGUMENT,
            )


class _PackedStore(ZarrStore):
    """xarray's view of a group, whose variables are packed with the types that their files had."""

    def open_store_variable(self, name: str) -> xr.Variable:
        variable: xr.Variable = super().open_store_variable(name)  # type: ignore[no-untyped-call]
        return restore_dtypes(variable, name)


class IceliteBackendEntrypoint(ZarrBackendEntrypoint):
    """Opens icelite catalogs, by extension ``.icelite`` or by what the file is.

    A catalog in a bucket or on a web server is opened by its URL with ``engine="icelite"``, or by a `StorageConfig`.

    The parameters ``branch``, ``tag``, ``snapshot_id`` and ``as_of`` choose the snapshot (default: the tip of
    ``main``); ``group`` the group in it; ``authorize_virtual_chunk_access`` and ``config`` are those of
    `icelite.Repository.open`. Files below the catalog's own directory need no authorisation.
    """

    description = "Open icelite catalogs (.icelite) in Xarray"
    url = ""  # instead of that of xarray's zarr engine
    supports_groups = True

    def guess_can_open(self, filename_or_obj: object) -> bool:
        """Whether it is an icelite object, a path that ends in ``.icelite``, or a file that is a catalog."""
        if isinstance(filename_or_obj, Repository | Session | IceliteStore | StorageConfig):
            return True
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        path = os.path.expanduser(os.fspath(filename_or_obj))
        if path.endswith(".icelite") or path.partition("?")[0].endswith(".icelite"):
            return True
        return "://" not in path and os.path.isfile(path) and is_catalog(path)

    def open_dataset(  # type: ignore[override]  # the parameters of zarr's own storage are not offered
        self,
        filename_or_obj: Source,
        *,
        mask_and_scale: bool | Mapping[str, bool] = True,
        decode_times: Any = True,
        concat_characters: bool | Mapping[str, bool] = True,
        decode_coords: Any = True,
        drop_variables: str | Iterable[str] | None = None,
        use_cftime: bool | Mapping[str, bool] | None = None,
        decode_timedelta: Any = None,
        group: str | None = None,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        as_of: datetime | None = None,
        authorize_virtual_chunk_access: Mapping[str, Any] | None = None,
        config: RepositoryConfig | None = None,
    ) -> xr.Dataset:
        """Open one group as a dataset; `xarray.open_dataset` calls this."""
        opening = _Opening(branch, tag, snapshot_id, as_of, authorize_virtual_chunk_access, config)
        opened = opening.open(filename_or_obj)
        with opened as store:
            dataset: xr.Dataset = super().open_dataset(
                store,  # type: ignore[arg-type]  # zarr's stores are taken too
                mask_and_scale=mask_and_scale,
                decode_times=decode_times,
                concat_characters=concat_characters,
                decode_coords=decode_coords,
                drop_variables=drop_variables,
                use_cftime=use_cftime,
                decode_timedelta=decode_timedelta,
                store=_PackedStore.open_group(
                    store, group=group, consolidated=False, zarr_format=_find_zarr_format(store, group)
                ),
            )
        opened.lend_to([dataset])
        return dataset

    def open_groups_as_dict(  # type: ignore[override]
        self,
        filename_or_obj: Source,
        *,
        group: str | None = None,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        as_of: datetime | None = None,
        authorize_virtual_chunk_access: Mapping[str, Any] | None = None,
        config: RepositoryConfig | None = None,
        **decoders: Any,
    ) -> dict[str, xr.Dataset]:
        """Open a group and all below it, by path; `xarray.open_groups` calls this."""
        opening = _Opening(branch, tag, snapshot_id, as_of, authorize_virtual_chunk_access, config)
        opened = opening.open(filename_or_obj)
        with opened as store:
            parent = PurePosixPath("/", group or "")
            groups = _PackedStore.open_store(
                store, group=str(parent), consolidated=False, zarr_format=_find_zarr_format(store, group)
            )
            datasets = {
                str(PurePosixPath(path).relative_to(parent) if group else path): StoreBackendEntrypoint().open_dataset(
                    members, **decoders
                )
                for path, members in groups.items()
            }
        opened.lend_to(datasets.values())
        return datasets

    def open_datatree(  # type: ignore[override]
        self, filename_or_obj: Source, *, group: str | None = None, **parameters: Any
    ) -> xr.DataTree:
        """Open a group and all below it as a tree, with the parameters of `open_groups_as_dict`."""
        datasets = self.open_groups_as_dict(filename_or_obj, group=group, **parameters)
        return datatree_from_dict_with_io_cleanup(datasets)


@heard_interrupts()
def to_icelite(
    obj: xr.DataArray | xr.Dataset,
    session: Session,
    *,
    group: str | None = None,
    mode: Literal["w", "w-", "a", "a-", "r+"] | None = None,
    safe_chunks: bool = True,
    align_chunks: bool = False,
    append_dim: Hashable | None = None,
    region: Mapping[str, slice | Literal["auto"]] | Literal["auto"] | None = None,
    encoding: Mapping[Any, Any] | None = None,
    chunkmanager_store_kwargs: Mapping[str, Any] | None = None,
    split_every: int | None = None,
) -> None:
    """Write a dataset into a session, dask arrays by whatever scheduler dask uses; commit the session afterwards.

    Unlike ``Dataset.to_zarr(session.store)`` it works with processes and clusters: the tasks put the bytes where the
    repository's bytes go, and the session refers to them (see `icelite.dask`).

    Parameters
    ----------
    obj
        What to write; the name of a `DataArray` is the variable's. What ``mode="w"`` replaces must not be read lazily
        from the same session: it is gone by then.
    group, mode, safe_chunks, align_chunks, append_dim, region, encoding
        As `xarray.Dataset.to_zarr`.
    chunkmanager_store_kwargs
        Passed to `dask.compute`, such as ``{"scheduler": "processes"}``.
    split_every
        For code written for Icechunk; it means nothing here.

    Raises
    ------
    InvalidInputError
        ``invalid-argument`` for what is not an xarray object, or when dask's blocks share a chunk.
    ReadOnlyError, StorageError
        ``read-only-session``; ``io``, ``busy``, ``storage-full``.
    ValueError, FileExistsError
        xarray's own, for what ``to_zarr`` refuses.
    """
    from xarray.backends.writers import _validate_dataset_names, dump_to_store, get_writable_zarr_store

    given: tuple[object, object] = (obj, session)
    if not isinstance(given[0], xr.Dataset | xr.DataArray) or not isinstance(given[1], Session):
        raise InvalidInputError(
            f"to_icelite writes a Dataset or DataArray into a Session, not {type(obj).__name__} into"
            f" {type(session).__name__}",
            ErrorKind.INVALID_ARGUMENT,
        )
    session.check_writable()
    dataset = obj if isinstance(obj, xr.Dataset) else obj.to_dataset(name=_UNNAMED if obj.name is None else obj.name)
    _validate_dataset_names(dataset)
    for variable in dataset.variables.values():
        if variable.size == 0:  # dask's chunks of length 0 are none that Zarr could have
            variable.load()
    writable = get_writable_zarr_store(
        session.store,
        mode=mode,
        group=group,
        consolidated=False,
        append_dim=append_dim,
        region=region,
        safe_chunks=safe_chunks,
        align_chunks=align_chunks,
        zarr_format=3 if mode == "w" else _find_zarr_format(session.store, group) or 3,
    )
    dataset = writable._validate_and_autodetect_region(dataset)
    writable._validate_encoding(dict(encoding or {}))
    writer = ArrayWriter()  # type: ignore[no-untyped-call]
    dump_to_store(dataset, writable, writer, encoding=dict(encoding or {}))  # type: ignore[no-untyped-call]
    if writer.sources:
        from icelite.dask import store_dask

        store_dask(
            sources=writer.sources,
            targets=writer.targets,
            regions=writer.regions,
            split_every=split_every,
            **dict(chunkmanager_store_kwargs or {}),
        )


to_icechunk = to_icelite  # the name that code for Icechunk calls


def _find_zarr_format(store: IceliteStore, group: str | None) -> int | None:
    """Format of the group's metadata; None when there is none, so that zarr says so."""
    path = (group or "").strip("/")
    for name, zarr_format in (("zarr.json", 3), (".zgroup", 2)):
        if sync(store.exists(f"{path}/{name}".lstrip("/"))):
            return zarr_format
    return None
