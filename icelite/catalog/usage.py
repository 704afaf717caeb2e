"""The `usage` table: how many references lead to each file, and so when it was added, changed and dropped.

A row holds the number of references as of the snapshot that wrote it. The newest row that a snapshot sees counts, as in
`node`; so what a snapshot did to a file is its row compared with the one before. Only virtual files have rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from icelite.catalog.checksums import row_crc
from icelite.catalog.database import Transaction
from icelite.catalog.snapshots import LINEAGE
from icelite.catalog.values import OPTIONAL_TEXT, check_types, types
from icelite.types import View

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
SELECT_POINTS = "SELECT DISTINCT seq, seg FROM usage"
DELETE_POINTS = "DELETE FROM usage WHERE seq IN (SELECT value FROM json_each(?))"


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


def count_replaced(txn: Transaction, view: View, node_id: int) -> dict[int, int]:
    """References of ``view`` to each file that the staged chunks of an array take the place of, by location id."""
    return dict(txn.rows(COUNT_REPLACED, (view.seg, view.seq, node_id)))


def count_all(txn: Transaction, view: View, node_id: int) -> dict[int, int]:
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


def list_history(txn: Transaction, view: View, location_ids: Iterable[int]) -> list[UsageRow]:
    """What ``view`` has behind it of some files, oldest first."""
    rows = txn.rows(SELECT_HISTORY, (view.seg, view.seq, json.dumps(list(location_ids))))
    for row in rows:
        check_types(row, HISTORY_ROW, "a row of usage")
    return list(map(UsageRow._make, rows))


def list_points(txn: Transaction) -> list[tuple[int, int]]:
    """Number and segment of every snapshot that wrote a row."""
    return [(seq, seg) for seq, seg in txn.rows(SELECT_POINTS)]


def remove_points(txn: Transaction, seqs: Iterable[int]) -> None:
    """Remove what snapshots with these numbers wrote."""
    txn.run(DELETE_POINTS, (json.dumps(list(seqs)),))
