"""The sources of a snapshot: which files and objects its virtual chunks are in, and whether they are as they were.

A source is looked at once, whatever the number of references to it, and none of its bytes are read. The gates of
`icelite.virtual` hold: what the caller did not authorise is not looked at, and said to be so.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from icelite.catalog.chunks import Use, list_uses
from icelite.catalog.database import Catalog
from icelite.catalog.locations import lookup_location
from icelite.catalog.settings import list_containers
from icelite.errors import ErrorKind, IceliteError, redact
from icelite.types import ChunkType, Location, Problem, Progress, SourceInfo, Sources, View
from icelite.virtual import VirtualAccess

AT_ONCE = 32  # sources that are looked at together
GATES = {ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK, ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER}
OK, CHANGED, MISSING = "ok", "changed", "missing"
UNREADABLE, NOT_AUTHORISED = "unreadable", "not authorised"


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
