"""What this process knows of one remote catalog: its newest version seen, on disk when it was fetched whole.

Invariants
----------
- A version's bytes are written to a file once, and that file is never opened by SQLite for writing: connections work
  on copies of it, which are theirs alone.
- Only bytes that the service acknowledged, or gave back, become the newest version.
- There is one mirror for each place in a process; a child of os.fork() makes its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from icelite.errors import (
    AlreadyExistsError,
    ConflictError,
    ErrorKind,
    FormatError,
    ReadOnlyError,
    RepositoryNotFoundError,
    StorageError,
)
from icelite.storage import RemotePlace, S3Place
from icelite.vfs.blocks import HEAD_BYTES
from icelite.vfs.objects import (
    Fetched,
    LostRaceError,
    S3Catalog,
    UnknownOutcomeError,
    WebCatalog,
    object_at,
    replaced,
)

NO_RANGES_BYTES = 512 << 20  # the most that is fetched whole from a server that knows no ranges
SQLITE_MAGIC = b"SQLite format 3\0"

_heeds: dict[tuple[str, str], bool] = {}  # whether a service heeds conditions, by endpoint and bucket


class Mirror:
    """The newest version of one remote catalog that this process has seen.

    Attributes
    ----------
    version, size, head
        Of that version; ``version`` None before anything was fetched, or where the service has none.
    number
        Another one with each new version.
    digest
        SHA-256 of its bytes; None while only its head is here.
    checked_at
        When the service was last asked, on the monotonic clock.
    """

    def __init__(self, place: RemotePlace) -> None:
        self.place = place
        self.url = place.url
        self.lock = threading.RLock()
        self.version: str | None = None
        self.size = 0
        self.head = b""
        self.number = 0
        self.digest: str | None = None
        self._object: S3Catalog | WebCatalog = object_at(place)
        self._data: Path | None = None
        self.checked_at = -1e9
        self._folder = Path(tempfile.mkdtemp(prefix="icelite-"))
        weakref.finalize(self, _remove, self._folder, os.getpid())

    @property
    def is_whole(self) -> bool:
        """Whether the version's bytes are on this machine."""
        return self._data is not None

    # -- reading -----------------------------------------------------------------------------------------------

    def revalidate(self, *, max_age: float = 0.0, whole: bool = False) -> None:
        """Ask the service for a newer version, unless that was done less than ``max_age`` seconds ago.

        Parameters
        ----------
        whole
            Fetch all of it, however large.

        Raises
        ------
        RepositoryNotFoundError, FormatError, StorageError
            ``repository-not-found``; ``not-a-catalog`` for what is no SQLite file, ``truncated-file``; ``io``.
        """
        with self.lock:
            if self.number == 0 or time.monotonic() - self.checked_at > max_age:
                found = self._object.fetch(self.version, self.place.whole_bytes, HEAD_BYTES)
                self.checked_at = time.monotonic()
                if found is not None:
                    self._adopt(found)
            if whole and not self.is_whole:
                self._download()

    def _adopt(self, found: Fetched) -> None:
        self._check_head(found)
        self.version, self.size, self.head = found.version, found.size, found.data[:HEAD_BYTES]
        self._forget_data()
        try:
            self._choose_way(found)
        except BaseException:
            self.version = None  # so that the next attempt fetches it again
            raise
        self.number += 1

    def _choose_way(self, found: Fetched) -> None:
        """Keep all of a version, or see to it that its ranges can be read."""
        if found.is_whole:
            self._keep(found.data)
        elif found.ranges is not True and not (isinstance(self._object, WebCatalog) and self._object.gives_ranges()):
            if found.size > NO_RANGES_BYTES:
                raise StorageError(
                    f"the catalog {self.url!r} has {found.size} bytes and its server ignores range requests: download"
                    " it, or serve it from one that knows them (HTTP 206)",
                    ErrorKind.IO,
                )
            self._download()

    def _check_head(self, found: Fetched) -> None:
        if not found.data.startswith(SQLITE_MAGIC):
            start = found.data.lstrip()[:15].lower()
            what = "an HTML page" if start.startswith((b"<!doctype html", b"<html")) else "something else"
            raise FormatError(
                f"{self.url!r} is {what}, not an icelite catalog; check the URL, and that it needs no login",
                ErrorKind.NOT_A_CATALOG,
            )
        page = int.from_bytes(found.data[16:18], "big")
        expected = (65536 if page == 1 else page) * int.from_bytes(found.data[28:32], "big")
        if found.size < expected:
            raise FormatError(
                f"{self.url!r} is truncated: {found.size} bytes of {expected}; upload it again from the original",
                ErrorKind.TRUNCATED_FILE,
            )

    def _download(self) -> None:
        path = self._new_path()
        with path.open("wb") as file:
            self._object.download(self.version, self.size, file)
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._data = path

    def _keep(self, data: bytes) -> None:
        path = self._new_path()
        path.write_bytes(data)
        self.digest = hashlib.sha256(data).hexdigest()
        self._data = path

    def _forget_data(self) -> None:
        if self._data is not None:
            self._data.unlink(missing_ok=True)
        self._data = self.digest = None

    def _new_path(self) -> Path:
        handle, name = tempfile.mkstemp(suffix=".icelite", dir=self._folder)
        os.close(handle)
        return Path(name)

    def copy(self) -> tuple[Path, int, str]:
        """A copy of the newest version for one connection, its number and the digest of its bytes."""
        with self.lock:
            if self._data is None:
                self._download()
            assert self._data is not None
            assert self.digest is not None
            path = self._new_path()
            shutil.copyfile(self._data, path)
            return path, self.number, self.digest

    def read_version(self, version: str | None, start: int, stop: int) -> bytes:
        """Exactly the bytes ``[start, stop)`` of a version.

        Raises
        ------
        StorageError
            ``catalog-replaced``, ``io``.
        """
        if version != self.version:
            raise replaced(self.url)
        return self._object.read_range(start, stop, version)

    # -- writing -----------------------------------------------------------------------------------------------

    def check_safe(self) -> S3Catalog:
        """Refuse to write where that cannot be done without overwriting others' work.

        Raises
        ------
        ReadOnlyError, StorageError
            ``read-only-storage`` on a web server; ``unsafe-storage``.
        """
        target = self._object
        if not isinstance(target, S3Catalog) or not isinstance(self.place, S3Place):
            raise ReadOnlyError(
                f"{self.url!r} is on a web server and read-only here: download it, and change the copy",
                ErrorKind.READ_ONLY_STORAGE,
            )
        endpoint = target.options.endpoint_url
        if self.place.unsafe or endpoint is None:  # Amazon's heeds conditions
            return target
        service = (endpoint, self.place.bucket)
        if service not in _heeds:
            _heeds[service] = target.knows_conditions(f"probe-{os.urandom(6).hex()}")
        if not _heeds[service]:
            raise StorageError(
                f"{self.url!r} cannot be written safely: the service at {endpoint} ignores conditions on a PUT, so two"
                " writers could overwrite each other's commits; if there is only ever one, pass unsafe=True to"
                " icelite.StorageConfig.s3_from_config",
                ErrorKind.UNSAFE_STORAGE,
            )
        return target

    def publish(self, data: bytes, expected: str | None) -> None:
        """Replace the version ``expected`` (None: there is no object) on the service; then it is the newest one here.

        Raises
        ------
        ConflictError
            ``commit-conflict``: somebody else was quicker; their version is the newest one here.
        ReadOnlyError, StorageError
            As `check_safe`; ``read-only-storage`` when the caller may not write; ``io`` when it is not known whether
            the bytes arrived.
        """
        target = self.check_safe()
        with self.lock:
            try:
                version = self._write(target, data, expected)
            except (LostRaceError, UnknownOutcomeError) as error:
                version = self._find_written(data, expected, error)
            head = data[:HEAD_BYTES]
            self.version, self.size, self.head = version, len(data), head
            self._forget_data()
            self._keep(data)
            self.number += 1
            self.checked_at = time.monotonic()

    def create(self, data: bytes) -> None:
        """Write the first version.

        Raises
        ------
        AlreadyExistsError, ReadOnlyError, StorageError
            ``repository-already-exists``; as `publish`.
        """
        try:
            if isinstance(self.place, S3Place) and self.place.unsafe:
                self._check_absent()
            self.publish(data, None)
        except ConflictError:
            raise AlreadyExistsError(
                f"{self.url!r} already exists; open it with Repository.open, or choose another place",
                ErrorKind.REPOSITORY_ALREADY_EXISTS,
            ) from None

    def _check_absent(self) -> None:
        try:
            self._object.fetch(None, 0, 0)
        except RepositoryNotFoundError:
            return
        raise ConflictError(f"{self.url!r} exists")

    def _write(self, target: S3Catalog, data: bytes, expected: str | None) -> str:
        if isinstance(self.place, S3Place) and self.place.unsafe:
            found = target.fetch(expected, 0, 0) if expected is not None else None
            if found is not None:
                raise LostRaceError("changed")
            return target.overwrite(data)
        return target.write(data, expected)

    def _find_written(self, data: bytes, expected: str | None, error: Exception) -> str:
        """The version of our own bytes, if they arrived although the service's answer says otherwise, or did not come.

        A request is sent again when its answer is lost, and then finds that it took place. Our bytes hold the random
        ids of what we wrote, so nobody else's are equal.
        """
        try:
            found = self._object.fetch(None, max(len(data), self.place.whole_bytes), HEAD_BYTES)
        except StorageError as failure:
            raise StorageError(
                f"{self.url!r}: a write was sent, and whether it arrived is not known: {error}; then {failure}",
                ErrorKind.IO,
            ) from None
        if found is not None and found.data == data and found.version is not None:
            return found.version
        if isinstance(error, UnknownOutcomeError) and found is not None and found.version == expected:
            raise StorageError(f"{self.url!r} was not written: it {error}; nothing was changed", ErrorKind.IO) from None
        if found is not None:
            self._adopt(found)
        raise ConflictError(
            f"{self.url!r} was changed by somebody else at the same moment, so nothing of this was written: try again"
            " (a session can rebase first)",
            ErrorKind.COMMIT_CONFLICT,
        ) from None


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


class _Mirrors:
    """The mirrors in use, so that a repository and its sessions fetch a catalog once."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._lock = threading.Lock()
        self._mirrors: weakref.WeakValueDictionary[Any, Mirror] = weakref.WeakValueDictionary()

    def lookup(self, place: RemotePlace) -> Mirror:
        try:
            hash(place)
        except TypeError:  # a get_credentials that has no hash
            return Mirror(place)
        with self._lock:
            mirror = self._mirrors.get(place)
            if mirror is None:
                mirror = self._mirrors[place] = Mirror(place)
            return mirror


_mirrors = _Mirrors()
os.register_at_fork(after_in_child=_mirrors.clear)


def lookup_mirror(place: RemotePlace) -> Mirror:
    """The mirror of a place in this process."""
    return _mirrors.lookup(place)
