"""The sources of a snapshot: which files and objects its virtual chunks are in, and whether they are as they were.

A source is looked at once, whatever the number of references to it, and none of its bytes are read. The gates of
`icelite.virtual` hold: what the caller did not authorise is not looked at, and said to be so.

The history of one file is one query over the rows of `usage` that are about it; no snapshot is walked. A file has
several locations when it was referenced as it was at several times, or by several names; they are one file here.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest

from icelite.catalog import locations
from icelite.catalog.changes import UsageRow, list_usage
from icelite.catalog.chunks import Use, list_uses
from icelite.catalog.database import Catalog
from icelite.catalog.locations import lookup_location
from icelite.catalog.operations import to_datetime
from icelite.catalog.settings import list_containers
from icelite.catalog.values import read_json_object
from icelite.config import VirtualChunkContainer
from icelite.errors import ErrorKind, IceliteError, NotFoundError, redact
from icelite.ops.prefixes import Prefix, parse_prefix
from icelite.types import ChunkType, FileChange, Location, Problem, Progress, SourceInfo, Sources, View
from icelite.virtual import VirtualAccess

AT_ONCE = 32  # sources that are looked at together
GATES = {ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK, ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER}
OK, CHANGED, MISSING = "ok", "changed", "missing"
UNREADABLE, NOT_AUTHORISED = "unreadable", "not authorised"
ADDED, DROPPED = "added", "dropped"  # or CHANGED: what a snapshot did to a file


def list_sources(
    catalog: Catalog, access: VirtualAccess, view: View, *, check: bool = False, progress: Progress | None = None
) -> Sources:
    """The sources of a snapshot; see `Repository.sources`."""
    with catalog.read() as txn:
        access.reload(list_containers(txn))  # another process may have added one
        uses = list_uses(txn, view)
        found = [(use, lookup_location(catalog, use.location_id)) for use in uses]
    rows = [(_info(access, use, place), place) for use, place in found if place.kind == ChunkType.virtual]
    rows.sort(key=lambda pair: _order(pair[0]))
    return Sources(list(_checked(access, rows, progress)) if check else [row for row, _ in rows])


def _order(row: SourceInfo) -> tuple[str, int, str, int]:
    return row.url, row.modified_at or 0, row.etag or "", row.size or 0


def _info(access: VirtualAccess, use: Use, place: Location) -> SourceInfo:
    return SourceInfo(
        url=access.url(place),
        path=redact(place.path),
        container=place.container,
        references=use.references,
        bytes=use.bytes,
        end=use.end,
        size=place.size,
        etag=place.etag,
        modified_at=place.modified_at,
    )


def _checked(
    access: VirtualAccess, rows: list[tuple[SourceInfo, Location]], progress: Progress | None
) -> Iterator[SourceInfo]:
    """The same sources with the state that each is found in."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done, row in enumerate(pool.map(lambda pair: _check(access, *pair), rows), start=1):
            yield row
            if progress is not None:
                progress(done, len(rows))


def _check(access: VirtualAccess, row: SourceInfo, place: Location) -> SourceInfo:
    try:
        found = access.open(place, None).check(None)
    except IceliteError as error:
        return replace(row, state=_state(error), problem=error.message)
    if found is None:
        return replace(row, state=MISSING, problem=f"{row.url!r} does not exist; put it back, or correct the reference")
    if found.size is not None and row.end > found.size:
        problem = f"{row.url!r} has {found.size} bytes, and references to it go up to {row.end}"
        return replace(row, state=UNREADABLE, problem=problem)
    return replace(row, state=OK)


def _state(error: IceliteError) -> str:
    if error.kind in GATES:
        return NOT_AUTHORISED
    return CHANGED if error.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED else UNREADABLE


def find_problems(sources: Sources) -> list[Problem]:
    """What is wrong with checked sources."""
    return [
        Problem("source_" + row.state.replace(" ", "_"), row.url, row.problem) for row in sources if row.state != OK
    ]


# -- the history of one file ---------------------------------------------------------------------------------------


def list_file_history(catalog: Catalog, view: View, url: str) -> list[FileChange]:
    """What a snapshot has behind it of a file, newest first; see `Repository.file_history`."""
    prefix = parse_prefix(url, catalog.storage)
    with catalog.read() as txn:
        names = dict.fromkeys(_names(prefix, list_containers(txn)))
        found = {number: place for name in names for number, place in locations.find_files(txn, *name).items()}
        rows = list_usage(txn, view, found)
    if not found:
        raise NotFoundError(
            f"no reference was ever to {url!r}; sources() lists the files of a snapshot", ErrorKind.LOCATION_NOT_FOUND
        )
    return list(_changes(rows, found))[::-1]


def _names(prefix: Prefix, containers: dict[str, VirtualChunkContainer]) -> Iterator[tuple[str | None, str]]:
    """Every container and path that the catalog may have stored the file with."""
    yield prefix.container, prefix.text.rstrip("/")
    urls = [text.rstrip("/") for text in (prefix.text, prefix.alias) if "://" in text and prefix.container is None]
    if prefix.container in containers:
        urls.append(containers[prefix.container].url_prefix + prefix.text.rstrip("/"))
    for url in urls:
        yield None, url
        for name, container in containers.items():
            if url.startswith(container.url_prefix):
                yield name, url[len(container.url_prefix) :]


def _changes(rows: list[UsageRow], places: dict[int, Location]) -> Iterator[FileChange]:
    """What each snapshot did; it may have several rows, one for each location of the file."""
    refs = dict.fromkeys(places, 0)
    before = after = 0
    newest: UsageRow | None = None  # of this snapshot: that of the location it refers to
    for row, following in zip_longest(rows, rows[1:]):
        after += row.refs - refs[row.location_id]
        refs[row.location_id] = row.refs
        if newest is None or row.refs or not newest.refs:
            newest = row
        if following is not None and following.seq == row.seq:
            continue
        if before or after:
            change = CHANGED if before and after else ADDED if after else DROPPED
            yield _file_change(newest, change, after, places[newest.location_id])
        before, newest = after, None


def _file_change(row: UsageRow, change: str, references: int, place: Location) -> FileChange:
    snapshot_id = row.snapshot_id
    if snapshot_id is None:
        snapshot_id = str(read_json_object(row.detail or "", f"operation {row.seq}").get("new_snap_id"))
    written_at = to_datetime(row.done_at)
    stamp = place.size, place.etag, place.modified_at
    return FileChange(change, snapshot_id, written_at, row.message, references, *stamp)  # by name takes twice as long
