"""What a group of a repository holds already, and which files are new to it.

A file is known when a chunk that the branch's tip sees is one of its byte ranges; or, for a source that is not itself
referenced (a Zarr store, references in JSON, a file whose data had to be copied), when an earlier call wrote its name
into the metadata of its snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.core.sync import sync

from icelite import cf
from icelite.archive.extents import is_referenced, join_path
from icelite.archive.findings import Misfit
from icelite.archive.fit import Fitting, describe_difference, is_equal
from icelite.archive.labels import describe_kind, find_values
from icelite.archive.records import Recorded, read_records
from icelite.archive.scan import ScannedFile
from icelite.catalog.chunks import scan_chunks
from icelite.catalog.locations import load_locations
from icelite.errors import InvalidInputError, StorageError
from icelite.metadata import array_info
from icelite.types import Location, SourceStamp
from icelite.virtual.stamps import SECOND, contradicts, describe
from icelite.virtualizarr.arrays import Fetch, chunk_shape, hash_bytes, is_virtual, read_virtual, stored_metadata
from icelite.virtualizarr.target import check_layout

if TYPE_CHECKING:
    from icelite.repository import Repository
    from icelite.session import Session
    from icelite.store import IceliteStore


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
        What earlier calls recorded.
    """

    arrays: list[str] = field(default_factory=list)
    referenced: dict[str, list[Location]] = field(default_factory=dict)
    recorded: Recorded = field(default_factory=Recorded)

    def stamps(self, path: str) -> list[SourceStamp]:
        """What the source with this location path looked like when it was added, or taken out; none for a new one."""
        if path in self.recorded.dropped:
            return [self.recorded.dropped[path]]
        if path in self.referenced:
            return [SourceStamp(found.size, found.etag, found.modified_at) for found in self.referenced[path]]
        return [self.recorded.others[path]] if path in self.recorded.others else []


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
    with catalog.read() as txn:
        locations = load_locations(txn)
    for location_id in sorted(location_ids & locations.keys()):
        holdings.referenced.setdefault(locations[location_id].path, []).append(locations[location_id])
    recorded = read_records(repository, session, group) if nodes else Recorded()
    return replace(holdings, recorded=recorded)


@dataclass(frozen=True, slots=True)
class SortedSources:
    """Sources by what the group has of them.

    Attributes
    ----------
    new
        Those that it does not have; also those that were taken out, and changed since.
    known, dropped
        Those that it has, and those that were taken out of it, and are as they were.
    changed
        Those that it has in another state: URL to both states.
    """

    new: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)


def sort_sources(urls: Iterable[str], session: Session, holdings: Holdings) -> SortedSources:
    """What a group has of some sources, each of which is looked at.

    Raises
    ------
    StorageError
        ``virtual-chunk-fetch``.
    InvalidInputError
        ``invalid-virtual-ref``, ``no-container-for-virtual-chunk``.
    """
    places = {url: session.access.locate(url) for url in urls}
    paths = {url: place.path for url, place in places.items()}
    for place in places.values():
        session.access.allow(place)  # who names a file to refer to it may read what is referred to
    stamped = [url for url, path in paths.items() if any(old.size is not None for old in holdings.stamps(path))]
    now = session.access.stamps(stamped)
    found = SortedSources()
    for url, path in paths.items():
        states = holdings.stamps(path)
        change = _find_change(url, path, now.get(url, SourceStamp()), states, session)
        if not states or (change and path in holdings.recorded.dropped):
            found.new.append(url)
        elif change:
            found.changed[url] = change
        elif path in holdings.recorded.dropped:
            found.dropped.append(url)
        else:
            found.known.append(url)
    return found


def _find_change(url: str, path: str, now: SourceStamp, states: Sequence[SourceStamp], session: Session) -> str | None:
    """How a source differs from what was recorded of it; None where it does not."""
    check_time = "://" in path or session.access.at_home  # as when it is read
    resolution = 1 if url.startswith("file://") else SECOND
    for recorded in states if now.size is not None else ():
        if recorded.size is not None and contradicts(  # else it was not looked at, or has a limit in time
            now, recorded, check_time=check_time, resolution=resolution
        ):
            return f"recorded {describe(recorded)}, found {describe(now)}"
    return None


@dataclass(frozen=True, slots=True)
class StoredVariables:
    """The variables of a group that files are to follow.

    Attributes
    ----------
    arrays
        As they are stored, by name.
    hashes
        Of variables without the dimension, when the group was begun.
    """

    store: IceliteStore
    path: str
    arrays: Mapping[str, ArrayV3Metadata]
    hashes: Mapping[str, str] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)  # of what is stored, each read once

    def open(self, name: str) -> xr.Variable:
        """One variable, decoded; its values are read when they are needed, those of times in part.

        Raises
        ------
        StorageError
            A file of it is not there any more, or changed.
        """
        dataset = xr.open_dataset(
            cast(Any, self.store),
            engine="icelite",
            group=self.path or None,
            chunks=None,
            cache=False,
            drop_variables=self.arrays.keys() - {name},
        )
        return dataset.variables[name]

    def is_virtual(self, name: str) -> bool:
        """Whether any chunk of a variable is in a file."""
        entry, _ = self.store.session.changes.nodes.lookup_array(join_path(self.path, name))
        blocks = self.store.session.changes.chunks.columns(entry.node.node_id)
        return any(is_referenced(self.store.session, block) for block in blocks)

    def find_labels(self, dim: str) -> Any:
        """The values of the dimension's coordinate; None where there is none, or it has no order."""
        return find_values(xr.Dataset({dim: self.open(dim)}), dim) if dim in self.arrays else None

    def find_misfits(self, file: ScannedFile, fitting: Fitting, fetch: Fetch) -> list[Misfit]:
        """All in which a file, made ready to be stored, does not fit what is stored."""
        problems = [*self._compare_sizes(file.dataset, fitting.concat_dim)]
        if problems:
            return [Misfit(file.url, problem) for problem in problems]
        problems = [*self._compare_names(file.dataset, fitting)]
        bounds = {bounds for _, bounds in cf.find_bounds(file.dataset.variables)}
        for name, variable in file.dataset.variables.items():
            array = self.arrays.get(str(name))
            if array is None:
                continue
            if name in bounds and not is_virtual(variable):
                continue  # it will count as its times do
            if fitting.concat_dim in variable.dims:
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

    def _compare_sizes(self, dataset: xr.Dataset, concat_dim: str) -> Iterator[str]:
        sizes = {
            dim: size
            for name, array in self.arrays.items()
            if name in dataset.variables
            for dim, size in zip(array.dimension_names or (), array.shape, strict=False)
        }
        for dim, size in dataset.sizes.items():
            if dim != concat_dim and sizes.get(str(dim), size) != size:
                yield (
                    f"the grids differ: {str(dim)!r} has length {size} instead of {sizes[str(dim)]};"
                    " write it to another group"
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
            yield from self._compare_layout(name, variable, array)
            return
        units = variable.attrs.get("units"), array.attributes.get("units")
        if units[0] != units[1] and variable.dtype.kind not in "MmO":  # times in other units are converted
            yield (
                f"{name!r} is in {units[0]!r}, and stored in {units[1]!r}; convert it (preprocess=), or write it to"
                " another group"
            )
            return
        if cf.is_time(variable.attrs):
            return
        try:
            kinds = describe_kind(variable), describe_kind(self.open(name))
        except StorageError as error:
            yield f"{name!r} cannot be compared with what is stored: {error.message}"
            return
        if kinds[0] != kinds[1]:
            yield (
                f"{name!r} is of the kind {kinds[0]}, and stored as {kinds[1]}; convert it (preprocess=, such as"
                " lambda ds: ds.convert_calendar(...)), or write it to another group"
            )

    def _compare_layout(self, name: str, variable: xr.Variable, array: ArrayV3Metadata) -> Iterator[str]:
        path = join_path(self.path, name)
        try:
            metadata = stored_metadata(path, variable)
            check_layout(path, metadata, array)
        except InvalidInputError as error:
            yield error.message
            return
        for key in cf.MEANING:
            ours, theirs = (
                cf.as_text(key, attributes.get(key)) for attributes in (metadata.attributes, array.attributes)
            )
            if ours != theirs:
                yield (
                    f"variable {name!r} has the {key} {ours}, and what is stored {theirs}; make it equal"
                    f" (loadable_variables=[..., {name!r}] or preprocess=)"
                )

    def _compare_shared(
        self, name: str, variable: xr.Variable, array: ArrayV3Metadata, found: str | None, fetch: Fetch
    ) -> Iterator[str]:
        units = cf.find_meaning(variable, "units"), array.attributes.get("units")
        if units[0] != units[1]:
            yield f"{name!r} is in {units[0]!r}, and stored in {units[1]!r}; convert it (preprocess=)"
            return
        try:
            if found is not None and found == self._hash(name, array):
                return
            stored = self.open(name).load()
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

    def _hash(self, name: str, array: ArrayV3Metadata) -> str:
        if name not in self._hashes:
            self._hashes[name] = hash_stored(self.store, join_path(self.path, name), array)
        return self._hashes[name]


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
