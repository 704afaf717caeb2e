"""The private change set of a writable session: `staging.sql`, attached to the session's own connection.

References wait here, spilled to disk by SQLite when they are many, until a commit copies them to the catalog in
key order, which fills its pages to the brim.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from icelite.catalog.chunks import AFTER, FIRST, SCAN_ROWS, ChunkColumns, as_columns
from icelite.catalog.database import Catalog, Row, Transaction
from icelite.errors import ErrorKind, SessionStateError
from icelite.types import View

ROWS_AT_ONCE = 100  # rows in one INSERT: twice as fast as one by one, and the statement stays cacheable

_INSERT = "INSERT OR REPLACE INTO staged.chunk_ref (node_id, chunk, location_id, offset, length) VALUES "
PUT_REF = _INSERT + "(?1, ?2, ?3, ?4, ?5)"
PUT_REFS = _INSERT + ", ".join("(?1, ?, ?, ?, ?)" for _ in range(ROWS_AT_ONCE))
SELECT_REF = "SELECT location_id, offset, length FROM staged.chunk_ref WHERE node_id = ? AND chunk = ?"
SELECT_SOME_REFS = """
SELECT k.key, r.location_id, r.offset, r.length FROM json_each(?2) k CROSS JOIN staged.chunk_ref r
WHERE r.node_id = ?1 AND r.chunk = k.value
"""
SELECT_REFS = "SELECT chunk, location_id, offset, length FROM staged.chunk_ref WHERE node_id = ? ORDER BY chunk"
SCAN_REFS = """
SELECT group_concat(chunk, char(10)), group_concat(coalesce(location_id, 0)), group_concat(offset),
  group_concat(length)
FROM (SELECT chunk, location_id, offset, length FROM staged.chunk_ref WHERE node_id = ?1 AND chunk >= ?2
  ORDER BY chunk LIMIT ?3)
"""
SELECT_SOME_CHUNKS = """
SELECT group_concat(chunk, char(10)), max(chunk), count(*) FROM (
  SELECT chunk FROM staged.chunk_ref WHERE node_id = ?1 AND chunk >= ?2 ORDER BY chunk LIMIT ?3)
"""
SELECT_CHANGED_NODES = "SELECT DISTINCT node_id FROM staged.chunk_ref"
DELETE_REF = "DELETE FROM staged.chunk_ref WHERE node_id = ? AND chunk = ?"
DELETE_REFS = "DELETE FROM staged.chunk_ref WHERE node_id = ?"
DELETE_ALL_REFS = "DELETE FROM staged.chunk_ref"
DELETE_LOCATIONS = "DELETE FROM staged.location"
INSERT_LOCATION = "INSERT INTO staged.location (id, catalog_id) VALUES (?, ?)"
COPY_REFS = """
INSERT OR REPLACE INTO main.chunk_ref (node_id, chunk, seq, seg, location_id, offset, length)
SELECT ?2, r.chunk, ?3, ?4, l.catalog_id, r.offset, r.length
FROM staged.chunk_ref r LEFT JOIN staged.location l ON l.id = r.location_id
WHERE r.node_id = ?1 ORDER BY r.chunk
"""

SELECT_LOST = """
SELECT count(*), min(r.chunk) FROM staged.chunk_ref r
WHERE r.location_id = 1 AND NOT EXISTS (SELECT 1 FROM main.payload p WHERE p.id = r.offset)
"""

CHUNKS_AT_ONCE = 200_000  # positions joined in one string while packing a change


def put_ref(txn: Transaction, node_id: int, chunk: str, location_id: int | None, offset: int, length: int) -> None:
    """Stage one reference, or with ``location_id`` None the deletion of a chunk."""
    txn.run(PUT_REF, (node_id, chunk, location_id, offset, length))


def put_refs(
    txn: Transaction,
    node_id: int,
    chunks: Sequence[str],
    location_ids: Sequence[int | None],
    offsets: Sequence[int],
    lengths: Sequence[int],
) -> None:
    """Stage many references of one array, given as aligned columns."""
    rows = zip(chunks, location_ids, offsets, lengths, strict=True)
    whole = len(chunks) // ROWS_AT_ONCE
    txn.run_many(PUT_REFS, _grouped(node_id, rows, whole))
    txn.run_many(PUT_REF, ((node_id, *row) for row in rows))


def _grouped(node_id: int, rows: Iterator[tuple[object, ...]], groups: int) -> Iterator[tuple[object, ...]]:
    for _ in range(groups):
        yield (node_id, *chain.from_iterable(islice(rows, ROWS_AT_ONCE)))


def find_ref(catalog: Catalog, node_id: int, chunk: str) -> Row | None:
    """``(location_id, offset, length)`` of a staged reference, or None where the session changed nothing."""
    return catalog.row(SELECT_REF, (node_id, chunk))


def find_refs(catalog: Catalog, node_id: int, chunks: Sequence[str]) -> dict[int, Row]:
    """`find_ref` for many chunks in one statement, by their place in ``chunks``; those not changed are left out."""
    with catalog.read() as txn:
        names = '["' + '","'.join(chunks) + '"]'  # grid positions need no escaping
        return {row[0]: row[1:] for row in txn.rows(SELECT_SOME_REFS, (node_id, names))}


def list_refs(txn: Transaction, node_id: int) -> list[Row]:
    """``(chunk, location_id, offset, length)`` of all staged references of an array, in key order."""
    return txn.rows(SELECT_REFS, (node_id,))


def scan_refs(txn: Transaction, node_id: int) -> Iterator[ChunkColumns]:
    """The same in columns, block by block; a deleted chunk has location 0."""
    start = FIRST
    while (row := txn.row(SCAN_REFS, (node_id, start, SCAN_ROWS))) is not None and row[0] is not None:
        block = as_columns(f"array {node_id}", *row)
        yield block
        start = block.chunks[-1] + AFTER


def list_changed_nodes(txn: Transaction) -> list[int]:
    """Ids of the arrays that have staged references."""
    return [node_id for (node_id,) in txn.rows(SELECT_CHANGED_NODES)]


def drop_ref(txn: Transaction, node_id: int, chunk: str) -> None:
    """Forget one staged reference."""
    txn.run(DELETE_REF, (node_id, chunk))


def drop_refs(txn: Transaction, node_id: int) -> None:
    """Forget the staged references of an array."""
    txn.run(DELETE_REFS, (node_id,))


def clear(txn: Transaction) -> None:
    """Forget everything staged."""
    txn.run(DELETE_ALL_REFS)
    txn.run(DELETE_LOCATIONS)


def check_payloads(txn: Transaction) -> None:
    """Refuse to commit references to bytes that are in the catalog no more.

    Raises
    ------
    SessionStateError
        ``payload-collected``.
    """
    row = txn.row(SELECT_LOST)
    if row is not None and row[0]:
        raise SessionStateError(
            f"garbage_collect removed the bytes of {row[0]} chunks, among them {row[1]!r}, that this session wrote"
            " ahead of its commit; nothing was committed. Open a new session and write again; a cutoff before the"
            " beginning of the oldest open session spares what it wrote",
            ErrorKind.PAYLOAD_COLLECTED,
        )


def map_locations(txn: Transaction, catalog_ids: Iterable[tuple[int, int]]) -> None:
    """Say which location of the catalog each staged location became."""
    txn.run(DELETE_LOCATIONS)
    txn.run_many(INSERT_LOCATION, catalog_ids)


def copy_refs(txn: Transaction, staged_id: int, node_id: int, view: View) -> None:
    """Copy an array's staged references into the catalog as changes of the snapshot ``view``."""
    txn.run(COPY_REFS, (staged_id, node_id, view.seq, view.seg))


def pack_chunks(txn: Transaction, staged_id: int) -> tuple[bytes, int]:
    """The grid positions of an array's staged references, as ``change.chunks`` holds them, and their number."""
    compressor = zlib.compressobj(level=1)
    parts: list[bytes] = []
    start, separator, count = FIRST, b"", 0
    while True:
        row = txn.row(SELECT_SOME_CHUNKS, (staged_id, start, CHUNKS_AT_ONCE))
        if row is None or row[2] == 0:
            break
        parts.append(compressor.compress(separator + row[0].encode()))
        start, separator, count = row[1] + AFTER, b"\n", count + row[2]
    return b"".join([*parts, compressor.flush()]), count
