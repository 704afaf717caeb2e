"""The history of one file: which snapshots began to refer to it, referred to it differently, and stopped.

One query over the rows of `usage` that are about the file; no snapshot is walked. A file has several locations when it
was referenced as it was at several times, or by several names; they are one file here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from icelite.catalog import locations, usage
from icelite.catalog.database import Catalog
from icelite.catalog.json_column import read_json_object
from icelite.catalog.operations import to_datetime
from icelite.catalog.settings import list_containers
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
        rows = usage.list_history(txn, view, found)
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


def _changes(rows: list[usage.UsageRow], places: dict[int, Location]) -> Iterator[FileChange]:
    refs: dict[int, int] = {}
    for _, group in groupby(rows, key=lambda row: row.seq):
        some = list(group)
        before = sum(refs.values())
        refs.update((row.location_id, row.refs) for row in some)
        after = sum(refs.values())
        if before or after:
            newest = max((row for row in some if row.refs), key=lambda row: row.location_id, default=some[-1])
            change = CHANGED if before and after else ADDED if after else DROPPED
            yield _file_change(some[0], change, after, places[newest.location_id])


def _file_change(row: usage.UsageRow, change: str, references: int, place: Location) -> FileChange:
    snapshot_id = row.snapshot_id or str(read_json_object(row.detail, f"operation {row.seq}").get("new_snap_id"))
    return FileChange(
        change=change,
        snapshot_id=snapshot_id,
        written_at=to_datetime(row.done_at),
        message=row.message,
        references=references,
        size=place.size,
        etag=place.etag,
        modified_at=place.modified_at,
    )
