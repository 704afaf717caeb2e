"""Taking snapshots out of the catalog, and then the rows and bytes that no snapshot sees.

Releasing a snapshot removes one row and leaves the rest of the file as it is: other snapshots see most of what it
saw. What none sees is found by `icelite.catalog.reachability`, and removed here, block by block: memory is bounded
by the number of snapshots and nodes, whatever the number of chunks.

What stays besides what is seen: the `change` rows of every point that some snapshot has behind it, expired or not,
so that differences between snapshots that stay are complete; and, in `operation`, the record of everything.
A node that no snapshot sees any more is forgotten altogether, its changes too: nothing could name it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from icelite.catalog.changes import add_to_sums, list_usage_points, next_array, remove_usage
from icelite.catalog.checksums import ref_hash, row_crc
from icelite.catalog.chunks import AFTER, FIRST
from icelite.catalog.database import Row, Transaction
from icelite.catalog.reachability import Interval, SnapshotTree, Version, merged, needed, overlaps, scan_nodes, seen
from icelite.catalog.reachability import in_preorder as ordered
from icelite.catalog.snapshots import SEAL_SNAPSHOT
from icelite.catalog.values import check_name, check_order, check_types, types
from icelite.errors import ErrorKind, FormatError
from icelite.objects import check_key

SELECT_OLD_TIPS = """
SELECT b.name, s.seq, s.id FROM branch b JOIN snapshot s ON s.seq = b.seq
WHERE b.name <> ?1 AND s.parent_seq IS NOT NULL AND s.written_at < ?2 ORDER BY b.name
"""
SELECT_OLD_TAGS = """
SELECT t.name, s.seq, s.id FROM tag t JOIN snapshot s ON s.seq = t.seq
WHERE s.parent_seq IS NOT NULL AND s.written_at < ?1 ORDER BY t.name
"""
SELECT_OLD = """
SELECT seq, id FROM snapshot
WHERE parent_seq IS NOT NULL AND written_at < ?1
  AND seq NOT IN (SELECT seq FROM branch) AND seq NOT IN (SELECT seq FROM tag WHERE seq IS NOT NULL)
"""
SELECT_UNREACHED = """
WITH RECURSIVE reached (seq) AS (
  SELECT seq FROM branch
  UNION SELECT seq FROM tag WHERE seq IS NOT NULL
  UNION SELECT s.parent_seq FROM reached r JOIN snapshot s ON s.seq = r.seq WHERE s.parent_seq IS NOT NULL
)
SELECT seq, id FROM snapshot
WHERE parent_seq IS NOT NULL AND written_at < ?1 AND seq NOT IN (SELECT seq FROM reached)
"""
DELETE_SNAPSHOT = "DELETE FROM snapshot WHERE seq = ?"
# The first snapshot adopts, as in Icechunk. A nearer one that stays may be a tag beside the line of history.
SELECT_ORPHANS = """
SELECT s.seq, s.seg, s.id, f.seq, s.written_at, s.message, s.metadata
FROM snapshot s JOIN (SELECT min(seq) AS seq FROM snapshot WHERE parent_seq IS NULL) f
WHERE s.parent_seq IS NOT NULL AND s.parent_seq NOT IN (SELECT seq FROM snapshot)
"""
SELECT_CHILDREN = """
SELECT s.seq, s.seg, s.id, p.value, s.written_at, s.message, s.metadata
FROM json_each(?) p JOIN snapshot s ON s.seq = CAST(p.key AS INTEGER)
"""
ADOPT_ORPHAN = "UPDATE snapshot SET parent_seq = ?2 WHERE seq = ?1"

SELECT_POINTS = "SELECT DISTINCT seq, seg FROM change UNION SELECT seq, seg FROM snapshot"
DELETE_NODE = "DELETE FROM node WHERE path = ? AND seq = ?"
# One row a chunk: its versions as text, number and whether it deletes the chunk in one integer each.
SELECT_VERSIONS = """
SELECT chunk, group_concat(2 * seq + (location_id IS NULL)) FROM chunk_ref
WHERE node_id = ?1 AND chunk >= ?2 GROUP BY chunk ORDER BY chunk LIMIT ?3
"""
DELETE_REF = """
DELETE FROM chunk_ref WHERE node_id = ? AND chunk = ? AND seq = ? RETURNING location_id, offset, length
"""
DELETE_REFS = "DELETE FROM chunk_ref WHERE node_id = ?"
SELECT_SUMS_OF_NODE = "SELECT seq, refs_sum FROM change WHERE node_id = ?"
SELECT_CHANGE_POINTS = "SELECT DISTINCT seq, seg FROM change"
DELETE_CHANGES = "DELETE FROM change WHERE seq = ?"
DELETE_CHANGES_OF_FORGOTTEN = "DELETE FROM change WHERE node_id NOT IN (SELECT node_id FROM node)"
DELETE_SEGMENT = "DELETE FROM segment WHERE seg = ?"

SELECT_BLOCK_END = "SELECT max(id) FROM (SELECT id FROM payload WHERE id > ?1 ORDER BY id LIMIT ?2)"
# CASE looks at written_at, which lies behind the bytes, only where nothing refers to the payload.
_UNUSED = """
FROM payload WHERE id > ?1 AND id <= ?2 AND CASE
  WHEN id IN (SELECT offset FROM chunk_ref WHERE location_id = 1 AND offset > ?1 AND offset <= ?2) THEN 0
  ELSE written_at < ?3 END
"""
SELECT_UNUSED_PAYLOADS = "SELECT count(*), coalesce(sum(length(data)), 0)" + _UNUSED
DELETE_UNUSED_PAYLOADS = "DELETE" + _UNUSED
SELECT_UNUSED_OBJECTS = """
SELECT path FROM location
WHERE kind = 1 AND id NOT IN (SELECT location_id FROM chunk_ref WHERE location_id IS NOT NULL)
"""
DELETE_UNUSED_LOCATIONS = """
DELETE FROM location
WHERE kind <> 3 AND id NOT IN (SELECT location_id FROM chunk_ref WHERE location_id IS NOT NULL)
  AND id NOT IN (SELECT location_id FROM usage)
"""

PATTERN = types(str, str)  # of SELECT_VERSIONS
POINT = types(int, int)
OLD_NAME = types(str, int, str)
ID = types(int, str)

CHUNKS_AT_ONCE = 50_000
PAYLOADS_AT_ONCE = 1_000_000
KNOWN_PATTERNS = 100_000

Alive = Mapping[int, Sequence[Interval]]  # node id to the snapshots in which the node is there


def list_old_tips(txn: Transaction, moment: int, but: str) -> list[tuple[str, int, str]]:
    """Name, number and id of the tips written before ``moment`` (microseconds), without branch ``but``."""
    return _old_names(txn.rows(SELECT_OLD_TIPS, (but, moment)))


def _old_names(rows: list[Row]) -> list[tuple[str, int, str]]:
    for row in rows:
        check_types(row, OLD_NAME, "a branch or tag")
        check_name(row[0], "a branch or tag")
    return [(name, seq, snapshot_id) for name, seq, snapshot_id in rows]


def list_old_tags(txn: Transaction, moment: int) -> list[tuple[str, int, str]]:
    """Name, number and id of the tagged snapshots written before ``moment`` (microseconds)."""
    return _old_names(txn.rows(SELECT_OLD_TAGS, (moment,)))


def list_old(txn: Transaction, moment: int) -> dict[int, str]:
    """Number and id of the snapshots written before ``moment``, without the first one and without tips and tags."""
    return _ids(txn.rows(SELECT_OLD, (moment,)))


def _ids(rows: list[Row]) -> dict[int, str]:
    for row in rows:
        check_types(row, ID, "a snapshot")
    return dict(rows)


def list_unreached(txn: Transaction, moment: int) -> dict[int, str]:
    """Number and id of the snapshots written before ``moment`` in no ancestry of a branch or tag."""
    return _ids(txn.rows(SELECT_UNREACHED, (moment,)))


def release_snapshots(txn: Transaction, seqs: Iterable[int], parents: Mapping[int, int] | None = None) -> None:
    """Remove snapshots.

    Parameters
    ----------
    parents
        Number of a snapshot to that of its new parent. The first one becomes the parent of all others that lose theirs.
    """
    txn.run_many(DELETE_SNAPSHOT, ((seq,) for seq in seqs))
    if parents:
        _adopt(txn, txn.rows(SELECT_CHILDREN, (json.dumps(parents),)))
    _adopt(txn, txn.rows(SELECT_ORPHANS))


def _adopt(txn: Transaction, orphans: Sequence[Row]) -> None:
    """Give snapshots the parents that stand in their rows."""
    txn.run_many(ADOPT_ORPHAN, [(row[0], row[3]) for row in orphans])
    txn.run_many(SEAL_SNAPSHOT, [(row[0], row_crc(*row)) for row in orphans])


def remove_nodes(txn: Transaction, tree: SnapshotTree) -> tuple[int, Alive]:
    """Remove the versions of groups and arrays that no snapshot sees; their number, and where the others are seen."""
    removed = 0
    places: dict[int, list[Interval]] = {}
    for rows in scan_nodes(txn):
        versions = ordered(Version(row.seq, row.deletes, tree.interval(row.seg, row.seq)) for row in rows)
        kept = needed(versions)
        ids = {row.seq: row.node_id for row in rows}
        for version, (found, _) in zip(versions, seen(versions), strict=True):
            if not version.deletes:
                places[ids[version.seq]] = merged([*places.get(ids[version.seq], ()), *found])
        dead = [(row.path, row.seq) for row in rows if row.seq not in kept]
        txn.run_many(DELETE_NODE, dead)
        removed += len(dead)
    return removed, {node_id: intervals for node_id, intervals in places.items() if intervals}


def _points(txn: Transaction, statement: str) -> list[Row]:
    rows = txn.rows(statement)
    for row in rows:
        check_types(row, POINT, "a snapshot or change")
    return rows


def remove_refs(txn: Transaction, tree: SnapshotTree, alive: Alive) -> int:
    """Remove the references that no snapshot sees, and those of nodes that none sees; their number."""
    points = {seq: tree.interval(seg, seq) for seq, seg in _points(txn, SELECT_POINTS)}
    removed = 0
    node_id = next_array(txn, -1)
    while node_id is not None:
        if node_id not in alive:
            removed += txn.run(DELETE_REFS, (node_id,))
            sums = txn.rows(SELECT_SUMS_OF_NODE, (node_id,))
            add_to_sums(txn, {(seq, node_id): -refs_sum for seq, refs_sum in sums})
        else:
            for dead in _dead_refs(txn, node_id, points, alive[node_id]):
                _remove(txn, dead)
                removed += len(dead)
        node_id = next_array(txn, node_id)
    return removed


def _remove(txn: Transaction, dead: Iterable[tuple[int, str, int]]) -> None:
    """Remove references, and take their hashes out of the sums."""
    gone: dict[tuple[int, int], int] = {}
    for node_id, chunk, seq in dead:
        for location_id, offset, length in txn.rows(DELETE_REF, (node_id, chunk, seq)):
            gone[seq, node_id] = gone.get((seq, node_id), 0) - ref_hash(chunk, location_id, offset, length)
    add_to_sums(txn, gone)


def _dead_refs(
    txn: Transaction, node_id: int, points: Mapping[int, Interval], alive: Sequence[Interval]
) -> Iterator[list[tuple[int, str, int]]]:
    """Keys of the references of one array that can go, in blocks; what is in one may go before the next is read."""
    known: dict[str, list[int]] = {}  # chunks that changed together have the same versions
    start = FIRST
    while rows := txn.rows(SELECT_VERSIONS, (node_id, start, CHUNKS_AT_ONCE)):
        dead = []
        for row in rows:
            check_types(row, PATTERN, f"a reference of array {node_id}")
            chunk, pattern = row
            seqs = known.get(pattern)
            if seqs is None:
                if len(known) >= KNOWN_PATTERNS:
                    known.clear()
                seqs = known[pattern] = _dead_versions(pattern, points, alive)
            dead += [(node_id, chunk, seq) for seq in seqs]
        yield dead
        start = check_order(rows[-1][0] + AFTER, start, f"array {node_id}")


def _dead_versions(pattern: str, points: Mapping[int, Interval], alive: Sequence[Interval]) -> list[int]:
    versions = [(number >> 1, bool(number & 1)) for number in map(int, pattern.split(","))]
    for seq, _ in versions:
        if seq not in points:
            raise FormatError(
                f"there are chunk references of snapshot {seq}, of which nothing else is known; see verify()",
                ErrorKind.CORRUPT,
            )
    if len(versions) == 1 and not versions[0][1]:  # as most are
        return [] if overlaps(points[versions[0][0]], alive) else [versions[0][0]]
    kept = needed((Version(seq, deletes, points[seq]) for seq, deletes in versions), alive)
    return [seq for seq, _ in versions if seq not in kept]


def remove_changes(txn: Transaction, tree: SnapshotTree) -> int:
    """Remove the changes of points that no snapshot has behind it, and of nodes that are forgotten; their number."""
    removed = 0
    for seq, seg in _points(txn, SELECT_CHANGE_POINTS):
        if not _is_behind_any(tree, seg, seq):
            removed += txn.run(DELETE_CHANGES, (seq,))
    forgotten = [seq for seq, seg in list_usage_points(txn) if not _is_behind_any(tree, seg, seq)]
    remove_usage(txn, forgotten)
    return removed + txn.run(DELETE_CHANGES_OF_FORGOTTEN)


def _is_behind_any(tree: SnapshotTree, seg: int, seq: int) -> bool:
    start, stop = tree.interval(seg, seq)
    return start < stop


def remove_segments(txn: Transaction, tree: SnapshotTree) -> int:
    """Remove the segments that no snapshot sees; their number."""
    empty = tree.empty_segments()
    txn.run_many(DELETE_SEGMENT, ((seg,) for seg in empty))
    return len(empty)


def remove_payloads(txn: Transaction, moment: int) -> tuple[int, int]:
    """Remove the bytes that nothing refers to and that were written before ``moment``; their number and sum."""
    count = total = start = 0
    while (stop := _block_end(txn, start)) is not None:
        row = txn.row(SELECT_UNUSED_PAYLOADS, (start, stop, moment))
        if row is not None and row[0]:
            txn.run(DELETE_UNUSED_PAYLOADS, (start, stop, moment))
            count, total = count + row[0], total + row[1]
        start = stop
    return count, total


def _block_end(txn: Transaction, start: int) -> int | None:
    row = txn.row(SELECT_BLOCK_END, (start, PAYLOADS_AT_ONCE))
    return None if row is None or row[0] is None else check_order(row[0], start, "the table payload")


def list_unused_objects(txn: Transaction) -> set[str]:
    """The keys of the native objects that no reference names any more."""
    return {check_key(key) for (key,) in txn.rows(SELECT_UNUSED_OBJECTS)}


def remove_locations(txn: Transaction) -> int:
    """Remove the files and objects that no reference and no history names; their number.

    Containers are configuration, and stay.
    """
    return txn.run(DELETE_UNUSED_LOCATIONS)
