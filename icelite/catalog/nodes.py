"""The `node` table: groups and arrays, as each snapshot sees them.

Names are not paths of a file system, but exports make such of them: every path is checked when it is read.

The metadata of a Zarr v3 node is the text of its ``zarr.json``; that of a v2 node a JSON object of the texts
of ``.zarray``, ``.zgroup`` and ``.zattrs``. Both are kept to the letter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from icelite.catalog.checksums import row_crc
from icelite.catalog.database import Catalog, Row, Transaction
from icelite.catalog.snapshots import LINEAGE
from icelite.catalog.values import (
    OPTIONAL_TEXT,
    check_node_path,
    check_number,
    check_text,
    check_types,
    damaged,
    read_json_object,
    types,
)
from icelite.errors import shown
from icelite.keys import DOCUMENTS, check_path
from icelite.types import Node, View

V2_DOCUMENTS = {name for name, zarr_format in DOCUMENTS.items() if zarr_format == 2}

# Those of a catalog that grows every night have thousands of versions, each with its metadata: only one is read.
SELECT_NODE = """
SELECT seg, seq, node_id, zarr_format, metadata FROM node WHERE path = ?1 AND seq <= ?2 ORDER BY seq DESC LIMIT 1
"""
SELECT_NODE_POINTS = "SELECT seg, seq FROM node WHERE path = ?1 AND seq < ?2 ORDER BY seq DESC"
SELECT_NODE_BY_ID = """
SELECT seg, seq, path, zarr_format, metadata FROM node WHERE node_id = ?1 AND seq <= ?2 ORDER BY seq DESC
"""
# Of each path from ?3 to below ?4 the version that the snapshot sees; paths are found one by one in the index.
SELECT_NODES = (
    LINEAGE.rstrip()
    + """, paths (path) AS (
  SELECT min(path) FROM node WHERE path >= ?3 AND path < ?4
  UNION ALL
  SELECT (SELECT min(n.path) FROM node n WHERE n.path > p.path AND n.path < ?4) FROM paths p WHERE p.path IS NOT NULL
)
SELECT n.path, n.node_id, n.zarr_format, n.metadata FROM paths p CROSS JOIN node n
WHERE n.path = p.path AND n.metadata IS NOT NULL AND n.seq = (
  SELECT v.seq FROM node v CROSS JOIN lineage l
  WHERE v.path = p.path AND v.seq <= ?2 AND l.seg = v.seg AND v.seq <= l.bound ORDER BY v.seq DESC LIMIT 1
)
"""
)
END = b""  # SQLite sorts it behind every text
SELECT_MAX_ID = "SELECT coalesce(max(node_id), 0) FROM node"
VERSION = types(int, int, int, int, OPTIONAL_TEXT)  # of SELECT_NODE
POINT = types(int, int)
VERSION_BY_ID = types(int, int, str, int, OPTIONAL_TEXT)
LISTED = types(str, int, int, str)
INSERT_NODE = """
INSERT OR REPLACE INTO node (path, seq, seg, node_id, zarr_format, metadata, crc32c) VALUES (?, ?, ?, ?, ?, ?, ?)
"""


def find_node(catalog: Catalog | Transaction, view: View, path: str) -> Node | None:
    """The group or array at ``path``, or None."""
    bounds = view.bounds
    version = _find_version(catalog, path, view.seq)
    if version is not None and version[1] > bounds.get(version[0], -1):  # that of another branch
        points = _list_points(catalog, path, version[1])
        seen = next((seq for seg, seq in points if seq <= bounds.get(seg, -1)), None)
        version = None if seen is None else _find_version(catalog, path, seen)
    if version is None or version[4] is None:
        return None
    return _node(path, *version[2:])


def _find_version(catalog: Catalog | Transaction, path: str, seq: int) -> Row | None:
    row = catalog.row(SELECT_NODE, (path, seq))
    if row is not None:
        check_types(row, VERSION, f"node {shown(path)}")
    return row


def _list_points(catalog: Catalog | Transaction, path: str, seq: int) -> list[Row]:
    """Segment and number of the versions of a node before one, newest first."""
    if isinstance(catalog, Catalog):
        with catalog.read() as txn:
            return _list_points(txn, path, seq)
    points = catalog.rows(SELECT_NODE_POINTS, (path, seq))
    for point in points:
        check_types(point, POINT, f"node {shown(path)}")
    return points


def find_last_state(txn: Transaction, view: View, node_id: int) -> Node | None:
    """A node as ``view`` last saw it alive, wherever it was; None when it never did."""
    for row in txn.rows(SELECT_NODE_BY_ID, (node_id, view.seq)):
        check_types(row, VERSION_BY_ID, f"node {node_id}")
        seg, seq, path, zarr_format, metadata = row
        if metadata is not None and seq <= view.bounds.get(seg, -1):
            return _node(path, node_id, zarr_format, metadata)
    return None


def find_node_by_id(txn: Transaction, view: View, node_id: int) -> Node | None:
    """A node as ``view`` sees it, wherever it is; None where it is not there yet or any more."""
    node = find_last_state(txn, view, node_id)
    if node is None:
        return None
    found = find_node(txn, view, node.path)  # deleted there, another may have its place
    return found if found is not None and found.node_id == node_id else None


def list_nodes(catalog: Catalog, view: View, path: str) -> list[Node]:
    """The nodes at and below ``path`` (everything for ``""``), in order of creation."""
    with catalog.read() as txn:
        # '0' is the character after '/': the range holds exactly the paths that begin with this one and a slash
        names = (path + "/", path + "0") if path else ("", END)
        rows = txn.rows(SELECT_NODES, (view.seg, view.seq, *names))
        itself = find_node(txn, view, path) if path else None
    for row in rows:
        check_types(row, LISTED, "a node")
    nodes = [_node(*row) for row in rows]
    if itself is not None:
        nodes.append(itself)
    return sorted(nodes, key=lambda node: node.node_id)


def _node(path: str, node_id: int, zarr_format: int, metadata: str) -> Node:
    check_node_path(path)
    if zarr_format == 3:
        return Node(path, node_id, 3, {"zarr.json": check_text(metadata, f"node {path!r}")})
    if zarr_format != 2:
        raise damaged(f"node {path!r}", f"it is of Zarr v{zarr_format}")
    documents = read_json_object(metadata, f"node {path!r}")
    if not documents.keys() <= V2_DOCUMENTS or not all(isinstance(text, str) for text in documents.values()):
        raise damaged(f"node {path!r}", "its documents are not all texts of .zarray, .zgroup and .zattrs")
    return Node(path, node_id, 2, documents)


def next_node_id(txn: Transaction) -> int:
    """A node id greater than every one in the catalog."""
    row = txn.row(SELECT_MAX_ID)
    return 1 if row is None else check_number(row[0], "a node") + 1


def insert_node(
    txn: Transaction, view: View, path: str, node_id: int, zarr_format: int, documents: Mapping[str, str] | None
) -> None:
    """Add a node's state as of a new snapshot; None for its deletion.

    Raises
    ------
    InvalidInputError
        ``invalid-path``.
    """
    if documents is None:
        metadata = None
    else:
        check_path(path)
        metadata = documents["zarr.json"] if zarr_format == 3 else json.dumps(dict(documents))
    row = path, view.seq, view.seg, node_id, zarr_format, metadata
    txn.run(INSERT_NODE, (*row, row_crc(*row)))
