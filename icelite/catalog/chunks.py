"""The `chunk_ref` table: where each chunk's bytes are, as each snapshot sees it.

A chunk is named by its grid position as text, ``12/0/3`` (``""`` for an array without dimensions).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from icelite.catalog.database import Catalog, Transaction
from icelite.catalog.json_column import damaged
from icelite.catalog.positions import split_positions
from icelite.catalog.snapshots import LINEAGE
from icelite.types import ChunkRef, ChunkType, View

# One segment in the lineage: the greatest seq that is not above ours wins, and the key finds it.
SELECT_CHUNK = """
SELECT location_id, offset, length FROM chunk_ref
WHERE node_id = ?1 AND chunk = ?2 AND seq <= ?3 AND seg = ?4 ORDER BY seq DESC LIMIT 1
"""
# Several segments: the versions of one chunk, newest first; the first that the lineage sees wins.
SELECT_CHUNK_VERSIONS = """
SELECT seg, seq, location_id, offset, length FROM chunk_ref
WHERE node_id = ?1 AND chunk = ?2 AND seq <= ?3 ORDER BY seq DESC
"""
# With max(), SQLite takes the other columns from the row that holds it (https://sqlite.org/lang_select.html#bareagg).
_VISIBLE = """
  SELECT r.chunk, max(r.seq), r.location_id, r.offset, r.length FROM chunk_ref r CROSS JOIN lineage l
  WHERE r.node_id = ?3 AND r.chunk >= ?4 AND r.seq <= ?2 AND l.seg = r.seg AND r.seq <= l.bound
  GROUP BY r.chunk ORDER BY r.chunk LIMIT ?5"""
SCAN_CHUNKS = (
    LINEAGE
    + f"""SELECT group_concat(chunk, char(10)), group_concat(coalesce(location_id, 0)), group_concat(offset),
  group_concat(length) FROM ({_VISIBLE})"""
)
# Each range of a source once, however many references and stamps of it there are.
SELECT_SUMS = """
SELECT kind, sum(length) FROM (
  SELECT DISTINCT l.kind, l.source, r.offset, r.length FROM chunk_ref r JOIN (
    SELECT id, kind, min(id) OVER (PARTITION BY kind, container_id, path) AS source FROM location
  ) l ON l.id = r.location_id
) GROUP BY kind
"""
SELECT_STORED_BYTES = LINEAGE + f"SELECT coalesce(sum(length), 0) FROM ({_VISIBLE}) WHERE location_id IS NOT NULL"

SCAN_ROWS = 500_000  # references in one string: about 10 bytes each, four strings
ALL_ROWS = -1
FIRST = ""
AFTER = " "  # sorts before every character of a grid position: what follows a chunk begins here


class ChunkColumns(NamedTuple):
    """References of one array in key order, as aligned columns; ``location_id`` 0 marks a deleted chunk."""

    chunks: list[str]
    location_ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


def find_chunk(catalog: Catalog, view: View, node_id: int, chunk: str) -> ChunkRef | None:
    """Where a chunk's bytes are, or None when it was never written or was deleted."""
    if len(view.bounds) == 1:
        row = catalog.row(SELECT_CHUNK, (node_id, chunk, view.seq, view.seg))
        return None if row is None or row[0] is None else ChunkRef(*row)
    with catalog.read() as txn:
        for seg, seq, location_id, offset, length in txn.rows(SELECT_CHUNK_VERSIONS, (node_id, chunk, view.seq)):
            if seq <= view.bounds.get(seg, -1):
                return None if location_id is None else ChunkRef(location_id, offset, length)
    return None


def scan_chunks(catalog: Catalog, view: View, node_id: int) -> list[ChunkColumns]:
    """All references of an array, in blocks of at most `SCAN_ROWS`; deleted ones left out.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    blocks: list[ChunkColumns] = []
    start = FIRST
    with catalog.read() as txn:
        while True:
            columns = txn.row(SCAN_CHUNKS, (view.seg, view.seq, node_id, start, SCAN_ROWS))
            if columns is None or columns[0] is None:
                return blocks
            block = _columns(f"array {node_id}", *columns)
            if len(block.chunks) != len(block.lengths):
                raise damaged(f"array {node_id}", "a grid position has a line break")
            blocks.append(_present(block))
            if len(block.chunks) < SCAN_ROWS:
                return blocks
            start = block.chunks[-1] + AFTER


def _columns(what: str, chunks: str, location_ids: str, offsets: str, lengths: str) -> ChunkColumns:
    numbers = (np.fromstring(text, dtype=np.int64, sep=",") for text in (location_ids, offsets, lengths))
    return ChunkColumns(split_positions(chunks, what), *numbers)


def _present(block: ChunkColumns) -> ChunkColumns:
    keep = block.location_ids != 0
    if keep.all():
        return block
    chunks = [chunk for chunk, kept in zip(block.chunks, keep, strict=True) if kept]
    return ChunkColumns(chunks, block.location_ids[keep], block.offsets[keep], block.lengths[keep])


def stored_bytes(catalog: Catalog, view: View, node_id: int) -> int:
    """The sum of the lengths of an array's chunks."""
    row = catalog.row(SELECT_STORED_BYTES, (view.seg, view.seq, node_id, FIRST, ALL_ROWS))
    return 0 if row is None else int(row[0])


def sum_stored_bytes(txn: Transaction) -> dict[ChunkType, int]:
    """The bytes of all chunks that any row refers to, by where they are."""
    return {ChunkType(kind): int(total) for kind, total in txn.rows(SELECT_SUMS)}
