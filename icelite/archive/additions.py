"""What a group of a repository holds already, and which files are new to it.

A file is known when a chunk that the branch's tip sees is one of its byte ranges; or, for a source that is not itself
referenced (a Zarr store, references in JSON, a file whose data had to be copied), when an earlier call wrote its name
into the metadata of its snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from icelite.archive.agreement import Opened
from icelite.archive.order import Span, check_follows, find_values, is_placeholder
from icelite.catalog.chunks import scan_chunks
from icelite.catalog.locations import INLINE, lookup_location
from icelite.errors import ErrorKind, InvalidInputError, StorageError
from icelite.metadata import array_info
from icelite.types import Location, SourceStamp
from icelite.virtual.stamps import SECOND, contradicts, describe
from icelite.virtualizarr.arrays import is_virtual

if TYPE_CHECKING:
    from icelite.repository import Repository
    from icelite.session import Session

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
    """

    arrays: list[str] = field(default_factory=list)
    referenced: dict[str, list[Location]] = field(default_factory=dict)
    recorded: dict[str, SourceStamp] = field(default_factory=dict)

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
    nodes = [node for node in session.changes.list_nodes(group) if array_info(node.path, node.documents) is not None]
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


def check_continues(stored: xr.Dataset, files: list[Opened], dim: str) -> None:
    """Check that files, in order, come after what is stored along ``dim``, on the same grid.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``, naming the first file and what does not fit.
    """
    url, dataset = files[0]
    for name, variable in dataset.variables.items():
        old = stored.variables.get(name)
        if old is None or is_virtual(variable):  # the chunks of virtual ones are compared when they are written
            continue
        problem = None
        if dim in variable.dims:
            units, stored_units = variable.attrs.get("units"), old.attrs.get("units", old.encoding.get("units"))
            if " since " in str(units) and units != stored_units:  # left as numbers
                problem = f"{name!r} is in {units!r}, and stored in {stored_units!r}"
        elif variable.dims == old.dims and variable.ndim and not _is_same(variable, old):
            problem = f"the grids differ in {name!r}"
        if problem is not None:
            raise InvalidInputError(
                f"{url!r} does not fit what is stored: {problem}; write it to another group", ErrorKind.INVALID_DATASET
            )
    before, after = find_values(stored, dim), find_values(dataset, dim)
    if before is not None and after is not None and not is_placeholder([before, after]):
        backwards = bool(len(before) > 1 and before[-1] < before[0])
        held = Span("what is stored", before[0], before[-1])
        check_follows(held, Span(url, after[0], after[-1]), dim, backwards=backwards)


def _is_same(found: xr.Variable, stored: xr.Variable) -> bool:
    return found.shape == stored.shape and bool(found.equals(stored.load()))  # type: ignore[no-untyped-call]


def record_of(stamp: SourceStamp | None) -> list[Any]:
    """A stamp as JSON."""
    return [None, None, None] if stamp is None else [stamp.size, stamp.etag, stamp.modified_at]
