"""The `location` table: the files and objects that hold chunk bytes, one row each.

Of native objects also what references see: how much of each is needed, and moving what is needed elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from icelite.budget import MAX_ETAG_CHARACTERS, MAX_LOCATION_CHARACTERS
from icelite.catalog.changes import add_to_sums
from icelite.catalog.checksums import ref_hash, row_crc
from icelite.catalog.database import Catalog, Row, Transaction
from icelite.catalog.settings import find_setting
from icelite.catalog.values import OPTIONAL_INT, OPTIONAL_TEXT, check_text, check_types, damaged, types
from icelite.errors import ErrorKind, FormatError, InvalidInputError, SessionStateError
from icelite.objects import TRAILER_BYTES, check_key, key_time
from icelite.types import ChunkType, Location

REMOTE_SCHEMES = ("s3",)
COLLECTED = "collected"  # the setting that holds the greatest cutoff of a sweep of objects, microseconds
INLINE = 1  # the location that stands for the payload table

LOCATION = types(int, str, OPTIONAL_TEXT, OPTIONAL_INT, OPTIONAL_TEXT, OPTIONAL_INT)
KINDS = (ChunkType.native, ChunkType.virtual, ChunkType.inline)

SELECT_LOCATION = """
SELECT l.kind, l.path, c.name, l.size, l.etag, l.modified_at
FROM location l LEFT JOIN container c ON c.id = l.container_id WHERE l.id = ?
"""
SELECT_LOCATIONS = """
SELECT l.kind, l.path, c.name, l.size, l.etag, l.modified_at
FROM location l LEFT JOIN container c ON c.id = l.container_id WHERE l.kind = 2 ORDER BY l.id
"""
SELECT_NUMBERED_LOCATIONS = """
SELECT l.id, l.kind, l.path, c.name, l.size, l.etag, l.modified_at
FROM location l LEFT JOIN container c ON c.id = l.container_id WHERE l.kind = 2 ORDER BY l.id
"""
SELECT_FILES = """
SELECT l.id, l.kind, l.path, c.name, l.size, l.etag, l.modified_at
FROM location l LEFT JOIN container c ON c.id = l.container_id WHERE l.path = ?2 AND l.kind = 2 AND c.name IS ?1
"""
UPDATE_LOCATION = """
UPDATE location SET container_id = ?3, path = ?4, size = ?5, etag = ?6, modified_at = ?7, crc32c = ?8
WHERE id = ?1 AND kind = ?2
"""
SELECT_LOCATION_ID = """
SELECT id FROM location
WHERE path = ?3 AND kind = ?1 AND container_id IS ?2 AND size IS ?4 AND etag IS ?5 AND modified_at IS ?6
"""
SELECT_LAST_LOCATION = "SELECT coalesce(max(id), 0) FROM location"
INSERT_LOCATION = """
INSERT INTO location (id, kind, container_id, path, size, etag, modified_at, crc32c) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
SELECT_REMOTE_LOCATION = "SELECT 1 FROM location WHERE path > ?1 || '://' AND path < ?1 || ':/0' LIMIT 1"
SELECT_REMOTE_CONTAINER = """
SELECT 1 FROM container WHERE name <> url_prefix AND url_prefix NOT LIKE 'file://%' LIMIT 1
"""
SELECT_OBJECTS = "SELECT path FROM location WHERE path > ?1 || '/' AND path < ?1 || '0' AND kind = 1"
SELECT_CONTAINER_ID = "SELECT id FROM container WHERE name = ?"


def insert_inline_location(txn: Transaction) -> None:
    """The row that every catalog begins with."""
    _insert(txn, (INLINE, int(ChunkType.inline), None, "", None, None, None))


def _insert(txn: Transaction, row: tuple[Any, ...]) -> None:
    txn.run(INSERT_LOCATION, (*row, row_crc(*row)))


def lookup_location(catalog: Catalog, location_id: int) -> Location:
    """The location with an id that a reference names.

    Raises
    ------
    FormatError
        ``corrupt`` when there is no such row.
    """
    with catalog.read() as txn:
        row = txn.row(SELECT_LOCATION, (location_id,))
    if row is None:
        raise FormatError(
            f"{catalog.storage.name}: a reference names location {location_id}, which does not exist", ErrorKind.CORRUPT
        )
    return _location(row, location_id)


def list_locations(txn: Transaction) -> list[Location]:
    """Every virtual location of the repository, whichever snapshot uses it."""
    return [_location(row, None) for row in txn.rows(SELECT_LOCATIONS)]


def load_locations(txn: Transaction) -> dict[int, Location]:
    """Every virtual location of the repository by its id."""
    return {row[0]: _location(tuple(row[1:]), row[0]) for row in txn.rows(SELECT_NUMBERED_LOCATIONS)}


def find_files(txn: Transaction, container: str | None, path: str) -> dict[int, Location]:
    """The virtual locations with a path in a container, or in none, by id: one for each way the file once was."""
    return {row[0]: _location(tuple(row[1:]), row[0]) for row in txn.rows(SELECT_FILES, (container, path))}


def update_locations(txn: Transaction, changed: Mapping[int, Location]) -> None:
    """Rewrite locations, one row each; the references to them stay as they are."""
    rows = ((number, *_values(txn, location)) for number, location in changed.items())
    txn.run_many(UPDATE_LOCATION, [(*row, row_crc(*row)) for row in rows])


def _location(row: Row, number: object) -> Location:
    what = "a location" if number is None else f"location {number}"
    check_types(row, LOCATION, what)
    kind, path, container, size, etag, modified_at = row
    check_text(path, what, MAX_LOCATION_CHARACTERS)
    check_text(etag or "", what, MAX_ETAG_CHARACTERS)
    if kind not in KINDS or (size is not None and size < 0):
        raise damaged(what, f"kind {kind}, {size} bytes")
    return Location(ChunkType(kind), path, container, size, etag, modified_at)


def intern_location(txn: Transaction, location: Location) -> int:
    """The id of a location, added when it is new."""
    values = _values(txn, location)
    found = txn.row(SELECT_LOCATION_ID, values)
    if found is not None:
        return int(found[0])
    last = txn.row(SELECT_LAST_LOCATION)
    number = 1 if last is None else int(last[0]) + 1
    _insert(txn, (number, *values))
    return number


def _values(txn: Transaction, location: Location) -> tuple[Any, ...]:
    """The columns of a location, from kind to modified_at."""
    container_id = None
    if location.container is not None:
        row = txn.row(SELECT_CONTAINER_ID, (location.container,))
        if row is None:
            raise InvalidInputError(
                f"reference vcc://{location.container}/{location.path} names a container that this repository"
                " does not have; declare it in the RepositoryConfig",
                ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK,
            )
        container_id = row[0]
    return int(location.kind), container_id, location.path, location.size, location.etag, location.modified_at


def check_objects(txn: Transaction, locations: Iterable[Location]) -> None:
    """Refuse to commit references to objects that garbage collection may have removed.

    An object that some reference of the catalog names is kept. Of the others, which a session has written ahead of
    its commit, collection sweeps those written before its cutoff.

    Raises
    ------
    SessionStateError
        ``payload-collected``.
    """
    native = [location for location in locations if location.kind == ChunkType.native]
    collected = find_collected(txn) if native else 0
    for location in native:
        row = _values(txn, location)
        if key_time(location.path) * 1000 < collected and txn.row(SELECT_LOCATION_ID, row) is None:
            raise SessionStateError(
                f"garbage_collect has removed the object {location.path}, which this session wrote ahead of its"
                " commit; nothing was committed. Open a new session and write again; a cutoff before the beginning"
                " of the oldest open session spares what it wrote",
                ErrorKind.PAYLOAD_COLLECTED,
            )


def find_collected(txn: Transaction) -> int:
    """The greatest cutoff of a sweep of objects so far, microseconds since 1970; 0 before the first.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    collected = find_setting(txn, COLLECTED)
    if collected is None:
        return 0
    if type(collected) is not int:
        raise damaged(f"setting {COLLECTED!r}", f"{collected!r} is no time")
    return collected


def list_known_objects(txn: Transaction, folder: str) -> set[str]:
    """The keys of the objects in one folder, ``7Q``, that references name."""
    return {check_key(key) for (key,) in txn.rows(SELECT_OBJECTS, (folder,))}


def has_remote_locations(catalog: Catalog) -> bool:
    """Whether any reference of the repository could be to something not on this machine."""
    with catalog.read() as txn:
        return txn.row(SELECT_REMOTE_CONTAINER) is not None or any(
            txn.row(SELECT_REMOTE_LOCATION, (scheme,)) is not None for scheme in REMOTE_SCHEMES
        )


# -- native objects ------------------------------------------------------------------------------------------------

_EXTENTS = """
SELECT DISTINCT location_id, offset, length FROM chunk_ref
WHERE location_id IN (SELECT id FROM location WHERE kind = 1)
"""
SELECT_EXTENTS = _EXTENTS + "ORDER BY location_id, offset"
SELECT_PACKS = f"""
SELECT l.id, l.path, coalesce(l.size, 0), coalesce(sum(r.length + {TRAILER_BYTES}), 0)
FROM location l LEFT JOIN ({_EXTENTS}) r ON r.location_id = l.id WHERE l.kind = 1 GROUP BY l.id
"""
SELECT_NATIVE_REFS = """
SELECT node_id, chunk, seq, location_id, offset, length FROM chunk_ref
WHERE location_id IN (SELECT id FROM location WHERE kind = 1)
"""
SELECT_NAMED = "SELECT 1 FROM location WHERE id = ? AND kind = 1"
UPDATE_REF = "UPDATE chunk_ref SET location_id = ?1, offset = ?2 WHERE node_id = ?3 AND chunk = ?4 AND seq = ?5"

PACK = types(int, str, int, int)
EXTENT = types(int, int, int)


@dataclass(frozen=True, slots=True)
class Pack:
    """A native object: its bytes, and how many of them some reference needs, trailers included."""

    location_id: int
    key: str
    size: int
    live: int


def list_packs(txn: Transaction) -> list[Pack]:
    """Every native object that the catalog names."""
    rows = txn.rows(SELECT_PACKS)
    for row in rows:
        check_types(row, PACK, "a native object")
    return [Pack(*row) for row in rows]


def list_extents(txn: Transaction) -> list[tuple[int, int, int]]:
    """Location, offset and length in bytes of every part of an object that a reference names, in this order."""
    rows = txn.rows(SELECT_EXTENTS)
    for row in rows:
        check_types(row, EXTENT, "a reference to a native object")
    return [(location_id, offset, length) for location_id, offset, length in rows]


def is_named(txn: Transaction, location_id: int) -> bool:
    """Whether there is a native object with this number."""
    return txn.row(SELECT_NAMED, (location_id,)) is not None


def move_extents(txn: Transaction, moved: Mapping[tuple[int, int, int], tuple[int, int]]) -> None:
    """Point references at the new location and offset of the same bytes, in whatever snapshot they are."""
    changed: list[tuple[int, int, int, str, int]] = []
    sums: dict[tuple[int, int], int] = {}
    for node_id, chunk, seq, location_id, offset, length in txn.rows(SELECT_NATIVE_REFS):
        place = moved.get((location_id, offset, length))
        if place is not None:
            changed.append((*place, node_id, chunk, seq))
            difference = ref_hash(chunk, *place, length) - ref_hash(chunk, location_id, offset, length)
            sums[seq, node_id] = sums.get((seq, node_id), 0) + difference
    txn.run_many(UPDATE_REF, changed)
    add_to_sums(txn, sums)
