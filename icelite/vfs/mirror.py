"""The mirror of one remote catalog in this process: its newest version seen, on disk when it was fetched whole.

Invariants
----------
- A version's bytes are written to a file once, and that file is never opened by SQLite for writing: connections work
  on copies of it, which are theirs alone.
- Only bytes that the service acknowledged, or gave back, become the newest version.
- There is one mirror for each catalog in a process; a child of os.fork() makes its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from icelite.errors import (
    AlreadyExistsError,
    ConflictError,
    ErrorKind,
    FormatError,
    ReadOnlyError,
    RepositoryNotFoundError,
    StorageError,
)
from icelite.storage import RemoteAddress, S3Address
from icelite.vfs.blocks import HEAD_BYTES
from icelite.vfs.services import (
    QUOTED,
    Fetched,
    LostRaceError,
    S3Catalog,
    UnknownOutcomeError,
    WebCatalog,
    object_at,
    replaced,
)

NO_RANGES_BYTES = 512 << 20  # the most that is fetched whole from a server that knows no ranges
FIRST_PAGE_BYTES = 4096  # or the beginning of a larger one: the change counter and the first rows of the schema
FEW_BYTES = 128 << 10
SQLITE_MAGIC = b"SQLite format 3\0"

_AMAZON = re.compile(r"(.+\.)?amazonaws\.com(\.cn)?")  # heeds conditions
_forms: dict[tuple[str, str], str] = {}  # how a service wants conditions, by endpoint and bucket: see `S3Catalog.probe`


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

    def __init__(self, address: RemoteAddress) -> None:
        self.address = address
        self.url = address.url
        self.lock = threading.RLock()
        self.version: str | None = None
        self.size = 0
        self.head = b""
        self.number = 0
        self._is_stale = False
        self.digest: str | None = None
        self._object: S3Catalog | WebCatalog = object_at(address)
        self._data: Path | None = None
        self.checked_at = -1e9
        self._folder = Path(tempfile.mkdtemp(prefix="icelite-"))
        weakref.finalize(self, _remove, self._folder, os.getpid())

    @property
    def is_sure(self) -> bool:
        """Whether the version has a name that no other one has: a strong ETag (RFC 9110, section 8.8.1)."""
        return self.version is not None and self.version.startswith('"') and self.version.endswith('"')

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
            if self.number == 0 or self._is_stale or time.monotonic() - self.checked_at > max_age:
                known = None if self._is_stale or not self.is_sure else self.version
                found = self._object.fetch(known, self.address.whole_bytes, HEAD_BYTES)
                self.checked_at = time.monotonic()
                if found is not None and not self._looks_the_same(found):
                    self._adopt(found)
            if whole and not self.is_whole:
                self._download()

    def _looks_the_same(self, found: Fetched) -> bool:
        """Whether a version that has no sure name is the one that is here, by as many bytes as were fetched."""
        if self.number == 0 or self._is_stale or (found.version, found.size) != (self.version, self.size):
            return False
        if found.is_whole and self._data is not None:
            return hashlib.sha256(found.data).hexdigest() == self.digest
        return found.data[:HEAD_BYTES] == self.head

    def _adopt(self, found: Fetched) -> None:
        self._check_head(found)
        self.version, self.size, self.head = found.version, found.size, found.data[:HEAD_BYTES]
        self._forget_data()
        try:
            self._choose_way(found)
        except BaseException:
            self._is_stale = True  # so that the next attempt fetches it again
            raise
        self._is_stale = False
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
            if file.read(len(self.head)) != self.head:
                raise replaced(self.url)
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

    def read_range(self, number: int, start: int, stop: int) -> bytes:
        """Exactly the bytes ``[start, stop)`` of the version with a number, as far as the service can tell.

        Raises
        ------
        StorageError
            ``catalog-replaced``, ``io``.
        """
        if number != self.number:
            raise replaced(self.url)
        return self._object.read_range(start, stop, self.version)

    def distrust(self, number: int) -> StorageError:
        """Fetch anew at the next look what turned out to be another version; the error for who reads the old one."""
        with self.lock:
            if number == self.number:
                self.number += 1
                self._is_stale = True
        return replaced(self.url)

    # -- writing -----------------------------------------------------------------------------------------------

    def check_safe(self) -> S3Catalog:
        """Refuse to write where that cannot be done without overwriting others' work.

        Raises
        ------
        ReadOnlyError, StorageError
            ``read-only-storage`` on a web server; ``unsafe-storage``, ``io``.
        """
        target = self._object
        if not isinstance(target, S3Catalog) or not isinstance(self.address, S3Address):
            raise ReadOnlyError(
                f"{self.url!r} is on a web server and read-only here: download it, and change the copy",
                ErrorKind.READ_ONLY_STORAGE,
            )
        if not self.address.unsafe:
            self._form_of_conditions(target, self.address.bucket)
        return target

    def _form_of_conditions(self, target: S3Catalog, bucket: str) -> str:
        endpoint = target.endpoint()
        if _AMAZON.fullmatch(urlsplit(endpoint).hostname or ""):
            return QUOTED
        service = (endpoint, bucket)
        if service not in _forms:
            _forms[service] = target.probe(f"probe-{os.urandom(6).hex()}")
        return _forms[service]

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
            version: str | None
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
            if isinstance(self.address, S3Address) and self.address.unsafe:
                self._check_absent()
            self.publish(data, None)
        except ConflictError:
            raise AlreadyExistsError(
                f"{self.url!r} already exists; open it with Repository.open, or choose another name",
                ErrorKind.REPOSITORY_ALREADY_EXISTS,
            ) from None

    def _check_absent(self) -> None:
        try:
            self._object.fetch(None, 0, 0)
        except RepositoryNotFoundError:
            return
        raise ConflictError(f"{self.url!r} exists")

    def _write(self, target: S3Catalog, data: bytes, expected: str | None) -> str:
        assert isinstance(self.address, S3Address)
        if self.address.unsafe:
            found = target.fetch(expected, 0, 0) if expected is not None else None
            if found is not None:
                raise LostRaceError("changed")
            return target.overwrite(data)
        return target.write(data, expected, self._form_of_conditions(target, self.address.bucket))

    def _find_written(self, data: bytes, expected: str | None, error: Exception) -> str | None:
        """The version of our own bytes, if they arrived although the service's answer says otherwise, or did not come.

        A request is sent again when its answer is lost, and then finds that it took place. Our bytes hold the random
        ids of what we wrote, so nobody else's are equal.
        """
        try:
            found = self._object.fetch(None, max(len(data), self.address.whole_bytes), HEAD_BYTES)
        except StorageError as failure:
            raise StorageError(
                f"{self.url!r}: a write was sent, and whether it arrived is not known: {error}; then {failure}",
                ErrorKind.IO,
            ) from None
        unsafe = isinstance(self.address, S3Address) and self.address.unsafe
        if found is not None and found.data == data and (found.version is not None or unsafe):
            return found.version
        if found is not None and found.version == expected:
            self._raise_unchanged(error)
        if found is not None:
            self._adopt(found)
        raise ConflictError(
            f"{self.url!r} was changed by somebody else at the same moment, so nothing of this was written: try again"
            " (a session can rebase first)",
            ErrorKind.COMMIT_CONFLICT,
        ) from None

    def _raise_unchanged(self, error: Exception) -> None:
        """Say why a write failed although the version that it was to replace is still there."""
        if isinstance(error, UnknownOutcomeError):
            raise StorageError(f"{self.url!r} was not written: it {error}; nothing was changed", ErrorKind.IO)
        if isinstance(error, LostRaceError) and error.status == 412:
            raise StorageError(
                f"{self.url!r} was not written: nobody changed it, and yet the service says that it did"
                f" ({error}), so trying again is of no use; if nobody else writes here, pass unsafe=True to"
                " icelite.StorageConfig.s3_from_config",
                ErrorKind.UNSAFE_STORAGE,
            )


class VersionReader:
    """The ranges of one version of a remote catalog, the newest when this is made.

    Where the service gives versions no sure name, the first page, with SQLite's change counter, and whatever `compare`
    was told are fetched again after each range: while they are equal, the range before them was of the same version.

    Attributes
    ----------
    is_sure
        Whether the service tells versions apart, so that nothing is compared.
    """

    def __init__(self, mirror: Mirror) -> None:
        self.is_sure = mirror.is_sure
        self._mirror = mirror
        self._number = mirror.number
        self._head = mirror.head
        self._expected = {} if mirror.is_sure else {0: mirror.head[:FIRST_PAGE_BYTES]}

    def read(self, start: int, stop: int) -> bytes:
        """Exactly the bytes ``[start, stop)``; raises as `Mirror.read_range`."""
        data = self._mirror.read_range(self._number, start, stop)
        for first, expected in self._expected.items():
            if self._mirror.read_range(self._number, first, first + len(expected)) != expected:
                raise self._mirror.distrust(self._number)
        return data

    def compare(self, start: int, stop: int) -> None:
        """Compare these bytes, too, from now on."""
        if stop <= FEW_BYTES and stop <= len(self._head):  # near enough for one request with the first page
            self._expected = {0: self._head[: max(stop, FIRST_PAGE_BYTES)]}
        else:
            self._expected[start] = self.read(start, stop)


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

    def lookup(self, address: RemoteAddress) -> Mirror:
        try:
            hash(address)
        except TypeError:  # a get_credentials that has no hash
            return Mirror(address)
        with self._lock:
            mirror = self._mirrors.get(address)
            if mirror is None:
                mirror = self._mirrors[address] = Mirror(address)
            return mirror


_mirrors = _Mirrors()
os.register_at_fork(after_in_child=_mirrors.clear)


def lookup_mirror(address: RemoteAddress) -> Mirror:
    """The mirror of a remote catalog in this process."""
    return _mirrors.lookup(address)
