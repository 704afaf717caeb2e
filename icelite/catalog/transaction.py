"""The verbs for statements of one connection; which transaction they are in is for `icelite.catalog.database`.

No row leaves this module while its statement is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import apsw

from icelite.errors import ErrorKind, FormatError

Row = tuple[Any, ...]
Bindings = Sequence[Any]


class Transaction:
    """The verbs for statements; valid only inside the door that made it."""

    def __init__(self, connection: apsw.Connection, check: Callable[[], None] | None = None) -> None:
        self._connection = connection
        self._check = check
        self.after_commit: list[Callable[[], None]] = []

    def rows(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """All rows of a query, its statement closed."""
        rows = self._connection.execute(sql, bindings).fetchall()
        if self._check is not None:
            self._check()
        return rows

    def row(self, sql: str, bindings: Bindings = ()) -> Row | None:
        """The first row of a query, or None."""
        rows = self.rows(sql, bindings)
        return rows[0] if rows else None

    def run(self, sql: str, bindings: Bindings = ()) -> int:
        """Execute one statement; the number of rows it changed."""
        self._connection.execute(sql, bindings)
        return self._connection.changes()

    def run_many(self, sql: str, bindings: Iterable[Bindings]) -> None:
        """Execute one statement for each sequence of bindings."""
        self._connection.executemany(sql, bindings)

    def insert(self, sql: str, bindings: Bindings = ()) -> int:
        """Execute an INSERT; the rowid of the new row."""
        self._connection.execute(sql, bindings)
        return self._connection.last_insert_rowid()

    def read_blob(self, table: str, column: str, rowid: int, start: int, length: int) -> bytes:
        """``length`` bytes from ``start`` of one value, without loading the rest of it.

        Raises
        ------
        FormatError
            ``corrupt`` where the value ends before.
        """
        blob = self._connection.blob_open("main", table, column, rowid, False)
        try:
            if self._check is not None:
                self._check()
            if start + length > blob.length():
                raise FormatError(
                    f"{table} {rowid} has {blob.length()} bytes, and its reference names {start + length};"
                    " restore the file from a copy",
                    ErrorKind.CORRUPT,
                )
            blob.seek(start)
            return blob.read(length)
        finally:
            blob.close()
