"""What always holds in a sound catalog, rule by rule, as queries that find nothing then (docs/format.md).

A rule is named by the table and what about it. Each row it finds is a subject and what is wrong with it. Rows of
`node`, `chunk_ref` and `change` outlive their snapshot when it was released, so the rules about them go by segments.

A reader keeps writers from committing as long as it holds its lock. So all of a catalog is read in many short
transactions, with rests between them while somebody else is writing (`Pace`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import NoneType

import google_crc32c

from icelite.catalog.changes import unpack_chunks
from icelite.catalog.checksums import row_crc
from icelite.catalog.database import Catalog, Row, Transaction
from icelite.catalog.values import OPTIONAL_INT, check_order, check_types, types
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
    "usage_segment": _IN_ITS_SEGMENT.format(table="usage", subject="'file ' || r.location_id"),
    "usage_location": """
SELECT 'file ' || u.location_id, 'has a history in snapshot ' || u.seq || ', but is no virtual file' FROM usage u
LEFT JOIN location l ON l.id = u.location_id WHERE l.id IS NULL OR l.kind <> 2
""",
}

# Those about references, of which there may be very many: for the chunks from ?2 up to ?3 of the array ?1.
_BLOCK = " r.node_id = ?1 AND r.chunk >= ?2 AND r.chunk <= ?3 "
BLOCK_RULES = {
    "chunk_ref_segment": _IN_ITS_SEGMENT.format(
        table="chunk_ref", subject="'chunk ' || r.chunk || ' of node ' || r.node_id"
    ).replace("WHERE", "WHERE" + _BLOCK + "AND (")
    + ")",
    "chunk_ref_node": f"""
SELECT 'chunk ' || r.chunk || ' of node ' || r.node_id, 'the node does not exist' FROM chunk_ref r
WHERE {_BLOCK} AND NOT EXISTS (SELECT 1 FROM node WHERE node_id = ?1)
""",
    "chunk_ref_chunk": f"""
SELECT 'chunk ' || r.chunk || ' of node ' || r.node_id, 'is not the text of a grid position' FROM chunk_ref r
WHERE {_BLOCK} AND ('/' || r.chunk || '/' GLOB '*[^0-9/]*'
  OR (r.chunk <> '' AND '/' || r.chunk || '/' GLOB '*//*') OR '/' || r.chunk GLOB '*/0[0-9]*')
""",
    "chunk_ref_location": f"""
SELECT 'chunk ' || r.chunk || ' of node ' || r.node_id, 'is in location ' || r.location_id || ', which does not exist'
FROM chunk_ref r
WHERE {_BLOCK} AND r.location_id IS NOT NULL AND r.location_id NOT IN (SELECT id FROM location)
""",
    "chunk_ref_payload": f"""
SELECT 'chunk ' || r.chunk || ' of node ' || r.node_id,
  'has ' || r.length || ' bytes in payload ' || r.offset || ', which has ' || coalesce(length(p.data), 'none at all')
FROM chunk_ref r LEFT JOIN payload p ON p.id = r.offset
WHERE {_BLOCK} AND r.location_id = 1 AND (p.id IS NULL OR length(p.data) <> r.length)
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
# Every row of the tables whose rows have a checksum, a few at a time: the columns it covers, then the checksum.
ROWS = {
    "setting": "SELECT name, value, crc32c FROM setting WHERE name > ?1 ORDER BY name LIMIT ?2",
    "segment": """
SELECT s.seg, s.parent_seg, s.fork_seq, k.segment FROM segment s LEFT JOIN seal k ON k.id = s.seg
WHERE s.seg > ?1 ORDER BY s.seg LIMIT ?2
""",
    "operation": """
SELECT o.id, o.done_at, o.kind, o.detail, k.operation FROM operation o LEFT JOIN seal k ON k.id = o.id
WHERE o.id > ?1 ORDER BY o.id LIMIT ?2
""",
    "snapshot": """
SELECT s.seq, s.seg, s.id, s.parent_seq, s.written_at, s.message, s.metadata, k.snapshot
FROM snapshot s LEFT JOIN seal k ON k.id = s.seq WHERE s.seq > ?1 ORDER BY s.seq LIMIT ?2
""",
    "branch": "SELECT name, seq, crc32c FROM branch WHERE name > ?1 ORDER BY name LIMIT ?2",
    "tag": "SELECT name, seq, crc32c FROM tag WHERE name > ?1 ORDER BY name LIMIT ?2",
    "container": "SELECT id, name, url_prefix, options, crc32c FROM container WHERE id > ?1 ORDER BY id LIMIT ?2",
    "location": """
SELECT id, kind, container_id, path, size, etag, modified_at, crc32c FROM location WHERE id > ?1 ORDER BY id LIMIT ?2
""",
    "node": """
SELECT path, seq, seg, node_id, zarr_format, metadata, crc32c FROM node
WHERE (path, seq) > (?1, ?2) ORDER BY path, seq LIMIT ?3
""",
    "change": """
SELECT seq, node_id, seg, node_change, chunks, refs_sum, crc32c FROM change
WHERE (seq, node_id) > (?1, ?2) ORDER BY seq, node_id LIMIT ?3
""",
    "usage": """
SELECT location_id, seq, seg, refs, crc32c FROM usage
WHERE (location_id, seq) > (?1, ?2) ORDER BY location_id, seq LIMIT ?3
""",
}
FIRST_KEYS = {
    **dict.fromkeys(ROWS, (-1,)),
    **dict.fromkeys(("setting", "branch", "tag"), ("",)),
    "node": ("", -1),
    "change": (-1, -1),
    "usage": (-1, -1),
}
SELECT_UPKEEP = "SELECT coalesce(max(id), 0) FROM operation WHERE kind IN ('GCRan', 'ObjectsRepacked')"
SELECT_HORIZON = "SELECT coalesce(max(id), 0) FROM operation"
SELECT_NAMES = """
SELECT 'branch', b.name, s.id FROM branch b LEFT JOIN snapshot s ON s.seq = b.seq
UNION ALL SELECT 'tag', t.name, s.id FROM tag t LEFT JOIN snapshot s ON s.seq = t.seq WHERE t.seq IS NOT NULL
"""
SELECT_SNAPSHOT_IDS = "SELECT id FROM snapshot ORDER BY seq"
SELECT_BLOCK_END = """
SELECT max(chunk) FROM (SELECT chunk FROM chunk_ref WHERE node_id = ?1 AND chunk >= ?2 ORDER BY chunk LIMIT ?3)
"""
NAMES_AT_ONCE = 500
COUNT_NAMED = (
    "SELECT count(*) FROM chunk_ref WHERE node_id = ?1 AND seq = ?2 AND chunk IN ("
    + ", ".join("?" for _ in range(NAMES_AT_ONCE))
    + ")"
)
SELECT_PAYLOADS = "SELECT id, length(data), crc32c FROM payload WHERE id > ?1 ORDER BY id LIMIT ?2"
SELECT_PAYLOAD_SIZE = "SELECT length(data) FROM payload WHERE id = ?"

PAYLOAD = types(int, int, int)  # of SELECT_PAYLOADS
CHANGE = types(int, int, int, int, (bytes, NoneType), int, OPTIONAL_INT)  # of ROWS

ROWS_AT_ONCE = 500
REFS_AT_ONCE = 5_000
PIECE_BYTES = 1 << 20

REST = 5  # times as long as it was at work: writers keep five parts of six
SHORTEST_REST = 0.01  # seconds: who waited for the lock sleeps up to 2 ms before he looks again
LONGEST_REST = 10.0
QUIET_SECONDS = 0.5  # without a commit of others, nobody is thought to be writing


class Pace:
    """Read transactions on a catalog, with rests between them where others commit to it."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._depth = 0
        self._version = catalog.version
        self._busy_until = 0.0
        self._since = time.monotonic()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent view over several statements, which should be few and short; inside another one the same."""
        self._depth += 1
        try:
            with self.catalog.read() as txn:
                yield txn
        finally:
            self._depth -= 1
        if self._depth == 0:
            self.rest()

    def rest(self) -> None:
        """Let others write, if they do."""
        now = time.monotonic()
        version = self.catalog.version
        if version != self._version:
            self._version = version
            self._busy_until = now + QUIET_SECONDS
        if now < self._busy_until:
            pause = min(max(REST * (now - self._since), SHORTEST_REST), LONGEST_REST)
            time.sleep(pause)
        self._since = time.monotonic()


def find_broken(txn: Transaction, rule: str) -> list[Row]:
    """Subject and fault of everything that breaks one of the `RULES`."""
    return txn.rows(RULES[rule])


def list_json(txn: Transaction, name: str) -> list[Row]:
    """Subject and value of a column of JSON objects."""
    return txn.rows(SELECT_JSON[name])


def list_parents(txn: Transaction) -> list[Row]:
    """Id, segment and number of every snapshot, and of its parent."""
    return txn.rows(SELECT_PARENTS)


def list_names(txn: Transaction) -> list[Row]:
    """What it is, name and snapshot id of every branch and tag."""
    return txn.rows(SELECT_NAMES)


def list_snapshot_ids(txn: Transaction) -> list[str]:
    """The ids of all snapshots, oldest first."""
    return [snapshot_id for (snapshot_id,) in txn.rows(SELECT_SNAPSHOT_IDS)]


def last_upkeep(txn: Transaction) -> int:
    """The number of the last operation that changed references of snapshots that were there before."""
    return int((txn.row(SELECT_UPKEEP) or (0,))[0])


def last_operation(txn: Transaction) -> int:
    """The number of the last operation of all: every row of a later snapshot has a greater one."""
    return int((txn.row(SELECT_HORIZON) or (0,))[0])


def scan_rows(pace: Pace, table: str) -> Iterator[Row]:
    """Every row of a table that has checksums, the columns in the order in which the checksum covers them."""
    place = FIRST_KEYS[table]
    while rows := _some(pace, ROWS[table], (*place, ROWS_AT_ONCE)):
        yield from rows
        place = check_order(rows[-1][: len(place)], place, f"the table {table}")


def is_sound(row: Row) -> bool:
    """Whether a row of `scan_rows` has the checksum that it was written with, or none."""
    return row[-1] is None or row[-1] == row_crc(*row[:-1])


def find_broken_refs(txn: Transaction, node_id: int, start: str) -> tuple[list[tuple[str, Row]], str | None]:
    """What breaks a rule among some references of an array: the rule, with subject and fault.

    Returns
    -------
    tuple
        The findings in the block of chunks that begins at ``start``, and the chunk that the block ends with; None
        where there are no more.
    """
    row = txn.row(SELECT_BLOCK_END, (node_id, start, REFS_AT_ONCE))
    if row is None or row[0] is None:
        return [], None
    block = (node_id, start, row[0])
    return [(rule, found) for rule, sql in BLOCK_RULES.items() for found in txn.rows(sql, block)], str(row[0])


def count_listed(pace: Pace, seq: int, node_id: int, packed: bytes) -> int | None:
    """How many references there are of the chunks that a change lists; None where the list cannot be read."""
    try:
        chunks = unpack_chunks(packed)
    except FormatError:
        return None
    found = 0
    for start in range(0, len(chunks), NAMES_AT_ONCE):
        names = chunks[start : start + NAMES_AT_ONCE]
        names += names[-1:] * (NAMES_AT_ONCE - len(names))  # IN counts a name once
        found += _some(pace, COUNT_NAMED, (node_id, seq, *names))[0][0]
    return found


def scan_damaged_payloads(pace: Pace) -> Iterator[int]:
    """Ids of the payloads whose bytes are not those that were written; read in pieces.

    One that is collected meanwhile is no damage.
    """
    start = -1
    while rows := _some(pace, SELECT_PAYLOADS, (start, ROWS_AT_ONCE)):
        for row in rows:
            check_types(row, PAYLOAD, f"payload {row[0]}")
        places = [(row[0], row[1], row[2]) for row in rows]
        start = check_order(places[-1][0], start, "the table payload")
        while places:
            yield from _damaged(pace, places)


def _damaged(pace: Pace, places: list[tuple[int, int, int]]) -> Iterator[int]:
    """Check the first payloads of a list, about `PIECE_BYTES` of them in one transaction, and take them off it."""
    size = 0
    found: list[int] = []
    with pace.read() as txn:
        while places and (size == 0 or size + places[0][1] <= PIECE_BYTES) and places[0][1] <= PIECE_BYTES:
            payload_id, length, expected = places.pop(0)
            size += length
            data = _piece(txn, payload_id, length, 0, length)
            if data is not None and google_crc32c.value(data) != expected:
                found.append(payload_id)
    yield from found
    if places and places[0][1] > PIECE_BYTES:
        payload_id, length, expected = places.pop(0)
        crc = 0
        for offset in range(0, length, PIECE_BYTES):
            with pace.read() as txn:
                piece = _piece(txn, payload_id, length, offset, min(PIECE_BYTES, length - offset))
            if piece is None:
                return
            crc = google_crc32c.extend(crc, piece)
        if crc != expected:
            yield payload_id


def _piece(txn: Transaction, payload_id: int, length: int, start: int, size: int) -> bytes | None:
    """Bytes of a payload; None when it is not there any more."""
    row = txn.row(SELECT_PAYLOAD_SIZE, (payload_id,))
    if row is None or row[0] != length:
        return None
    return txn.read_blob("payload", "data", payload_id, start, size) if size else b""


def _some(pace: Pace, sql: str, bindings: tuple[object, ...]) -> list[Row]:
    with pace.read() as txn:
        return txn.rows(sql, bindings)
