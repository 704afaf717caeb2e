"""The `change` and `usage` tables: what each snapshot did to each node it touched, and to each file.

A row of `usage` holds the number of references to a file as of the snapshot that wrote it. The newest row that a
snapshot sees counts, as in `node`; so what a snapshot did to a file is its row compared with the one before. Only
virtual files have rows.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import NamedTuple

import numpy as np

from icelite.budget import MAX_POSITIONS_EXPANSION, MIN_POSITIONS_BYTES, over_budget
from icelite.catalog.checksums import SUM_MASK, hash_extents, location_factors, row_crc, sum_refs
from icelite.catalog.chunks import split_numbers, split_positions
from icelite.catalog.database import Row, Transaction
from icelite.catalog.snapshots import LINEAGE
from icelite.catalog.values import OPTIONAL_TEXT, check_number, check_order, check_types, damaged, types
from icelite.types import NodeChange, View

INSERT_CHANGE = """
INSERT OR REPLACE INTO change (seq, node_id, seg, node_change, chunks, refs_sum, crc32c) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
SELECT_CHANGES = "SELECT node_id, node_change, chunks FROM change WHERE seq = ? ORDER BY node_id"
# Of every snapshot in the lineage of (?1, ?2) after number ?3, also of those that expiration has removed.
SELECT_CHANGES_SINCE = (
    LINEAGE
    + """SELECT c.seq, c.node_id, c.node_change, c.chunks FROM change c CROSS JOIN lineage l
WHERE c.seq > ?3 AND c.seq <= ?2 AND l.seg = c.seg AND c.seq <= l.bound ORDER BY c.seq, c.node_id"""
)
SELECT_SEQS_SINCE = (
    LINEAGE
    + """SELECT DISTINCT c.seq FROM change c CROSS JOIN lineage l
WHERE c.seq > ?3 AND c.seq <= ?2 AND l.seg = c.seg AND c.seq <= l.bound"""
)

SELECT_NODES = "SELECT path, zarr_format, metadata FROM node WHERE node_id = ? AND seq = ?"
INSERT_NODE = """
INSERT INTO node (path, seq, seg, node_id, zarr_format, metadata, crc32c) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
COPY_CHUNK = """
INSERT INTO chunk_ref (node_id, chunk, seq, seg, location_id, offset, length)
SELECT node_id, chunk, ?4, ?5, location_id, offset, length FROM chunk_ref
WHERE node_id = ?1 AND chunk = ?2 AND seq = ?3
"""
SELECT_CHANGE = "SELECT seg, node_change, chunks, refs_sum FROM change WHERE seq = ? AND node_id = ?"
# The references that one snapshot wrote of one array, by the names in a JSON list.
SELECT_WRITTEN = """
SELECT r.chunk, coalesce(r.location_id, 0), r.offset, r.length FROM json_each(?3) k CROSS JOIN chunk_ref r
WHERE r.node_id = ?1 AND r.chunk = k.value AND r.seq = ?2
"""
# All references of an array, whichever snapshot wrote them.
SCAN_VERSIONS = """
SELECT group_concat(chunk, char(10)), group_concat(seq), group_concat(seg), group_concat(coalesce(location_id, 0)),
  group_concat(offset), group_concat(length)
FROM (SELECT chunk, seq, seg, location_id, offset, length FROM chunk_ref
  WHERE node_id = ?1 AND (chunk, seq) > (?2, ?3) ORDER BY chunk, seq LIMIT ?4)
"""
SELECT_ALL_SUMS = "SELECT seq, node_id, refs_sum FROM change"
SELECT_ARRAY_AFTER = "SELECT node_id FROM chunk_ref WHERE node_id > ? ORDER BY node_id LIMIT 1"
DELETE_CHUNKS = "DELETE FROM chunk_ref WHERE node_id = ? AND seq = ?"

NAMES_AT_ONCE = 10_000
ROWS_AT_ONCE = 100_000
CHANGE = types(int, int, (bytes, NoneType))  # of SELECT_CHANGES
KINDS = set(NodeChange)


class Change(NamedTuple):
    """What one snapshot did to one node; ``chunks`` are grid positions in key order."""

    node_id: int
    node_change: NodeChange
    chunks: list[str]


def insert_change(
    txn: Transaction, view: View, node_id: int, node_change: NodeChange, chunks: bytes | None, refs_sum: int
) -> None:
    """Note what a snapshot did to a node; ``chunks`` packed, None when it changed none.

    An amend begins with the changes of the snapshot it replaces (`copy_snapshot`): those are joined with the new ones.
    """
    row = txn.row(SELECT_CHANGE, (view.seq, node_id))
    if row is not None:
        earlier = row[1:3]
        if earlier[0] == NodeChange.created and node_change == NodeChange.deleted:
            # The copies go; the amended snapshot still sees its own. What the node replaced stays deleted.
            txn.run(DELETE_CHUNKS, (node_id, view.seq))
            _insert(txn, view.seq, node_id, view.seg, int(node_change), None, 0)
            return
        if earlier[0] == NodeChange.created or node_change == NodeChange.none:
            node_change = NodeChange(earlier[0])
        elif earlier[0] == NodeChange.moved and node_change == NodeChange.updated:
            node_change = NodeChange.moved
        chunks = _join(earlier[1], chunks)
        refs_sum = 0 if chunks is None else _sum_written(txn, view.seq, node_id, unpack_chunks(chunks))
    _insert(txn, view.seq, node_id, view.seg, int(node_change), chunks, refs_sum)


def _insert(txn: Transaction, *row: int | bytes | None) -> None:
    txn.run(INSERT_CHANGE, (*row, row_crc(*row)))


def _sum_written(txn: Transaction, seq: int, node_id: int, chunks: list[str]) -> int:
    total = 0
    for start in range(0, len(chunks), NAMES_AT_ONCE):
        names = json.dumps(chunks[start : start + NAMES_AT_ONCE])
        if rows := txn.rows(SELECT_WRITTEN, (node_id, seq, names)):
            total += sum_refs(*zip(*rows, strict=True))
    return total & SUM_MASK


def add_to_sums(txn: Transaction, added: Mapping[tuple[int, int], int]) -> None:
    """Let ``refs_sum`` follow rows of ``chunk_ref`` that changed: by snapshot number and node id, what is to be added.

    Rows that went are added with a minus. Where there is no note of the change there is nothing to follow.
    """
    for (seq, node_id), number in added.items():
        row = txn.row(SELECT_CHANGE, (seq, node_id))
        if row is not None:
            seg, node_change, chunks, refs_sum = row
            _insert(txn, seq, node_id, seg, node_change, chunks, refs_sum + number & SUM_MASK)


RefPosition = tuple[str, int]  # the chunk and the number of a reference


class WrittenRefs(NamedTuple):
    """The references that one snapshot wrote of one array: how many, the sum of their hashes, and their segments."""

    rows: int
    total: int
    segments: frozenset[int]


def scan_versions(
    txn: Transaction, node_id: int, place: RefPosition, limit: int = ROWS_AT_ONCE
) -> tuple[dict[int, WrittenRefs], RefPosition | None]:
    """Some of the references of an array, whichever snapshot wrote them, summed up by its number.

    Parameters
    ----------
    place
        The chunk and number of the last row that was read; ``("", -1)`` to begin.

    Returns
    -------
    tuple
        The sums, and the place to go on from; None at the end.
    """
    row = txn.row(SCAN_VERSIONS, (node_id, *place, limit))
    if row is None or row[0] is None:
        return {}, None
    chunks = split_positions(row[0], f"array {node_id}")
    seqs, segs, ids, offsets, lengths = columns = [split_numbers(text, f"array {node_id}") for text in row[1:]]
    if any(len(column) != len(chunks) for column in columns):
        raise damaged(f"array {node_id}", "a grid position has a line break, or a value a comma")
    hashes = hash_extents(chunks, offsets, lengths) * location_factors(ids)
    numbers, first, rows = np.unique(seqs, return_index=True, return_inverse=True)
    totals = np.zeros(len(numbers), np.uint64)
    np.add.at(totals, rows, hashes)
    counts = np.bincount(rows, minlength=len(numbers))
    segments = {number: {int(segs[at])} for number, at in zip(numbers.tolist(), first.tolist(), strict=True)}
    for at in np.flatnonzero(segs != segs[first][rows]).tolist():
        segments[int(seqs[at])].add(int(segs[at]))
    found = {
        number: WrittenRefs(rows_of, total & SUM_MASK, frozenset(segments[number]))
        for number, rows_of, total in zip(numbers.tolist(), counts.tolist(), totals.tolist(), strict=True)
    }
    if len(chunks) < limit:
        return found, None
    return found, check_order((chunks[-1], int(seqs[-1])), place, f"array {node_id}")


def next_array(txn: Transaction, node_id: int) -> int | None:
    """The least id above ``node_id`` of an array that has references, in whatever snapshot."""
    row = txn.row(SELECT_ARRAY_AFTER, (node_id,))
    return None if row is None else check_order(check_number(row[0], "an array"), node_id, "the table chunk_ref")


def sum_anew(txn: Transaction) -> None:
    """Give every change the sum of the references that are there now: what follows a change to all of them."""
    totals: dict[tuple[int, int], int] = {}
    for node_id, some in _scan_all(txn):
        for seq, written in some.items():
            totals[seq, node_id] = totals.get((seq, node_id), 0) + written.total
    for seq, node_id, refs_sum in txn.rows(SELECT_ALL_SUMS):
        totals[seq, node_id] = totals.get((seq, node_id), 0) - refs_sum
    add_to_sums(txn, {key: number for key, number in totals.items() if number & SUM_MASK})


def _scan_all(txn: Transaction) -> Iterator[tuple[int, dict[int, WrittenRefs]]]:
    node_id = next_array(txn, -1)
    while node_id is not None:
        place: RefPosition | None = ("", -1)
        while place is not None:
            some, place = scan_versions(txn, node_id, place)
            yield node_id, some
        node_id = next_array(txn, node_id)


def _join(one: bytes | None, other: bytes | None) -> bytes | None:
    if one is None or other is None:
        return one or other
    return zlib.compress("\n".join(sorted({*unpack_chunks(one), *unpack_chunks(other)})).encode(), level=1)


def list_changes(txn: Transaction, seq: int) -> list[Change]:
    """Everything a snapshot did."""
    return [_change(row) for row in txn.rows(SELECT_CHANGES, (seq,))]


def _change(row: Row) -> Change:
    check_types(row, CHANGE, "a change")
    node_id, node_change, packed = row
    if node_change not in KINDS:
        raise damaged(f"a change of node {node_id}", f"its kind is {node_change}")
    return Change(node_id, NodeChange(node_change), [] if packed is None else unpack_chunks(packed))


def list_changes_since(txn: Transaction, view: View, seq: int) -> list[tuple[int, Change]]:
    """What the snapshots that ``view`` sees did after the one numbered ``seq``, oldest first, each with its number."""
    rows = txn.rows(SELECT_CHANGES_SINCE, (view.seg, view.seq, seq))
    return [(check_number(written_by, "a change"), _change(tuple(rest))) for written_by, *rest in rows]


def list_seqs_since(txn: Transaction, view: View, seq: int) -> set[int]:
    """Numbers of the snapshots, released ones too, whose changes after ``seq`` are in what ``view`` sees."""
    return {number for (number,) in txn.rows(SELECT_SEQS_SINCE, (view.seg, view.seq, seq))}


def copy_snapshot(txn: Transaction, seq: int, view: View) -> None:
    """Give the new snapshot ``view`` the rows that the snapshot ``seq`` has of its own: what an amend begins with."""
    for change in list_changes(txn, seq):
        for path, zarr_format, metadata in txn.rows(SELECT_NODES, (change.node_id, seq)):
            row = path, view.seq, view.seg, change.node_id, zarr_format, metadata
            txn.run(INSERT_NODE, (*row, row_crc(*row)))
        txn.run_many(COPY_CHUNK, ((change.node_id, chunk, seq, view.seq, view.seg) for chunk in change.chunks))
        note = txn.row(SELECT_CHANGE, (seq, change.node_id))
        if note is not None:
            _insert(txn, view.seq, change.node_id, view.seg, *note[1:])


def unpack_chunks(packed: object) -> list[str]:
    """The grid positions in a value of ``change.chunks``.

    Raises
    ------
    FormatError
        ``corrupt``; ``over-budget`` when they are many more than so few bytes hold.
    """
    if not isinstance(packed, bytes):
        raise damaged("a change", f"its positions are a {type(packed).__name__}")
    limit = MIN_POSITIONS_BYTES + MAX_POSITIONS_EXPANSION * len(packed)
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(packed, limit).decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise damaged("a change", str(error)) from error
    if not inflater.eof:
        if len(text) < limit:
            raise damaged("a change", "its positions end early")
        raise over_budget("a change", f"{len(packed)} bytes that hold many times as many", f"{limit}")
    count = text.count("\n") + 1
    if len(text) < count * (math.log(count, 11) - 1):  # of ten digits and a slash: too short to be all different
        raise damaged("a change", f"{count} positions in {len(text)} characters repeat each other")
    return split_positions(text, "a change")


# -- files ---------------------------------------------------------------------------------------------------------

# How many references of the chunks that a session staged, or of a whole array, lead to each file now.
COUNT_REPLACED = (
    LINEAGE
    + """
SELECT c.location_id, count(*) FROM (
  SELECT max(r.seq), r.location_id FROM staged.chunk_ref s CROSS JOIN main.chunk_ref r CROSS JOIN lineage l
  WHERE s.node_id = ?3 AND r.node_id = ?3 AND r.chunk = s.chunk AND r.seq <= ?2 AND l.seg = r.seg AND r.seq <= l.bound
  GROUP BY s.chunk
) c JOIN location o ON o.id = c.location_id WHERE o.kind = 2 GROUP BY c.location_id
"""
)
COUNT_ALL = (
    LINEAGE
    + """
SELECT c.location_id, count(*) FROM (
  SELECT max(r.seq), r.location_id FROM chunk_ref r CROSS JOIN lineage l
  WHERE r.node_id = ?3 AND r.seq <= ?2 AND l.seg = r.seg AND r.seq <= l.bound GROUP BY r.chunk
) c JOIN location o ON o.id = c.location_id WHERE o.kind = 2 GROUP BY c.location_id
"""
)
SELECT_USAGE = (
    LINEAGE
    + """
SELECT k.value, max(u.seq), u.refs FROM json_each(?3) k CROSS JOIN usage u CROSS JOIN lineage l
WHERE u.location_id = k.value AND u.seq <= ?2 AND l.seg = u.seg AND u.seq <= l.bound GROUP BY k.value
"""
)
SELECT_STATES = "SELECT seg, seq, refs FROM usage WHERE location_id = ?1 AND seq <= ?2 ORDER BY seq DESC"
INSERT_USAGE = "INSERT OR REPLACE INTO usage (location_id, seq, seg, refs, crc32c) VALUES (?, ?, ?, ?, ?)"
SELECT_OF_SNAPSHOT = "SELECT location_id, refs FROM usage WHERE seq = ?"  # reads all of it; only an amend asks
# The rows of some files in the lineage of (?1, ?2), oldest first, with what is known of the snapshot of each.
SELECT_HISTORY = (
    LINEAGE
    + """
SELECT u.location_id, u.seq, u.refs, s.id, s.message, o.done_at, CASE WHEN s.id IS NULL THEN o.detail END
FROM json_each(?3) k CROSS JOIN usage u CROSS JOIN lineage l
JOIN operation o ON o.id = u.seq LEFT JOIN snapshot s ON s.seq = u.seq
WHERE u.location_id = k.value AND u.seq <= ?2 AND l.seg = u.seg AND u.seq <= l.bound ORDER BY u.seq, u.location_id
"""
)
FEW = 16  # files that are looked up one by one
HISTORY_ROW = types(int, int, int, OPTIONAL_TEXT, OPTIONAL_TEXT, int, OPTIONAL_TEXT)
SELECT_USAGE_POINTS = "SELECT DISTINCT seq, seg FROM usage"
DELETE_USAGE = "DELETE FROM usage WHERE seq IN (SELECT value FROM json_each(?))"


class UsageRow(NamedTuple):
    """A row of the history of a file, with what is known of its snapshot.

    Id and message are None where that was released; only then there is ``detail``, from the log.
    """

    location_id: int
    seq: int
    refs: int
    snapshot_id: str | None
    message: str | None
    done_at: int
    detail: str | None


def count_replaced_refs(txn: Transaction, view: View, node_id: int) -> dict[int, int]:
    """References of ``view`` to each file that the staged chunks of an array take the place of, by location id."""
    return dict(txn.rows(COUNT_REPLACED, (view.seg, view.seq, node_id)))


def count_array_refs(txn: Transaction, view: View, node_id: int) -> dict[int, int]:
    """References of ``view`` to each file of a whole array, by location id."""
    return dict(txn.rows(COUNT_ALL, (view.seg, view.seq, node_id)))


def record_usage(txn: Transaction, view: View, added: Mapping[int, int], removed: Mapping[int, int]) -> None:
    """Note how many references the new snapshot ``view`` has to each file to which it added or removed some."""
    touched = sorted(added.keys() | removed.keys())
    if not touched:
        return
    before = _find_refs(txn, view, touched)
    rows = [(i, view.seq, view.seg, before.get(i, 0) + added.get(i, 0) - removed.get(i, 0)) for i in touched]
    txn.run_many(INSERT_USAGE, ((*row, row_crc(*row)) for row in rows))


def _find_refs(txn: Transaction, view: View, location_ids: list[int]) -> dict[int, int]:
    """References of ``view`` to files, by location id; those that it has no row about are left out."""
    if len(location_ids) > FEW:
        rows = txn.rows(SELECT_USAGE, (view.seg, view.seq, json.dumps(location_ids)))
        return {location_id: refs for location_id, _, refs in rows}
    found: dict[int, int] = {}
    for location_id in location_ids:  # a plain statement is prepared in a fifth of the time
        for seg, seq, refs in txn.rows(SELECT_STATES, (location_id, view.seq)):
            if seq <= view.bounds.get(seg, -1):
                found[location_id] = refs
                break
    return found


def copy_usage(txn: Transaction, seq: int, view: View) -> None:
    """Give the new snapshot ``view`` the rows that the snapshot ``seq`` has of its own: what an amend begins with."""
    found = txn.rows(SELECT_OF_SNAPSHOT, (seq,))
    rows = [(location_id, view.seq, view.seg, refs) for location_id, refs in found]
    txn.run_many(INSERT_USAGE, ((*row, row_crc(*row)) for row in rows))


def list_usage(txn: Transaction, view: View, location_ids: Iterable[int]) -> list[UsageRow]:
    """What ``view`` has behind it of some files, oldest first."""
    rows = txn.rows(SELECT_HISTORY, (view.seg, view.seq, json.dumps(list(location_ids))))
    for row in rows:
        check_types(row, HISTORY_ROW, "a row of usage")
    return list(map(UsageRow._make, rows))


def list_usage_points(txn: Transaction) -> list[tuple[int, int]]:
    """Number and segment of every snapshot that wrote a row."""
    return [(seq, seg) for seq, seg in txn.rows(SELECT_USAGE_POINTS)]


def remove_usage(txn: Transaction, seqs: Iterable[int]) -> None:
    """Remove what snapshots with these numbers wrote."""
    txn.run(DELETE_USAGE, (json.dumps(list(seqs)),))
