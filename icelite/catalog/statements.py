"""The verbs for statements of one connection, and what went wrong in SQLite as icelite's errors.

Which transaction a statement is in is for `icelite.catalog.database`. No row leaves this module while its statement is
open. An error names the file, the cause and the remedy.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apsw

from icelite.errors import (
    ErrorKind,
    FormatError,
    IceliteError,
    InternalError,
    InvalidInputError,
    ReadOnlyError,
    StorageError,
    check_open_files,
)
from icelite.storage import StorageConfig

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


# -- what went wrong -----------------------------------------------------------------------------------------------

# Besides apsw's own: TEXT that is not UTF-8, and what a caller gave that SQLite has no form for.
_DAMAGES = (
    "integer overflow",  # a sum of forged numbers
    "unsupported file format",  # a header that promises what no SQLite can read
    "no such rowid",  # of a payload that a reference names
    "cannot open value of type",  # a payload that is no BLOB
)
FOREIGN = (apsw.Error, UnicodeError, OverflowError)
# What SQLite says where the file is not there any more as it was.
LOSSES = apsw.ReadOnlyError, apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError, apsw.SQLError


@contextmanager
def translated(
    storage: StorageConfig, busy_timeout: float, find: Callable[[], IceliteError | None] | None = None
) -> Iterator[None]:
    """Let apsw's exceptions leave the block as icelite's; ``find`` looks for a cause that SQLite does not see."""
    try:
        yield
    except FOREIGN as error:
        found = find() if find is not None and isinstance(error, LOSSES) else None
        raise found or translate(error, storage.name, busy_timeout) from error
    except TypeError as error:
        if not str(error).startswith("Bad binding argument type"):
            raise
        raise InvalidInputError(
            f"{storage.name} was asked for something that is neither text nor number: {error}",
            ErrorKind.INVALID_ARGUMENT,
        ) from error


def _scratch() -> str:
    """Where SQLite keeps what it has no room for in memory (https://sqlite.org/tempfiles.html, section 5)."""
    return os.environ.get("SQLITE_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()


def translate(error: Exception, where: str, busy_timeout: float) -> IceliteError:
    """The error that an exception of apsw stands for."""
    if isinstance(error, UnicodeEncodeError | OverflowError):
        return InvalidInputError(
            f"{where} cannot be asked for a text that is no Unicode, or a number of more than 64 bits: {error}",
            ErrorKind.INVALID_ARGUMENT,
        )
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return StorageError(
            f"{where} was being written by another process for more than {busy_timeout:g} s;"
            " try again, or raise busy_timeout_seconds in the RepositoryConfig",
            ErrorKind.BUSY,
        )
    if isinstance(error, apsw.FullError):
        return StorageError(
            f"no space left for {where}, or in the temporary folder {_scratch()}, where uncommitted changes"
            " wait (TMPDIR names another one); nothing was changed",
            ErrorKind.STORAGE_FULL,
        )
    if isinstance(error, apsw.ReadOnlyError):
        return ReadOnlyError(f"{where} cannot be written: {error}", ErrorKind.READ_ONLY_STORAGE)
    if isinstance(error, apsw.CorruptError | apsw.NotADBError | UnicodeDecodeError):
        return FormatError(f"{where} is damaged: {error}; restore it from a copy", ErrorKind.CORRUPT)
    if isinstance(error, apsw.ConstraintError | apsw.MismatchError):
        return FormatError(
            f"{where} holds rows that its own rules forbid: {error}; verify() lists what is wrong with it",
            ErrorKind.CORRUPT,
        )
    if isinstance(error, apsw.SQLError) and str(error).startswith(_DAMAGES):
        return FormatError(f"{where} is damaged: {error}; restore it from a copy", ErrorKind.CORRUPT)
    if isinstance(error, apsw.CantOpenError):
        try:
            check_open_files(f"{where} cannot be opened", 1)
        except StorageError as shortage:
            return shortage
        return StorageError(f"{where} cannot be opened: {_reason(error)}; check its permissions", ErrorKind.IO)
    if isinstance(error, apsw.IOError):
        return StorageError(f"reading or writing {where} failed: {_reason(error)}", ErrorKind.IO)
    return InternalError(f"{where}: {type(error).__name__}: {error}")


def _reason(error: apsw.Error) -> object:
    """What SQLite says, or the name of its code where it says that there was no error."""
    code: int | None = getattr(error, "extendedresult", None)
    return (
        error if code is None or str(error) != "not an error" else apsw.mapping_extended_result_codes.get(code, error)
    )
