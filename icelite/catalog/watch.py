"""Whether a file that is open is still the one that was opened.

Another catalog may be copied over it (``cp``), which keeps the file and changes its content. It may be deleted,
replaced or cut as well; then SQLite fails, and says something else.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import apsw

from icelite.catalog import checks
from icelite.catalog.locks import Guard
from icelite.errors import ErrorKind, FormatError, IceliteError, StorageError

# A repository is told from others by when it began: the id of its first snapshot is everybody's.
SELECT_BEGINNING = "SELECT id, written_at FROM snapshot WHERE seq = (SELECT min(seq) FROM snapshot)"

UNKNOWN = -1  # a version that no file has
LOOK_SECONDS = 0.0001  # nobody copies a file between two reads that follow each other so closely


class Watch:
    """What one connection knows of its file.

    Attributes
    ----------
    version
        Another one after each change of the file, by whomever, that the connection has noticed by reading.
    """

    def __init__(self, connection: apsw.Connection, guard: Guard, name: str) -> None:
        self.version = 0
        self.seen: int = UNKNOWN  # SQLite's version of the file when it was last checked
        self._connection = connection
        self._guard = guard
        self._name = name
        self._stamp: tuple[int, int, int] | None = None
        self._next_look = 0.0
        self._beginning: list[tuple[Any, ...]] | None = None

    def look(self) -> None:
        """Before a read: notice that the file was written to, also where SQLite would not.

        SQLite compares a counter, which two files may have in common, and then goes on with the pages that it has.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        stamp = self._guard.stamp()
        if stamp != self._stamp:
            if self._connection.data_version() == self.seen:
                self._connection.release_memory()
            self.seen, self._stamp = UNKNOWN, stamp

    def check(self) -> None:
        """After a read, and in its transaction: refuse what came from another catalog.

        Raises
        ------
        StorageError
            ``catalog-replaced``.
        """
        seen = self._connection.data_version()
        if seen == self.seen:
            return
        beginning = self._read_beginning()
        if self._beginning is None:
            self._beginning = beginning
        elif self._beginning != beginning:
            raise StorageError(
                f"{self._name} was overwritten with another file while it was open; open it again",
                ErrorKind.CATALOG_REPLACED,
            )
        self.version += 1
        self.seen = seen

    def _read_beginning(self) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(SELECT_BEGINNING).fetchall()
        except apsw.SQLError:
            if not self._connection.read("main", 0, 0, 1)[0]:  # the file is empty, which `find_loss` says
                raise
            return []  # another application's file


def find_loss(path: Path, connection: apsw.Connection, identity: tuple[int, int] | None) -> IceliteError | None:
    """What became of a file that is open, where it is no longer there as it was.

    Parameters
    ----------
    identity
        Device and inode of the file that is open, if known.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return StorageError(
            f"{path} was deleted or moved away while it was open, so nothing more is written to it; put it back, and"
            " open it again",
            ErrorKind.CATALOG_DELETED,
        )
    except OSError:
        return None
    if identity not in (None, (status.st_dev, status.st_ino)):
        return StorageError(
            f"{path} was replaced by another file while it was open, so nothing more is written to it; open it again",
            ErrorKind.CATALOG_REPLACED,
        )
    if status.st_size == 0:
        return FormatError(
            f"{path} was truncated while it was open: it is empty now; restore it from a copy", ErrorKind.TRUNCATED_FILE
        )
    return _find_overwritten(path, connection)


def _find_overwritten(path: Path, connection: apsw.Connection) -> IceliteError | None:
    try:
        if connection.read("main", 0, 0, len(checks.SQLITE_MAGIC))[1] != checks.SQLITE_MAGIC:
            return StorageError(
                f"{path} was overwritten while it was open and is no SQLite file now; restore it from a copy",
                ErrorKind.CATALOG_REPLACED,
            )
        checks.check_length(connection, path)
    except FormatError as error:
        return error
    except apsw.Error:
        return None
    return None
