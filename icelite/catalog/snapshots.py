"""The `snapshot` and `segment` tables: the history, and what each snapshot sees of it.

A snapshot whose parent is the newest of its segment continues the segment; any other opens one. So a lineage
has one entry for each fork behind a snapshot, however long the history (docs/format.md).
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from icelite.budget import MAX_SEGMENTS_OF_HISTORY, over_budget
from icelite.catalog.checksums import row_crc
from icelite.catalog.database import Row, Transaction
from icelite.catalog.operations import operation_crc, to_datetime, to_microseconds
from icelite.catalog.values import (
    OPTIONAL_INT,
    OPTIONAL_TEXT,
    check_number,
    check_types,
    damaged,
    read_json_object,
    types,
)
from icelite.errors import ErrorKind, FormatError, SnapshotNotFoundError, shown
from icelite.types import CROCKFORD, INITIAL_SNAPSHOT_ID, SnapshotInfo, View, is_snapshot_id, parse_snapshot_id

FIRST_BLOCK = 16  # snapshots read at once, to begin with

# Prefixed to the queries of `node` and `chunk_ref` that see a snapshot: ?1 is its seg, ?2 its seq. Segments only lead
# back, so it ends whatever the table holds; `view_snapshot` refuses one that ends for that reason.
LINEAGE = """
WITH RECURSIVE lineage (seg, bound) AS (
  SELECT ?1, ?2
  UNION ALL
  SELECT s.parent_seg, s.fork_seq FROM lineage l JOIN segment s ON s.seg = l.seg
  WHERE s.parent_seg < l.seg AND s.fork_seq < l.seg
)
"""
# What the snapshot ?1 sees, newest segment first: segment and bound, and whether no other is behind it.
SELECT_LINEAGE = """
WITH RECURSIVE lineage (seg, bound, parent_seg, fork_seq, known) AS (
  SELECT n.seg, n.seq, s.parent_seg, s.fork_seq, s.seg IS NOT NULL
  FROM snapshot n LEFT JOIN segment s ON s.seg = n.seg WHERE n.seq = ?1
  UNION ALL
  SELECT l.parent_seg, l.fork_seq, s.parent_seg, s.fork_seq, s.seg IS NOT NULL
  FROM lineage l LEFT JOIN segment s ON s.seg = l.parent_seg
  WHERE l.parent_seg < l.seg AND l.fork_seq < l.seg
)
SELECT seg, bound, known AND parent_seg IS NULL AND fork_seq IS NULL FROM lineage LIMIT 100001
"""
LINEAGE_ROW = types(int, int, int)
FORK = types(int, int)
INSERT_SEGMENT = "INSERT INTO segment (seg, parent_seg, fork_seq) VALUES (?, ?, ?)"
INSERT_SNAPSHOT = """
INSERT INTO snapshot (seq, seg, id, parent_seq, written_at, message, metadata) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
SEAL_ALL = "INSERT INTO seal (id, operation, snapshot, segment) VALUES (?, ?, ?, ?)"
SEAL_SNAPSHOT = "INSERT INTO seal (id, snapshot) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET snapshot = ?2"
SELECT_FIRST = "SELECT seq, seg FROM snapshot WHERE id = ?"
REPLACE_FIRST_SNAPSHOT = """
UPDATE snapshot SET id = ?2, written_at = ?3, message = ?4, metadata = ?5 WHERE seq = ?1
"""
SELECT_ID = "SELECT id FROM snapshot WHERE seq = ?"
SELECT_BEGUN = "SELECT seq, id FROM snapshot WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT 3"
SELECT_SEQ = "SELECT seq FROM snapshot WHERE id = ?"
# Whether anything is behind a point in its segment: a snapshot, or rows of one that was released.
SELECT_CONTINUATION = """
SELECT 1 WHERE EXISTS (SELECT 1 FROM snapshot WHERE seq > ?1 AND seg = ?2)
  OR EXISTS (SELECT 1 FROM change WHERE seq > ?1 AND seg = ?2)
"""
# The newest point before one in its segment: a snapshot, or rows of one that was released.
SELECT_POINT_BEFORE = """
SELECT max(seq) FROM (
  SELECT seq FROM (SELECT seq FROM snapshot WHERE seq < ?2 AND seg = ?1 ORDER BY seq DESC LIMIT 1)
  UNION ALL SELECT seq FROM (SELECT seq FROM change WHERE seq < ?2 AND seg = ?1 ORDER BY seq DESC LIMIT 1)
)
"""
SELECT_FORK = "SELECT parent_seg, fork_seq FROM segment WHERE seg = ?"
SELECT_INFO = """
SELECT s.id, p.id, s.written_at, s.message, s.metadata, s.parent_seq
FROM snapshot s LEFT JOIN snapshot p ON p.seq = s.parent_seq WHERE s.seq = ?
"""
SELECT_INFOS = """
SELECT s.id, p.id, s.written_at, s.message, s.metadata, s.parent_seq
FROM snapshot s LEFT JOIN snapshot p ON p.seq = s.parent_seq ORDER BY s.seq DESC
"""
SELECT_SOME_BEFORE = """
SELECT seq, id, parent_seq, written_at, message, metadata FROM snapshot WHERE seq <= ? ORDER BY seq DESC LIMIT ?
"""
SELECT_ANCESTORS = "SELECT seq, parent_seq, written_at FROM snapshot"
SELECT_PARENT_AND_TIME = "SELECT parent_seq, written_at FROM snapshot WHERE seq = ?"

INFO = types(str, OPTIONAL_TEXT, int, str, str, OPTIONAL_INT)  # of SELECT_INFO
BEGUN = types(int, str)
STEP = types(int, OPTIONAL_INT, int)  # of SELECT_ANCESTORS
PARENT_AND_TIME = types(OPTIONAL_INT, int)
ANCESTOR = types(int, str, OPTIONAL_INT, int, str, str)  # of SELECT_SOME_BEFORE


class Ancestor(NamedTuple):
    """A snapshot's place in history: the number of its parent, and when it was written (microseconds)."""

    parent_seq: int | None
    written_at: int


def find_seq(txn: Transaction, snapshot_id: str) -> int | None:
    """The number of the snapshot with a public id, or None."""
    row = txn.row(SELECT_SEQ, (parse_snapshot_id(snapshot_id),))
    return None if row is None else check_number(row[0], f"snapshot {snapshot_id}")


def lookup_seq(txn: Transaction, snapshot_id: str) -> int:
    """The number of the snapshot with a public id.

    Raises
    ------
    InvalidInputError, SnapshotNotFoundError
        ``invalid-snapshot-id``; ``snapshot-not-found``.
    """
    seq = find_seq(txn, snapshot_id)
    if seq is None:
        raise SnapshotNotFoundError(
            f"no snapshot {snapshot_id} in this repository; ancestry() lists those of a branch",
            ErrorKind.SNAPSHOT_NOT_FOUND,
        )
    return seq


def list_begun(txn: Transaction, beginning: str) -> list[tuple[int, str]]:
    """Number and id of at most three snapshots whose ids begin so, whatever the case of its letters."""
    first = beginning.upper()
    if not first or not set(first) <= set(CROCKFORD):
        return []
    rows = list(txn.rows(SELECT_BEGUN, (first, first + "a")))  # 'a' is behind every character of an id
    for row in rows:
        check_types(row, BEGUN, "a snapshot")
        if not is_snapshot_id(row[1]):
            raise damaged("a snapshot", f"{shown(row[1])} is no id of a snapshot")
    return [(row[0], row[1]) for row in rows]


def view_snapshot(txn: Transaction, seq: int) -> View:
    """What the snapshot numbered ``seq`` sees.

    Raises
    ------
    SnapshotNotFoundError, FormatError
        ``snapshot-not-found``; ``corrupt`` where segments do not lead back to the first one; ``over-budget``.
    """
    rows = txn.rows(SELECT_LINEAGE, (seq,))
    if not rows:
        raise _no_snapshot(seq)
    what = f"the lineage of snapshot number {seq}"
    for row in rows:
        check_types(row, LINEAGE_ROW, what)
    if len(rows) > MAX_SEGMENTS_OF_HISTORY:
        raise over_budget(what, f"{len(rows)} segments", f"{MAX_SEGMENTS_OF_HISTORY}")
    if not rows[-1][2]:
        raise damaged(what, f"segment {rows[-1][0]} does not lead back to the first one")
    return View(rows[0][0], seq, {seg: bound for seg, bound, _ in rows})


def view_before(txn: Transaction, view: View) -> View:
    """What was there before the snapshot of ``view`` was written, also where its parent was released.

    Raises
    ------
    FormatError
        ``corrupt`` when nothing can have been before it.
    """
    row = txn.row(SELECT_POINT_BEFORE, (view.seg, view.seq))
    if row is not None and row[0] is not None:
        before = check_number(row[0], f"what is before snapshot number {view.seq}")
        return View(view.seg, before, {**view.bounds, view.seg: before})
    fork = txn.row(SELECT_FORK, (view.seg,))
    if fork is None or fork[0] is None:
        raise FormatError(f"there is nothing before snapshot number {view.seq}", ErrorKind.CORRUPT)
    check_types(fork, FORK, f"segment {view.seg}")
    return View(fork[0], fork[1], {seg: bound for seg, bound in view.bounds.items() if seg != view.seg})


def insert_first_snapshot(txn: Transaction, seq: int, written_at: int) -> None:
    """The empty snapshot that every history begins with; id and message are Icechunk's."""
    snapshot = seq, seq, INITIAL_SNAPSHOT_ID, None, written_at, "Repository initialized", "{}"
    _insert(txn, snapshot, (seq, None, None))


def _insert(txn: Transaction, snapshot: tuple[Any, ...], segment: tuple[int | None, ...] | None) -> None:
    """Insert a snapshot with the segment that it opens, and the one seal of both and of its operation."""
    if segment is not None:
        txn.run(INSERT_SEGMENT, segment)
    txn.run(INSERT_SNAPSHOT, snapshot)
    segment_crc = None if segment is None else row_crc(*segment)
    txn.run(SEAL_ALL, (snapshot[0], operation_crc(txn, snapshot[0]), row_crc(*snapshot), segment_crc))


def replace_first_snapshot(txn: Transaction, info: SnapshotInfo) -> None:
    """Let a new repository begin as another one did."""
    first = txn.row(SELECT_FIRST, (INITIAL_SNAPSHOT_ID,))
    if first is None:
        raise _no_snapshot(1)
    values = to_microseconds(info.written_at), info.message, json.dumps(info.metadata)
    txn.run(REPLACE_FIRST_SNAPSHOT, (first[0], info.id, *values))
    txn.run(SEAL_SNAPSHOT, (first[0], row_crc(*first, info.id, None, *values)))


def insert_snapshot(
    txn: Transaction,
    seq: int,
    parent: View,
    snapshot_id: str,
    written_at: int,
    message: str,
    metadata: dict[str, Any],
    *,
    parent_seq: int | None = None,
) -> View:
    """Add a snapshot behind the point ``parent``, opening a segment where it forks; what it sees.

    ``parent_seq`` is the snapshot that history names as its parent, where that is not the one at the point.

    Raises
    ------
    FormatError
        ``corrupt`` when the operation log, whose ids number the snapshots, has lost its newest rows.
    """
    if seq <= parent.seq:
        raise damaged("the operation log", f"it ends before snapshot number {parent.seq}")
    if txn.row(SELECT_CONTINUATION, (parent.seq, parent.seg)) is None:
        seg, bounds, segment = parent.seg, {**parent.bounds, parent.seg: seq}, None
    else:
        seg, bounds, segment = seq, {**parent.bounds, seq: seq}, (seq, parent.seg, parent.seq)
    known_parent = parent.seq if parent_seq is None else parent_seq
    _insert(txn, (seq, seg, snapshot_id, known_parent, written_at, message, json.dumps(metadata)), segment)
    return View(seg, seq, bounds)


def lookup_info(txn: Transaction, seq: int) -> tuple[SnapshotInfo, int | None]:
    """A snapshot, and the number of its parent.

    Raises
    ------
    SnapshotNotFoundError, FormatError
        ``snapshot-not-found``; ``corrupt``.
    """
    row = txn.row(SELECT_INFO, (seq,))
    if row is None:
        raise _no_snapshot(seq)
    check_types(row, INFO, f"snapshot number {seq}")
    return _info(*row[:5]), _checked_parent(seq, row[5])


def lookup_id(txn: Transaction, seq: int) -> str:
    """The public id of the snapshot with a number. Raises as `lookup_info`."""
    found = find_id(txn, seq)
    if found is None:
        raise _no_snapshot(seq)
    if not is_snapshot_id(found):
        raise damaged(f"snapshot number {seq}", f"{shown(found)} is no id of a snapshot")
    return found


def _checked_parent(seq: int, parent: int | None) -> int | None:
    """The number of a parent, which is always less: so that no walk is endless."""
    if parent is not None and parent >= seq:
        raise damaged(f"snapshot number {seq}", f"its parent is number {parent}, which is not before it")
    return parent


def _no_snapshot(seq: int | None) -> SnapshotNotFoundError:
    return SnapshotNotFoundError(f"no snapshot numbered {seq}", ErrorKind.SNAPSHOT_NOT_FOUND)


def _info(snapshot_id: str, parent_id: str | None, written_at: int, message: str, metadata: str) -> SnapshotInfo:
    for text in (snapshot_id, parent_id):
        if text is not None and not is_snapshot_id(text):
            raise damaged(f"snapshot {shown(snapshot_id)}", f"{shown(text)} is no id of a snapshot")
    try:
        moment = to_datetime(written_at)
    except OverflowError as error:
        raise damaged(f"snapshot {snapshot_id}", f"written_at {written_at} is no date") from error
    facts = {} if metadata == "{}" else read_json_object(metadata, f"snapshot {snapshot_id}")
    return SnapshotInfo(snapshot_id, parent_id, moment, message, facts)


def list_ancestors(txn: Transaction, seq: int, limit: int) -> tuple[list[SnapshotInfo], int | None]:
    """The snapshot numbered ``seq`` and those before it, at most ``limit``; the number of the next one, if any.

    Read in blocks of neighbouring numbers: most are ancestors unless several branches grow at once. Where few are, the
    next block is smaller, so that no more than a few rows are read in vain for each that is found.

    Raises
    ------
    SnapshotNotFoundError, FormatError
        As `lookup_info`.
    """
    found: list[Row] = []
    current: int | None = seq
    size = FIRST_BLOCK
    while current is not None and len(found) <= limit:  # one more than asked for: its id is the last one's parent
        block = {row[0]: row for row in txn.rows(SELECT_SOME_BEFORE, (current, size))}
        before = len(found)
        while current in block:
            row = block[current]
            check_types(row, ANCESTOR, f"snapshot number {current}")
            found.append(row)
            current = _checked_parent(row[0], row[2])
        used = len(found) - before
        if used == 0:
            raise _no_snapshot(current)
        size = min(2 * size, limit + 1) if 2 * used > size else 2 * used
    parents = [*(row[1] for row in found[1:]), None]
    shown = zip(found[:limit], parents[:limit], strict=True)
    infos = [_info(row[1], parent, row[3], row[4], row[5]) for row, parent in shown]
    return infos, found[limit][0] if len(found) > limit else None


def list_infos(txn: Transaction) -> list[SnapshotInfo]:
    """Every snapshot there is, on a branch or not, newest first."""
    rows = txn.rows(SELECT_INFOS)
    for row in rows:
        check_types(row, INFO, "a snapshot")
    return [_info(*row[:5]) for row in rows]


def find_id(txn: Transaction, seq: int) -> str | None:
    """The public id of the snapshot with a number; None once it was released."""
    row = txn.row(SELECT_ID, (seq,))
    return None if row is None else str(row[0])


def find_parent(txn: Transaction, seq: int) -> int | None:
    """The number of a snapshot's parent; None for the first one, or when there is no such snapshot."""
    row = _find_parent_and_time(txn, seq)
    return None if row is None else row[0]


def _find_parent_and_time(txn: Transaction, seq: int) -> tuple[int | None, int] | None:
    row = txn.row(SELECT_PARENT_AND_TIME, (seq,))
    if row is None:
        return None
    check_types(row, PARENT_AND_TIME, f"snapshot number {seq}")
    return _checked_parent(seq, row[0]), row[1]


def load_history(txn: Transaction) -> dict[int, Ancestor]:
    """Every snapshot there is, by its number, oldest first.

    Raises
    ------
    FormatError
        ``corrupt`` where a parent is not there, or not older.
    """
    history: dict[int, Ancestor] = {}
    for row in sorted(txn.rows(SELECT_ANCESTORS)):
        check_types(row, STEP, "a snapshot")
        seq, parent, written_at = row
        if parent is not None and parent not in history:
            raise damaged(f"snapshot number {seq}", f"its parent is number {parent}, which is not before it")
        history[seq] = Ancestor(parent, written_at)
    return history


def find_as_of(txn: Transaction, seq: int, moment: int) -> int | None:
    """The newest ancestor-or-self of ``seq`` written at ``moment`` (microseconds) or before, or None."""
    current: int | None = seq
    while current is not None:
        row = _find_parent_and_time(txn, current)
        if row is None:
            return None
        if row[1] <= moment:
            return current
        current = row[0]
    return None
