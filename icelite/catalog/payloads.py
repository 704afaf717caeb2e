"""The `payload` table: the bytes of inline chunks, each with its CRC-32C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c

from icelite.catalog.database import Catalog, Transaction
from icelite.errors import ErrorKind, FormatError, InvalidInputError

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
