"""What always holds in a sound catalog, rule by rule, as queries that find nothing then (docs/format.md).

A rule is named by the table and what about it. Each row it finds is a subject and what is wrong with it. Rows of
`node`, `chunk_ref` and `change` outlive their snapshot when it was released, so the rules about them go by segments.
"""

from __future__ import annotations

from collections.abc import Iterator

import google_crc32c

from icelite.catalog.changes import unpack_chunks
from icelite.catalog.database import Catalog, Row, Transaction
from icelite.errors import FormatError

_IN_ITS_SEGMENT = """
SELECT {subject}, 'is numbered ' || r.seq || ' in segment ' || r.seg || ', where that number does not belong'
FROM {table} r LEFT JOIN segment g ON g.seg = r.seg LEFT JOIN snapshot s ON s.seq = r.seq
WHERE g.seg IS NULL OR r.seq < r.seg OR s.seg <> r.seg OR r.seq NOT IN (SELECT id FROM operation)
"""

RULES = {
    "segment_parent": """
SELECT 'segment ' || seg, 'forks from segment ' || parent_seg || ', which does not exist' FROM segment
WHERE parent_seg IS NOT NULL AND parent_seg NOT IN (SELECT seg FROM segment)
""",
    "segment_order": """
SELECT 'segment ' || seg, 'forks from ' || fork_seq || ' of segment ' || parent_seg || ', which is not older'
FROM segment WHERE NOT (parent_seg <= fork_seq AND fork_seq < seg) OR (parent_seg IS NULL) <> (fork_seq IS NULL)
""",
    "operation_snapshot": """
SELECT 'snapshot ' || id, 'is numbered ' || seq || ', but there is no operation of that number' FROM snapshot
WHERE seq NOT IN (SELECT id FROM operation)
""",
    "snapshot_id": """
SELECT 'snapshot ' || id, 'its id is not 20 characters of Crockford base-32' FROM snapshot
WHERE length(id) <> 20 OR id GLOB '*[^0-9A-HJKMNP-TV-Z]*'
""",
    "snapshot_segment": """
SELECT 'snapshot ' || id, 'is in segment ' || seg || ', which does not exist or begins later' FROM snapshot
WHERE seg NOT IN (SELECT seg FROM segment) OR seg > seq
""",
    "snapshot_parent": """
SELECT 'snapshot ' || id, 'its parent ' || parent_seq || ' does not exist or is not older' FROM snapshot
WHERE parent_seq IS NOT NULL AND (parent_seq NOT IN (SELECT seq FROM snapshot) OR parent_seq >= seq)
""",
    "snapshot_first": """
SELECT 'snapshot', count(*) || ' snapshots have no parent; there is one, the first' FROM snapshot
WHERE parent_seq IS NULL HAVING count(*) <> 1 OR max(seq) > (SELECT min(seq) FROM snapshot)
""",
    "branch_main": """
SELECT 'branch main', 'does not exist' WHERE NOT EXISTS (SELECT 1 FROM branch WHERE name = 'main')
""",
    "branch_snapshot": """
SELECT 'branch ' || name, 'names snapshot ' || seq || ', which does not exist' FROM branch
WHERE seq NOT IN (SELECT seq FROM snapshot)
""",
    "tag_snapshot": """
SELECT 'tag ' || name, 'names snapshot ' || seq || ', which does not exist' FROM tag
WHERE seq IS NOT NULL AND seq NOT IN (SELECT seq FROM snapshot)
""",
    "location_inline": """
SELECT 'location ' || id, 'number 1, and only that, stands for the payloads' FROM location WHERE (id = 1) <> (kind = 3)
UNION ALL SELECT 'location 1', 'does not exist' WHERE NOT EXISTS (SELECT 1 FROM location WHERE id = 1)
""",
    "location_container": """
SELECT 'location ' || id, 'is in container ' || container_id || ', which does not exist' FROM location
WHERE container_id IS NOT NULL AND container_id NOT IN (SELECT id FROM container)
""",
    "node_segment": _IN_ITS_SEGMENT.format(table="node", subject="'/' || r.path"),
    "node_id": """
SELECT '/' || n.path, 'in snapshot ' || n.seq || ' has the id of /' || o.path || ' in the same' FROM node n
JOIN node o ON o.node_id = n.node_id AND o.seq = n.seq AND o.path < n.path
WHERE n.metadata IS NOT NULL AND o.metadata IS NOT NULL
""",
    "change_segment": _IN_ITS_SEGMENT.format(table="change", subject="'node ' || r.node_id"),
    "change_node": """
SELECT '/' || n.path, 'was changed by snapshot ' || n.seq || ', which has no note of it' FROM node n
WHERE n.metadata IS NOT NULL AND NOT EXISTS (SELECT 1 FROM change c WHERE c.seq = n.seq AND c.node_id = n.node_id)
""",
    "chunk_ref_segment": _IN_ITS_SEGMENT.format(
        table="chunk_ref", subject="'chunk ' || r.chunk || ' of node ' || r.node_id"
    ),
    "chunk_ref_node": """
SELECT 'chunk ' || chunk || ' of node ' || node_id, 'the node does not exist' FROM chunk_ref
WHERE node_id NOT IN (SELECT node_id FROM node)
""",
    "chunk_ref_chunk": """
SELECT 'chunk ' || chunk || ' of node ' || node_id, 'is not the text of a grid position' FROM chunk_ref
WHERE '/' || chunk || '/' GLOB '*[^0-9/]*' OR (chunk <> '' AND '/' || chunk || '/' GLOB '*//*')
  OR '/' || chunk GLOB '*/0[0-9]*'
""",
    "chunk_ref_location": """
SELECT 'chunk ' || chunk || ' of node ' || node_id, 'is in location ' || location_id || ', which does not exist'
FROM chunk_ref WHERE location_id IS NOT NULL AND location_id NOT IN (SELECT id FROM location)
""",
    "chunk_ref_payload": """
SELECT 'chunk ' || r.chunk || ' of node ' || r.node_id,
  'has ' || r.length || ' bytes in payload ' || r.offset || ', which has ' || coalesce(length(p.data), 'none at all')
FROM chunk_ref r LEFT JOIN payload p ON p.id = r.offset
WHERE r.location_id = 1 AND (p.id IS NULL OR length(p.data) <> r.length)
""",
}

# What is read value by value, since SQL cannot judge it.
SELECT_JSON = {
    "setting_value": "SELECT 'setting ' || name, value FROM setting",
    "container_options": "SELECT 'container ' || name, options FROM container",
    "operation_detail": "SELECT 'operation ' || id, detail FROM operation",
    "snapshot_metadata": "SELECT 'snapshot ' || id, metadata FROM snapshot",
}
SELECT_PARENTS = """
SELECT s.id, s.seg, s.seq, p.id, p.seg, p.seq FROM snapshot s JOIN snapshot p ON p.seq = s.parent_seq
"""
SELECT_METADATA = """
SELECT path, seq, zarr_format, metadata FROM node
WHERE (path, seq) > (?1, ?2) AND metadata IS NOT NULL ORDER BY path, seq LIMIT ?3
"""
SELECT_CHANGED = """
SELECT seq, node_id, chunks FROM change WHERE (seq, node_id) > (?1, ?2) AND chunks IS NOT NULL
ORDER BY seq, node_id LIMIT ?3
"""
SELECT_REF_COUNTS = "SELECT seq, node_id, count(*) FROM chunk_ref GROUP BY seq, node_id"
NAMES_AT_ONCE = 500
COUNT_NAMED = (
    "SELECT count(*) FROM chunk_ref WHERE node_id = ?1 AND seq = ?2 AND chunk IN ("
    + ", ".join("?" for _ in range(NAMES_AT_ONCE))
    + ")"
)
SELECT_PAYLOADS = "SELECT id, length(data), crc32c FROM payload WHERE id > ?1 ORDER BY id LIMIT ?2"

ROWS_AT_ONCE = 100
PIECE_BYTES = 8 << 20


def find_broken(catalog: Catalog, rule: str) -> list[Row]:
    """Subject and fault of everything that breaks one of the `RULES`."""
    with catalog.read() as txn:
        return txn.rows(RULES[rule])


def list_json(catalog: Catalog, name: str) -> list[Row]:
    """Subject and value of a column of JSON objects."""
    with catalog.read() as txn:
        return txn.rows(SELECT_JSON[name])


def list_parents(txn: Transaction) -> list[Row]:
    """Id, segment and number of every snapshot, and of its parent."""
    return txn.rows(SELECT_PARENTS)


def scan_metadata(catalog: Catalog) -> Iterator[Row]:
    """Path, snapshot number, Zarr format and metadata of every state of every node."""
    place: tuple[str, int] = ("", -1)
    while rows := _some(catalog, SELECT_METADATA, (*place, ROWS_AT_ONCE)):
        yield from rows
        place = rows[-1][0], rows[-1][1]


def scan_changed_chunks(catalog: Catalog) -> Iterator[tuple[int, int, int | None]]:
    """Snapshot number, node id, and how many references there are of the chunks that a change lists.

    None where the list cannot be read.
    """
    place = (-1, -1)
    while rows := _some(catalog, SELECT_CHANGED, (*place, ROWS_AT_ONCE)):
        for seq, node_id, packed in rows:
            try:
                chunks = unpack_chunks(packed)
            except FormatError:
                yield seq, node_id, None
                continue
            found = 0
            for start in range(0, len(chunks), NAMES_AT_ONCE):
                names = chunks[start : start + NAMES_AT_ONCE]
                names += names[-1:] * (NAMES_AT_ONCE - len(names))  # IN counts a name once
                found += _some(catalog, COUNT_NAMED, (node_id, seq, *names))[0][0]
            yield seq, node_id, found
        place = rows[-1][0], rows[-1][1]


def count_refs(catalog: Catalog) -> dict[tuple[int, int], int]:
    """How many references each snapshot wrote to each node, by snapshot number and node id."""
    return {(seq, node_id): count for seq, node_id, count in _some(catalog, SELECT_REF_COUNTS, ())}


def scan_damaged_payloads(catalog: Catalog) -> Iterator[int]:
    """Ids of the payloads whose bytes are not those that were written; read in pieces."""
    start = -1
    while rows := _some(catalog, SELECT_PAYLOADS, (start, ROWS_AT_ONCE)):
        for payload_id, length, expected in rows:
            crc = 0
            for offset in range(0, length, PIECE_BYTES):
                with catalog.read() as txn:
                    piece = txn.read_blob("payload", "data", payload_id, offset, min(PIECE_BYTES, length - offset))
                crc = google_crc32c.extend(crc, piece)
            if crc != expected:
                yield payload_id
        start = rows[-1][0]


def _some(catalog: Catalog, sql: str, bindings: tuple[object, ...]) -> list[Row]:
    with catalog.read() as txn:
        return txn.rows(sql, bindings)
