"""A connection's own view of a catalog that is not on this machine: a private copy, or the object itself by ranges.

Invariants
----------
- A copy belongs to one connection. It is only ever some version of the remote catalog: what a transaction wrote that
  could not be published is taken back from the copy before anyone reads it.
- A newer version passes the checks of `icelite.catalog.checks` before its pages replace those of a copy, and only
  if it is the same repository; they are replaced through SQLite, so an attached change set stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw

from icelite import vfs
from icelite.catalog import checks
from icelite.catalog.connections import open_connection
from icelite.catalog.door import Door
from icelite.catalog.locks import Guard
from icelite.catalog.statements import translated
from icelite.errors import ErrorKind, IceliteError, ReadOnlyError, StorageError
from icelite.storage import S3Address, StorageConfig

BEHIND = -1  # the number of no version
FRESH_SECONDS = 10.0  # the first session after opening does not ask again for so long

SELECT_NEWEST_OPERATION = "SELECT id, done_at FROM operation ORDER BY id DESC LIMIT 1"
SELECT_OPERATION = "SELECT id, done_at FROM operation WHERE id = ?"


class RemoteView:
    """What one connection sees of a remote catalog.

    Parameters
    ----------
    whole
        Work on a copy, however large the catalog is.
    check
        As for `Catalog`.
    before
        The view that this one follows.

    Attributes
    ----------
    path
        The copy; None when the object is read by ranges.
    digest
        SHA-256 of the copy as it was fetched.
    """

    def __init__(self, storage: StorageConfig, *, whole: bool, check: str, before: RemoteView | None) -> None:
        assert storage.address is not None
        self._address = storage.address
        self._url = storage.name
        self._check = check
        self._mirror: vfs.Mirror = vfs.lookup_mirror(storage.address)
        self.path: Path | None = None
        self.digest: str | None = None
        self._published: tuple[int, str | None, str | None] = (BEHIND, None, None)
        self._vfs: Any = None  # must live as long as its connection
        self._reader: vfs.VersionReader | None = None
        self._blocks: vfs.BlockFile | None = None
        self._newest_operation: tuple[Any, ...] | None = None if before is None else before._newest_operation
        with self._mirror.lock:
            self._mirror.revalidate(whole=whole or check == "always")
            self._opened_at: float | None = self._mirror.checked_at
            self._number = self._mirror.number
            self.version = self._mirror.version
            if self._mirror.is_whole:
                self.path, self._number, self.digest = self._mirror.copy()
                weakref.finalize(self, _remove, self.path, os.getpid())

    @property
    def read_only(self) -> bool:
        """Whether it cannot be written at all."""
        return not isinstance(self._address, S3Address)

    def connect(self) -> apsw.Connection:
        """A bare connection to the copy, or to the object by ranges."""
        if self.path is not None:
            return open_connection(self.path)
        with self._mirror.lock:
            self._reader = vfs.VersionReader(self._mirror)
            connection, self._blocks, self._vfs = vfs.open_by_ranges(
                self._reader.read, self._mirror.size, self._mirror.head, self._url
            )
        checks.harden(connection)
        checks.hold_rules(connection, self._url)  # nothing has read the file before
        return connection

    def identify(self, connection: apsw.Connection) -> None:
        """Note which repository a checked connection shows, and which version of it.

        Raises
        ------
        StorageError
            ``catalog-replaced`` when it is another repository than before, or an older version.
        """
        found = connection.execute(SELECT_NEWEST_OPERATION).fetchall()
        if self._reader is not None and self._blocks is not None and not self._reader.is_sure:
            self._reader.compare(*self._blocks.last_read)  # a page with a time that no other version has
        self._check_follows(connection)
        self._newest_operation = found[0] if found else None

    def _check_follows(self, connection: apsw.Connection) -> None:
        """The log of operations only grows, so the newest one known is in every later version."""
        known = self._newest_operation
        if known is not None and connection.execute(SELECT_OPERATION, known[:1]).fetchall() != [known]:
            raise StorageError(
                f"{self._url!r} was replaced by another repository, or by an older copy of this one; open it again",
                ErrorKind.CATALOG_REPLACED,
            )

    # -- following ---------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Ask whether there is a newer version; the first time not, if the catalog was opened only a moment ago."""
        just_opened = self._opened_at == self._mirror.checked_at
        self._mirror.revalidate(max_age=FRESH_SECONDS if just_opened else 0.0)
        self._opened_at = None

    def is_behind(self) -> bool:
        """Whether this process knows a newer version."""
        return self._number != self._mirror.number

    def catch_up(self) -> None:
        """Let the copy be the newest version that this process knows.

        Raises
        ------
        FormatError, StorageError
            What is wrong with that version; ``catalog-replaced`` when it is another repository.
        """
        assert self.path is not None
        with self._mirror.lock:
            path, number, digest = self._mirror.copy()
            version = self._mirror.version
        try:
            with self._naming(path), contextlib.closing(open_connection(path)) as source:
                checks.harden(source)
                checks.check_header(source, path)
                checks.check_content(source, path, self._check, digest)
                self.identify(source)
                self._restore(source)
        finally:
            path.unlink(missing_ok=True)
        self._number, self.digest, self.version = number, digest, version

    def _restore(self, source: apsw.Connection) -> None:
        assert self.path is not None
        with contextlib.closing(open_connection(self.path)) as target:
            target.set_busy_handler(Door(Guard(None), None, 30.0, target).wait)
            with target.backup("main", source, "main") as copying:
                copying.step(-1)

    # -- writing -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Stand on the newest version before a transaction.

        Raises
        ------
        ReadOnlyError, StorageError
            ``read-only-storage``, ``unsafe-storage``, ``io``.
        """
        self._mirror.check_safe()
        self._mirror.revalidate(whole=True)
        if self.is_behind():
            self.catch_up()

    def publish(self, connection: apsw.Connection) -> None:
        """Put the copy as this connection sees it, uncommitted changes included, in the place of the version it had.

        Raises
        ------
        ConflictError, ReadOnlyError, StorageError
            ``commit-conflict``, ``read-only-storage``, ``io``: roll back; the copy then catches up by itself.
        """
        with checks.OpenDoors(connection):
            data = _count_change(connection.serialize("main"))
        self._number = BEHIND  # until `settle`: should the COMMIT fail, the copy is not what was published
        with self._mirror.lock:
            self._mirror.publish(data, self.version)
            self._published = self._mirror.number, self._mirror.version, self._mirror.digest

    def settle(self) -> None:
        """Note that the copy, committed, is what was published."""
        self._number, self.version, self.digest = self._published

    # -- as messages call it -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def translated(self, storage: StorageConfig, busy_timeout: float) -> Iterator[None]:
        """As `failures.translated`, and errors speak of the URL, not of a copy that nobody knows."""
        with self._naming(self.path), translated(storage, busy_timeout):
            yield

    @contextlib.contextmanager
    def _naming(self, path: Path | None) -> Iterator[None]:
        try:
            yield
        except IceliteError as error:
            if path is not None:
                error.message = error.message.replace(str(path), self._url)
            raise

    def refusal(self) -> ReadOnlyError:
        """The error for a write."""
        return ReadOnlyError(
            f"{self._url!r} is on a web server and read-only here: download it, and change the copy",
            ErrorKind.READ_ONLY_STORAGE,
        )

    def close(self) -> None:
        """Remove the copy."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def view(storage: StorageConfig, *, whole: bool, check: str, before: RemoteView | None) -> RemoteView | None:
    """The view that a new connection gets after another one; None for a catalog of this machine."""
    if storage.address is None:
        return None
    try:
        return RemoteView(storage, whole=whole, check=check, before=before)
    except IceliteError:  # some are OSErrors too
        raise
    except OSError as error:
        raise StorageError(
            f"the copy of {storage.name!r} cannot be kept in the temporary folder {tempfile.gettempdir()}:"
            f" {error.strerror}; make room there, or let TMPDIR name another folder",
            ErrorKind.STORAGE_FULL if error.errno == errno.ENOSPC else ErrorKind.IO,
        ) from error


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:
        path.unlink(missing_ok=True)


def _count_change(data: bytes) -> bytes:
    """The bytes with the change counter moved on, as a COMMIT does (https://sqlite.org/fileformat2.html, 1.3.8)."""
    counter = struct.pack(">I", (struct.unpack_from(">I", data, 24)[0] + 1) % 2**32)
    return data[:24] + counter + data[28:92] + counter + data[96:]
