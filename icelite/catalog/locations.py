"""The `location` table: the files and objects that hold chunk bytes, one row each."""

from __future__ import annotations

from icelite.catalog.database import Catalog, Row, Transaction
from icelite.errors import ErrorKind, FormatError, InvalidInputError
from icelite.types import ChunkType, Location

REMOTE_SCHEMES = ("s3",)
INLINE = 1  # the location that stands for the payload table

INSERT_INLINE_LOCATION = "INSERT INTO location (id, kind, path) VALUES (?, ?, '')"
SELECT_LOCATION = """
SELECT l.kind, l.path, c.name, l.size, l.etag, l.modified_at
FROM location l LEFT JOIN container c ON c.id = l.container_id WHERE l.id = ?
"""
SELECT_LOCATIONS = """
SELECT l.kind, l.path, c.name, l.size, l.etag, l.modified_at
FROM location l LEFT JOIN container c ON c.id = l.container_id WHERE l.kind = 2 ORDER BY l.id
"""
SELECT_LOCATION_ID = """
SELECT id FROM location
WHERE path = ?2 AND kind = ?1 AND container_id IS ?3 AND size IS ?4 AND etag IS ?5 AND modified_at IS ?6
"""
INSERT_LOCATION = """
INSERT INTO location (kind, path, container_id, size, etag, modified_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
"""
SELECT_REMOTE_LOCATION = "SELECT 1 FROM location WHERE path > ?1 || '://' AND path < ?1 || ':/0' LIMIT 1"
SELECT_REMOTE_CONTAINER = """
SELECT 1 FROM container WHERE name <> url_prefix AND url_prefix NOT LIKE 'file://%' LIMIT 1
"""
SELECT_CONTAINER_ID = "SELECT id FROM container WHERE name = ?"


def insert_inline_location(txn: Transaction) -> None:
    """The row that every catalog begins with."""
    txn.run(INSERT_INLINE_LOCATION, (INLINE, int(ChunkType.inline)))


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
    return _location(row)


def list_locations(txn: Transaction) -> list[Location]:
    """Every virtual location of the repository, whichever snapshot uses it."""
    return [_location(row) for row in txn.rows(SELECT_LOCATIONS)]


def _location(row: Row) -> Location:
    kind, path, container, size, etag, modified_at = row
    return Location(ChunkType(kind), path, container, size, etag, modified_at)


def intern_location(txn: Transaction, location: Location) -> int:
    """The id of a location, added when it is new."""
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
    values = (int(location.kind), location.path, container_id, location.size, location.etag, location.modified_at)
    found = txn.row(SELECT_LOCATION_ID, values)
    return txn.insert(INSERT_LOCATION, values) if found is None else int(found[0])


def has_remote_locations(catalog: Catalog) -> bool:
    """Whether any reference of the repository could be to something not on this machine."""
    with catalog.read() as txn:
        return txn.row(SELECT_REMOTE_CONTAINER) is not None or any(
            txn.row(SELECT_REMOTE_LOCATION, (scheme,)) is not None for scheme in REMOTE_SCHEMES
        )
