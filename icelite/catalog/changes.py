"""The `change` table: what each snapshot did to each node it touched."""

from __future__ import annotations

import zlib
from typing import NamedTuple

from icelite.catalog.database import Transaction
from icelite.catalog.json_column import damaged
from icelite.catalog.positions import split_positions
from icelite.catalog.snapshots import LINEAGE
from icelite.types import NodeChange, View

INSERT_CHANGE = "INSERT INTO change (seq, node_id, seg, node_change, chunks) VALUES (?, ?, ?, ?, ?)"
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

COPY_NODES = """
INSERT INTO node (path, seq, seg, node_id, zarr_format, metadata)
SELECT path, ?3, ?4, node_id, zarr_format, metadata FROM node WHERE node_id = ?1 AND seq = ?2
"""
COPY_CHUNK = """
INSERT INTO chunk_ref (node_id, chunk, seq, seg, location_id, offset, length)
SELECT node_id, chunk, ?4, ?5, location_id, offset, length FROM chunk_ref
WHERE node_id = ?1 AND chunk = ?2 AND seq = ?3
"""
COPY_CHANGE = """
INSERT INTO change (seq, node_id, seg, node_change, chunks)
SELECT ?3, node_id, ?4, node_change, chunks FROM change WHERE seq = ?2 AND node_id = ?1
"""
SELECT_CHANGE = "SELECT node_change, chunks FROM change WHERE seq = ? AND node_id = ?"
DELETE_CHANGE = "DELETE FROM change WHERE seq = ? AND node_id = ?"
DELETE_CHUNKS = "DELETE FROM chunk_ref WHERE node_id = ? AND seq = ?"

MAX_BYTES = 1 << 30  # of a change's positions, unpacked: a hundred million of them


class Change(NamedTuple):
    """What one snapshot did to one node; ``chunks`` are grid positions in key order."""

    node_id: int
    node_change: NodeChange
    chunks: list[str]


def insert_change(txn: Transaction, view: View, node_id: int, node_change: NodeChange, chunks: bytes | None) -> None:
    """Note what a snapshot did to a node; ``chunks`` packed, None when it changed none.

    An amend begins with the changes of the snapshot it replaces (`copy_snapshot`): those are joined with the new ones.
    """
    earlier = txn.row(SELECT_CHANGE, (view.seq, node_id))
    if earlier is not None:
        txn.run(DELETE_CHANGE, (view.seq, node_id))
        if earlier[0] == NodeChange.created and node_change == NodeChange.deleted:
            # The copies go; the amended snapshot still sees its own. What the node replaced stays deleted.
            txn.run(DELETE_CHUNKS, (node_id, view.seq))
            txn.run(INSERT_CHANGE, (view.seq, node_id, view.seg, int(node_change), None))
            return
        if earlier[0] == NodeChange.created or node_change == NodeChange.none:
            node_change = NodeChange(earlier[0])
        elif earlier[0] == NodeChange.moved and node_change == NodeChange.updated:
            node_change = NodeChange.moved
        chunks = _join(earlier[1], chunks)
    txn.run(INSERT_CHANGE, (view.seq, node_id, view.seg, int(node_change), chunks))


def _join(one: bytes | None, other: bytes | None) -> bytes | None:
    if one is None or other is None:
        return one or other
    return zlib.compress("\n".join(sorted({*unpack_chunks(one), *unpack_chunks(other)})).encode(), level=1)


def list_changes(txn: Transaction, seq: int) -> list[Change]:
    """Everything a snapshot did."""
    return [
        Change(node_id, NodeChange(node_change), [] if packed is None else unpack_chunks(packed))
        for node_id, node_change, packed in txn.rows(SELECT_CHANGES, (seq,))
    ]


def list_changes_since(txn: Transaction, view: View, seq: int) -> list[tuple[int, Change]]:
    """What the snapshots that ``view`` sees did after the one numbered ``seq``, oldest first, each with its number."""
    return [
        (written_by, Change(node_id, NodeChange(node_change), [] if packed is None else unpack_chunks(packed)))
        for written_by, node_id, node_change, packed in txn.rows(SELECT_CHANGES_SINCE, (view.seg, view.seq, seq))
    ]


def list_seqs_since(txn: Transaction, view: View, seq: int) -> set[int]:
    """Numbers of the snapshots, released ones too, whose changes after ``seq`` are in what ``view`` sees."""
    return {number for (number,) in txn.rows(SELECT_SEQS_SINCE, (view.seg, view.seq, seq))}


def copy_snapshot(txn: Transaction, seq: int, view: View) -> None:
    """Give the new snapshot ``view`` the rows that the snapshot ``seq`` has of its own: what an amend begins with."""
    for change in list_changes(txn, seq):
        txn.run(COPY_NODES, (change.node_id, seq, view.seq, view.seg))
        txn.run_many(COPY_CHUNK, ((change.node_id, chunk, seq, view.seq, view.seg) for chunk in change.chunks))
        txn.run(COPY_CHANGE, (change.node_id, seq, view.seq, view.seg))


def unpack_chunks(packed: bytes) -> list[str]:
    """The grid positions in a value of ``change.chunks``.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(packed, MAX_BYTES).decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise damaged("a change", str(error)) from error
    if not inflater.eof:
        raise damaged("a change", f"its positions end early, or are more than {MAX_BYTES} bytes")
    return split_positions(text, "a change")
