"""The limits on what one statement may cost while a catalog that nobody checked is read by ranges.

They are in proportion to the size of the file, so that an honest catalog stays far below them.
"""

from __future__ import annotations

from typing import Any

import apsw

from icelite.errors import ErrorKind, FormatError

STEPS, STEPS_A_BYTE = 50_000_000, 20  # of SQLite's machine; a scan of all references needs 7 a byte
ROWS, BYTES_A_ROW = 1000, 8  # no row of a catalog is smaller in its file
VALUE_BYTES = 64 << 20  # of one value; and of all values of a result, besides four times the file
FETCHED_BYTES, TIMES_FETCHED = 64 << 20, 8  # a block may be fetched again once it left the cache
_STEPS_A_LOOK = 100_000


class Watchdog:
    """The counts of the statement that a connection runs.

    Parameters
    ----------
    size
        Bytes of the file.
    name
        How messages call the file.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._steps = self._rows = self._bytes = self._fetched = 0

    def watch(self, connection: apsw.Connection) -> None:
        """Count what the statements of a connection cost from now on."""
        connection.limit(apsw.SQLITE_LIMIT_LENGTH, VALUE_BYTES + 2 * self._size)
        connection.exec_trace = self._start_statement
        connection.row_trace = self._count_row
        connection.set_progress_handler(self._count_steps, _STEPS_A_LOOK)

    def count_fetched(self, amount: int) -> None:
        """Count bytes that are about to be fetched for the statement.

        Raises
        ------
        FormatError
            ``corrupt``.
        """
        self._fetched += amount
        if self._fetched > FETCHED_BYTES + TIMES_FETCHED * self._size:
            raise self._too_much(f"{self._fetched} bytes fetched")

    def _start_statement(self, cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        self._steps = self._rows = self._bytes = self._fetched = 0
        return True

    def _count_row(self, cursor: apsw.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
        self._rows += 1
        for value in row:
            if value.__class__ is bytes or value.__class__ is str:
                self._bytes += len(value)
        if self._rows > ROWS + self._size // BYTES_A_ROW:
            raise self._too_much(f"{self._rows} rows")
        if self._bytes > VALUE_BYTES + 4 * self._size:
            raise self._too_much(f"{self._bytes} bytes of values")
        return row

    def _count_steps(self) -> bool:
        self._steps += _STEPS_A_LOOK
        if self._steps > STEPS + STEPS_A_BYTE * self._size:
            raise self._too_much(f"{self._steps} steps")
        return False

    def _too_much(self, cost: str) -> FormatError:
        return FormatError(
            f"{self._name!r} is damaged or was tampered with: a question to it cost {cost}, more than a catalog of"
            f" {self._size} bytes can; download it and open the copy, which is checked as a whole first",
            ErrorKind.CORRUPT,
        )
