"""Making a copy of a catalog independent of every other file: its references all become inline ones.

For a copy that nobody else has opened. What is to be read waits in a table of the connection's own, which SQLite spills
to disk, so that memory stays bounded whatever the number of references.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import google_crc32c

from icelite.catalog.changes import sum_anew
from icelite.catalog.chunks import check_size
from icelite.catalog.database import Transaction
from icelite.catalog.locations import INLINE

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
