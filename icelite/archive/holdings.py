"""What a group of a repository holds already, and which files are new to it.

A file is known when a chunk that the branch's tip sees is one of its byte ranges; or, for a source that is not itself
referenced (a Zarr store, references in JSON, a file whose data had to be copied), when an earlier call wrote its name
into the metadata of its snapshot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.core.sync import sync

from icelite import cf
from icelite.archive.fit import (
    Fitting,
    Misfit,
    Span,
    describe_difference,
    describe_kind,
    find_values,
    is_equal,
    is_placeholder,
)
from icelite.archive.scan import ScannedFile
from icelite.catalog.chunks import scan_chunks
from icelite.catalog.locations import INLINE, lookup_location
from icelite.errors import ErrorKind, StorageError
from icelite.metadata import array_info
from icelite.types import Location, SourceStamp
from icelite.virtual.stamps import SECOND, contradicts, describe
from icelite.virtualizarr.arrays import Fetch, chunk_shape, hash_bytes, is_virtual, read_virtual

if TYPE_CHECKING:
    from icelite.repository import Repository
    from icelite.session import Session
    from icelite.store import IceliteStore

METADATA = "virtualize"  # key of a snapshot's metadata


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a group holds.

    Attributes
    ----------
    arrays
        Their paths; empty where there is nothing yet.
    referenced
        The locations that its chunks are in, by path.
    recorded
        Sources that earlier calls added and that no chunk is in: location path to stamp.
    hashes
        Of variables that all files share, as the first call found them.
    """

    arrays: list[str] = field(default_factory=list)
    referenced: dict[str, list[Location]] = field(default_factory=dict)
    recorded: dict[str, SourceStamp] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def knows(self, path: str) -> bool:
        """Whether the source with this location path was added before."""
        return path in self.referenced or path in self.recorded

    def stamps(self, path: str) -> list[SourceStamp]:
        """What such a source looked like when it was added."""
        if path in self.referenced:
            return [SourceStamp(found.size, found.etag, found.modified_at) for found in self.referenced[path]]
        return [self.recorded[path]]


def find_holdings(repository: Repository, session: Session, group: str) -> Holdings:
    """What the session's snapshot holds at and below a group."""
    holdings = Holdings()
    nodes = [
        node for node in session.changes.nodes.list_below(group) if array_info(node.path, node.documents) is not None
    ]
    catalog, view = session.changes.catalog, session.changes.view
    location_ids: set[int] = set()
    for node in nodes:
        holdings.arrays.append(node.path)
        for block in scan_chunks(catalog, view, node.node_id):
            location_ids.update(np.unique(block.location_ids).tolist())
    for location_id in sorted(location_ids - {INLINE}):
        location = lookup_location(catalog, location_id)
        holdings.referenced.setdefault(location.path, []).append(location)
    if nodes:
        for info in repository.ancestry(snapshot_id=session.snapshot_id):
            record = info.metadata.get(METADATA)
            if isinstance(record, dict) and record.get("group") == group:
                for path, stamp in dict(record.get("other_sources") or {}).items():
                    holdings.recorded.setdefault(path, SourceStamp(*stamp))
                holdings.hashes.update(record.get("shared") or {})  # the oldest one is the last one met
    return holdings


def split_known(urls: Iterable[str], session: Session, holdings: Holdings) -> tuple[list[str], list[str]]:
    """The URLs that are new, and those that the group holds already, which must not have changed since.

    Raises
    ------
    StorageError
        ``virtual-chunk-modified``, naming a known file that changed; ``virtual-chunk-fetch``.
    InvalidInputError
        ``invalid-virtual-ref``, ``no-container-for-virtual-chunk``.
    """
    new, known = [], {}
    for url in urls:
        path = session.access.locate(url).path
        if holdings.knows(path):
            known[url] = path
        else:
            new.append(url)
    recorded_files = [url for url, path in known.items() if any(old.size is not None for old in holdings.stamps(path))]
    for url, stamp in session.access.stamps(recorded_files).items():
        path = known[url]
        check_time = "://" in path or session.access.at_home  # as when it is read
        for recorded in holdings.stamps(path) if stamp.size is not None else ():
            resolution = 1 if url.startswith("file://") else SECOND
            if recorded.size is not None and contradicts(  # else it was not looked at, or has a limit in time
                stamp, recorded, check_time=check_time, resolution=resolution
            ):
                raise StorageError(
                    f"source {url!r} is in the repository already, and changed since it was added: recorded"
                    f" {describe(recorded)}, found {describe(stamp)}; restore it, or reset the branch to the"
                    " snapshot before it and add it again",
                    ErrorKind.VIRTUAL_CHUNK_MODIFIED,
                )
    return new, list(known)


@dataclass(frozen=True, slots=True)
class StoredVariables:
    """The variables of a group that files are to follow.

    Attributes
    ----------
    dataset
        Those along the dimension, decoded; values are read when they are needed.
    arrays
        As they are stored, by name.
    hashes
        Of variables without the dimension, when the group was begun.
    """

    store: IceliteStore
    path: str
    dataset: xr.Dataset
    arrays: Mapping[str, ArrayV3Metadata]
    hashes: Mapping[str, str] = field(default_factory=dict)

    def find_misfits(self, file: ScannedFile, fitting: Fitting, fetch: Fetch) -> list[Misfit]:
        """All in which a file does not fit what is stored."""
        problems = [*self._compare_names(file.dataset, fitting)]
        for name, variable in file.dataset.variables.items():
            array = self.arrays.get(str(name))
            if array is None:
                continue
            if fitting.concat_dim in variable.dims or str(name) in fitting.stack:
                problems += self._compare_growing(str(name), variable, array)
            elif fitting.compat != "override" and variable.dims == (array.dimension_names or ()):
                problems += self._compare_shared(str(name), variable, array, file.hashes.get(str(name)), fetch)
        return [Misfit(file.url, problem) for problem in problems]

    def find_stacked(self, dataset: xr.Dataset, dim: str) -> frozenset[str]:
        """The variables of a file that lack the dimension, and had it given when they were stored."""
        return frozenset(
            str(name)
            for name, variable in dataset.variables.items()
            if str(name) in self.arrays and self.arrays[str(name)].dimension_names == (dim, *variable.dims)
        )

    def _compare_names(self, dataset: xr.Dataset, fitting: Fitting) -> Iterator[str]:
        dim = fitting.concat_dim
        growing = {name for name, array in self.arrays.items() if dim in (array.dimension_names or ())}
        if dim not in dataset.dims:
            return  # it is added to all data
        given = {str(name) for name, variable in dataset.variables.items() if dim in variable.dims}
        given |= fitting.stack & set(map(str, dataset.variables))
        for names, what in ((growing - given, "it lacks"), (given - growing, "only it has")):
            if names and growing:
                yield (
                    f"{what} {', '.join(map(repr, sorted(names)))} along {dim!r}; leave out what differs"
                    f" (drop_variables={sorted(names)}), or write it to another group"
                )

    def _compare_growing(self, name: str, variable: xr.Variable, array: ArrayV3Metadata) -> Iterator[str]:
        if is_virtual(variable):
            return  # what is written is compared with the array
        known = self.dataset.variables[name]
        units = variable.attrs.get("units"), array.attributes.get("units")
        kinds = describe_kind(variable), describe_kind(known)
        if units[0] != units[1] and variable.dtype.kind not in "MmO":  # times in other units are converted
            yield (
                f"{name!r} is in {units[0]!r}, and stored in {units[1]!r}; convert it (preprocess=), or write it to"
                " another group"
            )
        elif kinds[0] != kinds[1] and not cf.is_time(variable.attrs):
            yield (
                f"{name!r} is of the kind {kinds[0]}, and stored as {kinds[1]}; convert it (preprocess=, such as"
                " lambda ds: ds.convert_calendar(...)), or write it to another group"
            )

    def _compare_shared(
        self, name: str, variable: xr.Variable, array: ArrayV3Metadata, found: str | None, fetch: Fetch
    ) -> Iterator[str]:
        units = cf.find_meaning(variable, "units"), array.attributes.get("units")
        if units[0] != units[1]:
            yield f"{name!r} is in {units[0]!r}, and stored in {units[1]!r}; convert it (preprocess=)"
            return
        try:
            if found is not None and found == hash_stored(self.store, self._join(name), array):
                return
            stored = open_stored(self.store, self.path, {name}, self.arrays).variables[name].load()
        except StorageError as error:  # its file is not there any more
            if found is None or found != self.hashes.get(name):
                yield f"{name!r} cannot be compared with what is stored: {error.message}; pass compat='override'"
            return
        if is_virtual(variable):
            variable = xr.conventions.decode_cf_variable(name, read_virtual(variable, fetch))
        if not is_equal(variable, stored):
            yield (
                f"the grids differ in {name!r}: {describe_difference(name, variable, stored)}; write it to another"
                f" group, take what is stored (compat='override') or leave it out (drop_variables=[{name!r}])"
            )

    def _join(self, name: str) -> str:
        return f"{self.path}/{name}".lstrip("/")

    def find_disorder(self, files: Sequence[ScannedFile], dim: str) -> list[Misfit]:
        """The first of some files, in order, if it does not come after what is stored."""
        before, after = find_values(self.dataset, dim), find_values(files[0].dataset, dim)
        if before is None or after is None or describe_kind(before) != describe_kind(after):
            return []
        if is_placeholder([before, after]):
            return []
        held, added = Span("what is stored", before[0], before[-1]), Span(files[0].url, after[0], after[-1])
        if added.follows(held, backwards=bool(len(before) > 1 and before[-1] < before[0])):
            return []
        within = bool(np.isin(after, before).any())
        problem = (
            f"the files overlap along {dim!r}: {added} does not come after {held}; leave it out, or write it over what"
            f" is stored (to_icelite(..., region={{{dim!r}: 'auto'}}))"
            if within
            else f"{added} comes late along {dim!r}: it does not come after {held}, and files are appended at the end;"
            " leave it out, or write all files to another group"
        )
        return [Misfit(files[0].url, problem)]


def open_stored(
    store: IceliteStore, path: str, wanted: Collection[str], arrays: Mapping[str, ArrayV3Metadata]
) -> xr.Dataset:
    """Some variables of a group, decoded; those that are times are looked into, so their files must be there."""
    return xr.open_dataset(
        cast(Any, store),
        engine="icelite",
        group=path or None,
        chunks=None,
        cache=False,
        drop_variables=arrays.keys() - wanted,
    )


def hash_stored(store: IceliteStore, path: str, metadata: ArrayV3Metadata) -> str:
    """The hash of an array's chunks, as `hash_chunks` makes it.

    Raises
    ------
    StorageError
        A chunk's file cannot be read.
    """
    grid = tuple(-(-size // chunk) for size, chunk in zip(metadata.shape, chunk_shape(metadata), strict=True))

    def chunks() -> Iterator[tuple[tuple[int, ...], bytes]]:
        for index in np.ndindex(grid):
            data = sync(store.get(f"{path}/{metadata.encode_chunk_key(index)}", default_buffer_prototype()))
            if data is not None:
                yield index, data.to_bytes()

    return hash_bytes(chunks())


def record_of(stamp: SourceStamp | None) -> list[Any]:
    """A stamp as JSON."""
    return [None, None, None] if stamp is None else [stamp.size, stamp.etag, stamp.modified_at]
