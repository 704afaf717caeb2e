"""The `chunk_ref` and `payload` tables: where each chunk's bytes are, as each snapshot sees it, and the inline ones.

A chunk is named by its grid position as text, ``12/0/3`` (``""`` for an array without dimensions). Positions that the
catalog joins, one a line, are read as what may come from a stranger. Inline bytes have a CRC-32C.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from icelite.catalog.database import Catalog, Row, Transaction
from icelite.catalog.snapshots import LINEAGE
from icelite.catalog.values import OPTIONAL_INT, check_number, check_order, check_types, damaged, types
from icelite.errors import ErrorKind, FormatError, InvalidInputError, shown
from icelite.types import Chunk, ChunkType, View

# One segment in the lineage: the greatest seq that is not above ours wins, and the key finds it.
SELECT_CHUNK = """
SELECT location_id, offset, length FROM chunk_ref
WHERE node_id = ?1 AND chunk = ?2 AND seq <= ?3 AND seg = ?4 ORDER BY seq DESC LIMIT 1
"""
# The same with the bytes of an inline chunk: one statement costs half of two.
SELECT_WHOLE_CHUNK = """
SELECT r.location_id, r.offset, r.length, p.data, p.crc32c
FROM chunk_ref r LEFT JOIN payload p ON r.location_id = 1 AND p.id = r.offset
WHERE r.node_id = ?1 AND r.chunk = ?2 AND r.seq <= ?3 AND r.seg = ?4 ORDER BY r.seq DESC LIMIT 1
"""
# Several segments: the versions of one chunk, newest first; the first that the lineage sees wins.
SELECT_CHUNK_VERSIONS = """
SELECT seg, seq, location_id, offset, length FROM chunk_ref
WHERE node_id = ?1 AND chunk = ?2 AND seq <= ?3 ORDER BY seq DESC
"""
# Many chunks at once, named by a JSON list; `key` is the place in that list.
SELECT_CHUNKS = (
    LINEAGE
    + """
SELECT k.key, max(r.seq), r.location_id, r.offset, r.length
FROM json_each(?4) k CROSS JOIN chunk_ref r CROSS JOIN lineage l
WHERE r.node_id = ?3 AND r.chunk = k.value AND r.seq <= ?2 AND l.seg = r.seg AND r.seq <= l.bound GROUP BY k.key
"""
)
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
# What a snapshot has in each location. The references of all its arrays are grouped in the order of their key.
SELECT_SOURCES = (
    LINEAGE
    + """
SELECT location_id, count(*), sum(length), max(offset + length) FROM (
  SELECT max(r.seq), r.location_id, r.offset, r.length FROM chunk_ref r CROSS JOIN lineage l
  WHERE r.node_id IN (SELECT node_id FROM (
      SELECT n.node_id, n.metadata, max(n.seq) FROM node n CROSS JOIN lineage l
      WHERE l.seg = n.seg AND n.seq <= l.bound GROUP BY n.path
    ) WHERE metadata IS NOT NULL)
    AND r.seq <= ?2 AND l.seg = r.seg AND r.seq <= l.bound
  GROUP BY r.node_id, r.chunk
) WHERE location_id IS NOT NULL GROUP BY location_id
"""
)
SELECT_STORED_BYTES = LINEAGE + f"SELECT coalesce(sum(length), 0) FROM ({_VISIBLE}) WHERE location_id IS NOT NULL"

VERSION = types(int, int, OPTIONAL_INT, int, int)  # of SELECT_CHUNK_VERSIONS
KINDS = set(ChunkType)
USE = types(int, int, int, int)
SUM = types(int, int)

SCAN_ROWS = 500_000  # references in one string: about 10 bytes each, four strings
ALL_ROWS = -1
FIRST = ""
AFTER = " "  # sorts before every character of a grid position: what follows a chunk begins here


class Use(NamedTuple):
    """What a snapshot has in one location: references, the sum of their lengths, and the first byte behind them all."""

    location_id: int
    references: int
    bytes: int
    end: int


class ChunkColumns(NamedTuple):
    """References of one array in key order, as aligned columns; ``location_id`` 0 marks a deleted chunk."""

    chunks: list[str]
    location_ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


def find_chunk(catalog: Catalog, view: View, node_id: int, chunk: str, *, whole: bool = False) -> Chunk | None:
    """Where a chunk's bytes are, or None when it was never written or was deleted.

    With ``whole`` an inline chunk has its bytes already, if that costs no more.
    """
    if len(view.bounds) == 1:
        if whole:
            row = catalog.row(SELECT_WHOLE_CHUNK, (node_id, chunk, view.seq, view.seg))
            return None if row is None else _whole(catalog, _ref(row[:3], chunk), row[3:], chunk)
        row = catalog.row(SELECT_CHUNK, (node_id, chunk, view.seq, view.seg))
        return None if row is None else _ref(row, chunk)
    with catalog.read() as txn:
        for row in txn.rows(SELECT_CHUNK_VERSIONS, (node_id, chunk, view.seq)):
            if tuple(map(type, row)) not in VERSION:
                check_types(row, VERSION, f"chunk {chunk!r}")
            if row[1] <= view.bounds.get(row[0], -1):
                return _ref(row[2:], chunk)
    return None


def _ref(row: Row, chunk: str) -> Chunk | None:
    """A reference from its three columns; None where the chunk was deleted."""
    location_id, offset, length = row
    if type(location_id) is int and type(offset) is int and type(length) is int and offset >= 0 <= length:
        return Chunk(location_id, offset, length)
    if location_id is not None:
        raise damaged(f"chunk {shown(chunk)}", f"it is {shown(length)} bytes from {shown(offset)} of a location")
    return None


def _whole(catalog: Catalog, ref: Chunk | None, payload: Row, chunk: str) -> Chunk | None:
    """A reference with the bytes that were found with it, if any."""
    if ref is None or payload[0] is None:  # a payload that is missing is told when it is read
        return ref
    data = check_payload(catalog, payload, ref.offset, chunk)
    return Chunk(ref.location, ref.offset, ref.length, data)


def find_chunks(catalog: Catalog, view: View, node_id: int, chunks: Sequence[str]) -> list[Chunk | None]:
    """`find_chunk` for many chunks of one array, in one statement."""
    found: list[Chunk | None] = [None] * len(chunks)
    with catalog.read() as txn:
        names = '["' + '","'.join(chunks) + '"]'  # grid positions need no escaping
        rows = txn.rows(SELECT_CHUNKS, (view.seg, view.seq, node_id, names))
    for place, _, *row in rows:
        found[place] = _ref(tuple(row), chunks[place])
    return found


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
            block = as_columns(f"array {node_id}", *columns)
            blocks.append(kept(block, block.location_ids != 0))
            if len(block.chunks) < SCAN_ROWS:
                return blocks
            start = check_order(block.chunks[-1] + AFTER, start, f"array {node_id}")


def as_columns(what: str, chunks: object, *columns: object) -> ChunkColumns:
    """The columns that a query joined to strings: grid positions, location ids, offsets, lengths.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    block = ChunkColumns(split_positions(chunks, what), *(split_numbers(text, what) for text in columns))
    if any(len(column) != len(block.chunks) for column in block[1:]):
        raise damaged(what, "a grid position has a line break, or a value a comma")
    return block


def kept(block: ChunkColumns, keep: npt.NDArray[np.bool_]) -> ChunkColumns:
    """The rows of a block that are marked."""
    if keep.all():
        return block
    return ChunkColumns(
        list(compress(block.chunks, keep)), block.location_ids[keep], block.offsets[keep], block.lengths[keep]
    )


def list_uses(txn: Transaction, view: View) -> list[Use]:
    """What a snapshot has in each of its locations, inline ones included."""
    rows = txn.rows(SELECT_SOURCES, (view.seg, view.seq))
    for row in rows:
        check_types(row, USE, "a reference")
    return [Use(*row) for row in rows]


def stored_bytes(catalog: Catalog, view: View, node_id: int) -> int:
    """The sum of the lengths of an array's chunks."""
    row = catalog.row(SELECT_STORED_BYTES, (view.seg, view.seq, node_id, FIRST, ALL_ROWS))
    return 0 if row is None else check_number(row[0], f"array {node_id}")


def sum_stored_bytes(txn: Transaction) -> dict[ChunkType, int]:
    """The bytes of all chunks that any row refers to, by where they are."""
    rows = txn.rows(SELECT_SUMS)
    for row in rows:
        check_types(row, SUM, "a reference")
        if row[0] not in KINDS:
            raise damaged("a location", f"its kind is {row[0]}")
    return {ChunkType(kind): total for kind, total in rows}


# -- inline bytes --------------------------------------------------------------------------------------------------

MAX_BYTES = 999_000_000  # SQLite's limit on a row is 1,000,000,000 (https://sqlite.org/limits.html)

SELECT_PAYLOAD = "SELECT data, crc32c FROM payload WHERE id = ?"
SELECT_PAYLOADS = "SELECT id, data, crc32c FROM payload WHERE id IN (SELECT value FROM json_each(?))"
INSERT_PAYLOAD = "INSERT INTO payload (data, crc32c, written_at) VALUES (?, ?, ?)"


def insert_payload(txn: Transaction, data: bytes, written_at: int) -> int:
    """Store bytes; their id."""
    return txn.insert(INSERT_PAYLOAD, (data, google_crc32c.value(data), written_at))


def check_size(size: int, chunk: str) -> None:
    """Refuse what SQLite cannot hold in one row.

    Raises
    ------
    InvalidInputError
        ``chunk-too-large``.
    """
    if size > MAX_BYTES:
        raise InvalidInputError(
            f"chunk {chunk} has {size} bytes, an inline chunk at most {MAX_BYTES}; use smaller chunks",
            ErrorKind.CHUNK_TOO_LARGE,
        )


def lookup_payload(catalog: Catalog, payload_id: int, chunk: str) -> bytes:
    """The bytes of an inline chunk, checked.

    Raises
    ------
    FormatError
        ``corrupt`` when the row is missing or its bytes are not those that were written.
    """
    row = catalog.row(SELECT_PAYLOAD, (payload_id,))
    return check_payload(catalog, row, payload_id, chunk)


def lookup_payloads(catalog: Catalog, chunks: Mapping[int, str]) -> dict[int, bytes]:
    """`lookup_payload` for many chunks in one statement: the bytes by payload id.

    Parameters
    ----------
    chunks
        Which payloads, and the chunk of each, for messages.
    """
    with catalog.read() as txn:
        ids = "[" + ",".join(map(str, chunks)) + "]"
        rows = {payload_id: row for payload_id, *row in txn.rows(SELECT_PAYLOADS, (ids,))}
    return {i: check_payload(catalog, rows.get(i), i, chunk) for i, chunk in chunks.items()}


def check_payload(catalog: Catalog, row: Sequence[Any] | None, payload_id: int, chunk: str) -> bytes:
    """The bytes in a row of data and CRC.

    Raises
    ------
    FormatError
        As `lookup_payload`.
    """
    if row is None:
        raise FormatError(
            f"{catalog.storage.name}: the payload {payload_id} of chunk {chunk} is missing", ErrorKind.CORRUPT
        )
    data = row[0]
    if type(data) is not bytes or google_crc32c.value(data) != row[1]:
        raise FormatError(
            f"{catalog.storage.name}: the bytes of chunk {chunk} are damaged (payload {payload_id}: wrong CRC-32C);"
            " restore the file from a copy",
            ErrorKind.CORRUPT,
        )
    return data


def lookup_payload_range(catalog: Catalog, payload_id: int, start: int, length: int) -> bytes:
    """``length`` bytes from ``start`` of an inline chunk; a part cannot be checked against the CRC."""
    with catalog.read() as txn:
        return txn.read_blob("payload", "data", payload_id, start, length)


# -- joined columns ------------------------------------------------------------------------------------------------

_GREATEST = 2**63 - 1
_LONG = 40  # characters: only in longer positions it is worth while to look for
_HUGE = re.compile("[0-9]{20}")  # ... a number that Python would refuse to read, or take long to


def split_positions(text: object, what: str) -> list[str]:
    """The grid positions in a text; ``what`` names its row, for the error.

    Raises
    ------
    FormatError
        ``corrupt`` when one is not numbers with slashes between them.
    """
    if not isinstance(text, str) or not text.isascii():
        raise damaged(what, "a grid position is not a text of numbers")
    bare = not text.encode().translate(None, b"0123456789/\n")  # a regular expression would take 20 times as long
    if not bare or text[:1] == "/" or text[-1:] == "/" or any(fault in text for fault in ("//", "/\n", "\n/")):
        raise damaged(what, "a grid position is not numbers with slashes between them")
    names = text.split("\n")
    if max(map(len, names)) > _LONG and _HUGE.search(text):
        raise damaged(what, "a grid position has a number of 20 digits or more")
    return names


def split_numbers(text: object, what: str) -> npt.NDArray[np.int64]:
    """The numbers from 0 that a query joined with commas; ``what`` names their rows, for the error.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    if not isinstance(text, str) or not text.isascii() or text.encode().translate(None, b"0123456789,"):
        raise damaged(what, "a value is not a number from 0")
    if text[:1] in ("", ",") or text[-1] == "," or ",," in text:
        raise damaged(what, "a value is empty")
    return np.fromstring(text, dtype=np.int64, sep=",")


def as_grid(chunks: Sequence[str], ndim: int, what: str) -> npt.NDArray[np.uint32] | npt.NDArray[np.uint64]:
    """Grid positions as numbers: chunks x dimensions, of 32 bits unless one needs more.

    Raises
    ------
    FormatError
        ``corrupt`` when one does not have a number below 2**63 - 1 for each dimension.
    """
    if not chunks or not ndim:
        if any(chunks):
            raise damaged(what, "a chunk of an array without dimensions has a grid position")
        return np.zeros((len(chunks), ndim), dtype=np.uint32)
    text = "\n".join(chunks)
    marks = np.frombuffer(text.encode() + b"\n", dtype=np.uint8)
    marks = marks[marks < ord("0")]  # of digits, slashes and line breaks, the latter two
    if marks.size != len(chunks) * ndim or not np.array_equal(
        marks.reshape(-1, ndim) == ord("\n"), _last(ndim, chunks)
    ):
        raise damaged(what, f"a grid position does not have {ndim} numbers")
    if not all(chunks):
        raise damaged(what, "a grid position is empty")
    grid = np.fromstring(text.replace("/", "\n"), dtype=np.int64, sep="\n").reshape(-1, ndim)
    greatest = int(grid.max())
    if greatest == _GREATEST:  # which numpy also makes of what is greater
        raise damaged(what, f"a grid position has a number of {_GREATEST} or more")
    return grid.astype(np.uint32) if greatest < 2**32 else grid.astype(np.uint64)


def _last(ndim: int, chunks: Sequence[str]) -> npt.NDArray[np.bool_]:
    return np.broadcast_to(np.arange(ndim) == ndim - 1, (len(chunks), ndim))
