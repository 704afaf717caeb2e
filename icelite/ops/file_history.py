"""The history of one file: which snapshots began to refer to it, referred to it differently, and stopped.

One query over the rows of `usage` that are about the file; no snapshot is walked. A file has several locations when it
was referenced as it was at several times, or by several names; they are one file here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from icelite.catalog import locations
from icelite.catalog.changes import UsageRow, list_usage
from icelite.catalog.database import Catalog
from icelite.catalog.operations import to_datetime
from icelite.catalog.settings import list_containers
from icelite.catalog.values import read_json_object
from icelite.config import VirtualChunkContainer
from icelite.errors import ErrorKind, NotFoundError
from icelite.ops.prefixes import Prefix, parse_prefix
from icelite.types import FileChange, Location, View

ADDED, CHANGED, DROPPED = "added", "changed", "dropped"


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
