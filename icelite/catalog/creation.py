"""How a catalog comes to be: with its first rows, in a draft, or as a copy; and how one goes that nothing came of.

A catalog appears under its name complete, or not at all: it is written under a draft name, then linked to its own.
So neither a crash nor a second process finds half of one; what a crash leaves, the next writer there removes.

A copy that needs no other file is one that nobody else has opened. The references that are to be read for it wait in a
table of the connection's own, which SQLite spills to disk, so that memory stays bounded whatever their number.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import apsw
import google_crc32c

from icelite import drafts, vfs
from icelite.catalog import checks, forks
from icelite.catalog.changes import sum_anew
from icelite.catalog.chunks import check_size
from icelite.catalog.connections import CACHE_KIB, anchors, open_connection
from icelite.catalog.database import BEGIN_WRITE, COMMIT, Catalog
from icelite.catalog.locations import INLINE
from icelite.catalog.operations import END, list_operations
from icelite.catalog.sidecars import find_stale
from icelite.catalog.statements import Transaction, translated
from icelite.errors import (
    AlreadyExistsError,
    ErrorKind,
    FormatError,
    IceliteError,
    RepositoryNotFoundError,
    StorageError,
    disk_kind,
)
from icelite.storage import StorageConfig

PAGE_BYTES = 4096


def create_catalog(storage: StorageConfig, initialize: Callable[[Transaction], None]) -> None:
    """Make a catalog with its first rows: all of it, or with an error nothing.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError, FormatError, StorageError
        ``repository-already-exists``; ``repository-not-found`` when the directory does not exist; ``unsafe-sidecar``;
        ``io``, ``storage-full``; elsewhere also ``unsafe-storage``, and `ReadOnlyError` of ``read-only-storage``.
    """
    with forks.SqliteCall(), translated(storage, 0):
        if storage.address is not None:
            _create_remote(storage, initialize)
        elif storage.path is None:
            _create_in_memory(storage.name, initialize)
        else:
            with _draft(storage.path) as connection:
                _write_first_rows(connection, initialize)
    if storage.path is not None:
        checks.remember(storage.path)


def _create_in_memory(name: str, initialize: Callable[[Transaction], None]) -> None:
    if name in anchors:
        raise already_exists(name)
    anchor = open_connection(None, name, apsw.SQLITE_OPEN_CREATE)
    _write_first_rows(anchor, initialize)
    anchors[name] = anchor


def _create_remote(storage: StorageConfig, initialize: Callable[[Transaction], None]) -> None:
    """Make a catalog on this machine, then put it where none is."""
    assert storage.address is not None
    mirror = vfs.lookup_mirror(storage.address)
    mirror.check_safe()
    with tempfile.TemporaryDirectory(prefix="icelite-") as folder:
        path = Path(folder) / "new.icelite"
        with _draft(path) as connection:
            _write_first_rows(connection, initialize)
        mirror.create(path.read_bytes())  # no connection is open any more
        checks.remember(path, mirror.digest)


def _write_first_rows(connection: apsw.Connection, initialize: Callable[[Transaction], None]) -> None:
    connection.pragma("page_size", PAGE_BYTES)
    connection.pragma("journal_mode", "memory")  # a crash leaves a draft, whatever is in it
    connection.pragma("synchronous", "full")
    connection.execute(BEGIN_WRITE)
    connection.pragma("application_id", checks.APPLICATION_ID)
    connection.pragma("user_version", checks.FORMAT_VERSION)
    connection.execute(checks.schema_text())
    initialize(Transaction(connection))
    connection.execute(COMMIT)


# -- drafts ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def drafted(storage: StorageConfig) -> Iterator[StorageConfig]:
    """Yield where to make what becomes a catalog at a place: beside it, or there if that is in memory.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError, FormatError, StorageError
        ``repository-already-exists``; ``repository-not-found`` for the directory; ``unsafe-sidecar``; ``io``.
    """
    if storage.path is None:
        yield storage
        return
    with _drafted(storage.path) as path:
        yield StorageConfig.filesystem(path)
    checks.remember(storage.path)


@contextlib.contextmanager
def _drafted(path: Path) -> Iterator[Path]:
    """Yield a path under which to write what becomes a catalog of another name; raises as `drafted`."""
    try:
        with drafts.draft(path, lambda: _check_free(path)) as draft:
            yield draft
    except IceliteError:  # some are OSErrors too
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RepositoryNotFoundError(
            f"directory {path.parent} does not exist, so {path.name} cannot be created in it; make it first",
            ErrorKind.REPOSITORY_NOT_FOUND,
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be created: {error.strerror}", disk_kind(error)) from error


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[apsw.Connection]:
    """A connection to an empty file, which becomes the catalog when the block ends."""
    with _drafted(path) as draft:
        draft.touch(exist_ok=False)
        with contextlib.closing(open_connection(draft)) as connection:
            yield connection


def _check_free(path: Path) -> None:
    """Refuse a place where there is a file already, or a journal that would be played back into a new one.

    Raises
    ------
    AlreadyExistsError, FormatError, StorageError
        ``repository-already-exists``; ``unsafe-sidecar``; ``io``.
    """
    stale = find_stale(path)  # before the file: whoever writes a journal has the file already
    if os.path.lexists(path):
        raise already_exists(path)
    if stale is not None:
        raise FormatError(
            f"{stale} was left by a catalog that is gone, and would be played back into a new {path.name};"
            " remove it first",
            ErrorKind.UNSAFE_SIDECAR,
        )


def already_exists(path: Path | str) -> AlreadyExistsError:
    """The error for a `create` on a taken path."""
    return AlreadyExistsError(
        f"{path} already exists; open it with Repository.open, or choose another path",
        ErrorKind.REPOSITORY_ALREADY_EXISTS,
    )


def remove_unused(storage: StorageConfig) -> None:
    """Remove a catalog in which nothing happened after it was made; one that anybody wrote to stays.

    Nobody can commit between the look and the end: who waits to write to it finds that its file is gone.
    """
    if storage.path is None:
        return
    with contextlib.closing(Catalog(storage)) as catalog, catalog.write() as txn:
        if len(list_operations(txn, END, 2)[0]) == 1:
            os.unlink(storage.path)


# -- a copy that needs no other file -------------------------------------------------------------------------------

# Ranges of files and objects, in the order of the file; node_id and chunk say of one reference to it which it is.
CREATE_RANGES = """
CREATE TEMP TABLE range (
  location_id INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
  node_id INTEGER NOT NULL, chunk TEXT NOT NULL, payload_id INTEGER,
  PRIMARY KEY (location_id, offset, length)
) STRICT, WITHOUT ROWID
"""
INSERT_RANGES = """
INSERT OR IGNORE INTO temp.range (location_id, offset, length, node_id, chunk)
SELECT location_id, offset, length, node_id, chunk FROM main.chunk_ref
WHERE location_id IS NOT NULL AND location_id <> 1
"""
COUNT_RANGES = "SELECT count(*), coalesce(sum(length), 0), count(DISTINCT location_id) FROM temp.range"
SELECT_RANGES = """
SELECT location_id, offset, length, node_id, chunk FROM temp.range
WHERE (location_id, offset, length) > (?1, ?2, ?3) ORDER BY location_id, offset, length LIMIT ?4
"""
SELECT_LAST_PAYLOAD = "SELECT coalesce(max(seq), 0) FROM main.sqlite_sequence WHERE name = 'payload'"
INSERT_NUMBERED_PAYLOAD = "INSERT INTO main.payload (id, data, crc32c, written_at) VALUES (?, ?, ?, ?)"
UPDATE_RANGE = "UPDATE temp.range SET payload_id = ?4 WHERE location_id = ?1 AND offset = ?2 AND length = ?3"
UPDATE_REFS = """
UPDATE main.chunk_ref SET location_id = 1, offset = (
  SELECT g.payload_id FROM temp.range g
  WHERE g.location_id = chunk_ref.location_id AND g.offset = chunk_ref.offset AND g.length = chunk_ref.length)
WHERE location_id IS NOT NULL AND location_id <> 1
"""
DELETE_LOCATIONS = "DELETE FROM main.location WHERE id <> 1"
DELETE_USAGE = "DELETE FROM main.usage"
SELECT_PATHS = "SELECT node_id, path FROM main.node WHERE metadata IS NOT NULL ORDER BY seq"

RANGES_AT_ONCE = 1_000
BYTES_AT_ONCE = 32 << 20


def create_copy(catalog: Catalog, path: Path, finish: Callable[[Transaction], None]) -> None:
    """Make a catalog from a copy of another one as it is now: complete once ``finish`` returns, or not at all.

    Until then nobody sees it, so it has no journal and no doors. The other catalog is not held meanwhile.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError, StorageError
        As `create_catalog`.
    """
    with translated(StorageConfig.filesystem(path), 0), _draft(path) as connection:
        catalog.copy_into(connection, str(path))
        connection.pragma("journal_mode", "off")  # which a hardened connection may not
        checks.harden(connection)
        connection.pragma("synchronous", "off")
        connection.pragma("cache_size", -CACHE_KIB)
        connection.execute(BEGIN_WRITE)
        finish(Transaction(connection))
        connection.execute(COMMIT)
        connection.pragma("synchronous", "full")
        connection.execute(BEGIN_WRITE)
        connection.pragma("user_version", checks.FORMAT_VERSION)  # any change: its COMMIT syncs the whole file
        connection.execute(COMMIT)
    checks.remember(path)


class Range(NamedTuple):
    """Bytes ``[offset, offset + length)`` of a location, and a chunk that they are."""

    location_id: int
    offset: int
    length: int
    node_id: int
    chunk: str


def collect_ranges(txn: Transaction) -> tuple[int, int, int]:
    """Note every range that any reference names; their number, the sum of their bytes, and the number of locations."""
    txn.run(CREATE_RANGES)
    txn.run(INSERT_RANGES)
    row = txn.row(COUNT_RANGES) or (0, 0, 0)
    return int(row[0]), int(row[1]), int(row[2])


def scan_ranges(txn: Transaction) -> Iterator[list[Range]]:
    """All ranges, a few at a time: at most `RANGES_AT_ONCE`, and no more than `BYTES_AT_ONCE` unless it is one."""
    place = (INLINE, -1, -1)
    while rows := [Range(*row) for row in txn.rows(SELECT_RANGES, (*place, RANGES_AT_ONCE))]:
        batch: list[Range] = []
        size = 0
        for row in rows:
            size += row.length
            if batch and size > BYTES_AT_ONCE:
                break
            batch.append(row)
        yield batch
        place = batch[-1][:3]


def insert_ranges(txn: Transaction, places: Sequence[Range], values: Sequence[bytes], written_at: int) -> None:
    """Put the bytes of ranges into the copy.

    Raises
    ------
    InvalidInputError
        ``chunk-too-large``.
    """
    for place, data in zip(places, values, strict=True):
        check_size(len(data), place.chunk)
    row = txn.row(SELECT_LAST_PAYLOAD) or (0,)
    ids = range(row[0] + 1, row[0] + 1 + len(places))
    rows = ((i, data, google_crc32c.value(data), written_at) for i, data in zip(ids, values, strict=True))
    txn.run_many(INSERT_NUMBERED_PAYLOAD, rows)
    txn.run_many(UPDATE_RANGE, ((*place[:3], i) for i, place in zip(ids, places, strict=True)))


def make_inline(txn: Transaction) -> None:
    """Let every reference point to the bytes that are in the copy now, and forget the locations and their history."""
    txn.run(UPDATE_REFS)
    sum_anew(txn)
    txn.run(DELETE_USAGE)
    txn.run(DELETE_LOCATIONS)


def list_paths(txn: Transaction) -> dict[int, str]:
    """The path of every node, by id: where it was last."""
    return dict(txn.rows(SELECT_PATHS))
