"""Remote files: the way to each by its URL, reading what a reference says, and reading a file for the first time.

Where a request goes and how it is signed comes from the caller: from an authorisation, or for what lies beside a
remote catalog from that catalog's own address.
Before anything is recorded of a file, its first bytes come with what it looks like, in one request; every later one
must find it so.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from icelite.credentials import (
    AnyCredential,
    AnyS3Credential,
    FilesystemAccess,
    HttpAccess,
    S3Credentials,
    S3Options,
    WebAccess,
)
from icelite.errors import ErrorKind, StorageError, redact
from icelite.retry import ATTEMPTS
from icelite.storage import AnyObjectStoreConfig, ObjectStoreConfig, RemoteAddress, S3Address
from icelite.types import ChunkType, Location, SourceStamp
from icelite.virtual.s3 import S3Object, client_for
from icelite.virtual.source import AnswerError, Target, fetch_error, modified_error, range_error, run, run_async
from icelite.virtual.stamps import SECOND, contradicts, describe, is_changed
from icelite.virtual.urls import bucket_and_key, relative_path
from icelite.virtual.web import WebObject, beside, quoted

_STAMPS_AT_ONCE = 32
_STAMPS_A_RUN = 1_024  # keys that expire are renewed between runs
_NOWHERE = Location(ChunkType.virtual, "")  # of which nothing is recorded
HEAD_BYTES = 1 << 19  # of a file that is read for the first time
BLOCK_BYTES = 1 << 18
MOST_AT_ONCE = 32  # blocks in one request
CACHE_BLOCKS = 128
MOST_READERS = 8
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


def target_of(url: str, prefix: str, credential: AnyCredential | None, store: AnyObjectStoreConfig | None) -> Target:
    """The object at an absolute URL, reached with what was authorised for a prefix of it."""
    if url.startswith("s3://"):
        bucket, key = bucket_and_key(url)
        local = store is None or isinstance(store, ObjectStoreConfig.LocalFileSystem)
        options = S3Options() if store is None or local else getattr(store, "options", S3Options())
        chosen = credential if isinstance(credential, AnyS3Credential) else S3Credentials.FromEnv()
        return S3Object(bucket, key, url, prefix, client_for(chosen, options))
    if url.startswith(("https://", "http://")):
        access = credential if isinstance(credential, WebAccess) else HttpAccess
        return WebObject(url.partition("?")[0], prefix, quoted(url), access)
    return FilesystemObject(url, credential.options if isinstance(credential, FilesystemAccess) else ())


def target_beside(address: RemoteAddress, path: str) -> Target:
    """The object at a path, checked before, that starts at a remote catalog's prefix; asked with its credentials."""
    if isinstance(address, S3Address):
        url = address.base + path
        bucket, key = bucket_and_key(url)
        return S3Object(bucket, key, url, None, client_for(address.credentials, address.options))
    url = beside(address.base, path)
    return WebObject(address.base + path, address.base, url, address.access, address.max_attempts or ATTEMPTS)


def path_inside(address: RemoteAddress, url: str) -> str | None:
    """The path of an absolute URL from a remote catalog's prefix, as `target_beside` takes it; None outside.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref`` for a path that might leave the prefix.
    """
    if not url.startswith(address.base) or "?" in url:
        return None
    path = url.removeprefix(address.base)
    return relative_path(path if isinstance(address, S3Address) else unquote(path))


class RemoteSource:
    """One remote file or object; see `Source`.

    Parameters
    ----------
    check_time
        Whether the modification time (whole seconds) counts.
    """

    is_local = False

    def __init__(self, location: Location, target: Target, *, check_time: bool) -> None:
        self._location = location
        self._target = target
        self._check_time = check_time

    def read(self, offset: int, length: int, chunk: str) -> bytes:
        """See `Source.read`."""
        return run(self._read(self._connect(chunk), offset, length, chunk))

    async def read_async(self, offset: int, length: int, chunk: str) -> bytes:
        """See `Source.read_async`."""
        connect = functools.partial(self._connect, chunk)
        way = connect() if self._target.is_connected() else await asyncio.to_thread(connect)
        return await run_async(self._read(way, offset, length, chunk))

    def check(self, chunk: str | None) -> SourceStamp | None:
        """See `Source.check`."""
        found = run(self._stamp(self._connect(chunk), chunk))
        if found == SourceStamp():
            return None
        self._compare(found, chunk)
        return found

    def _connect(self, chunk: str | None) -> Any:
        try:
            return self._target.connect()
        except AnswerError as error:
            problem = error.problem
        raise fetch_error(chunk, self._target.url, problem)

    async def _read(self, way: Any, offset: int, length: int, chunk: str) -> bytes:
        url = self._target.url
        if offset < 0 or length <= 0:
            raise fetch_error(chunk, url, f"cannot have bytes {offset} to {offset + length}")
        try:
            found, data = await self._target.read_range(way, offset, offset + length)
        except AnswerError as error:
            status, problem = error.status, error.problem
        else:
            self._compare(found, chunk)
            if len(data) != length:
                raise range_error(chunk, url, offset, length, found.size or offset + len(data))
            return data
        if status == 416:  # the file changed, or the reference is wrong
            found = await self._stamp(way, chunk)
            self._compare(found, chunk)
            raise range_error(chunk, url, offset, length, found.size or 0)
        raise fetch_error(chunk, url, problem)

    async def _stamp(self, way: Any, chunk: str | None) -> SourceStamp:
        try:
            return await self._target.stamp(way)
        except AnswerError as error:
            problem = error.problem
        raise fetch_error(chunk, self._target.url, problem)

    def _compare(self, found: SourceStamp, chunk: str | None) -> None:
        if is_changed(found, self._location, check_time=self._check_time):
            raise modified_error(chunk, self._target.url, self._location, found)


def stamps_of(targets: Sequence[Target]) -> list[SourceStamp]:
    """The looks of the targets now, several asked at once; empty stamps for those that do not exist; blocks.

    Raises
    ------
    StorageError
        ``virtual-chunk-fetch`` when one cannot be asked.
    """
    found: list[SourceStamp] = []
    for start in range(0, len(targets), _STAMPS_A_RUN):
        batch = targets[start : start + _STAMPS_A_RUN]
        # connected here, not on the event loop: the caller's function for keys may need that loop itself
        sources = [RemoteSource(_NOWHERE, target, check_time=False) for target in batch]
        found.extend(run(_stamp_all([(source, source._connect(None)) for source in sources])))
    return found


async def _stamp_all(connected: Sequence[tuple[RemoteSource, Any]]) -> list[SourceStamp]:
    turnstile = asyncio.Semaphore(_STAMPS_AT_ONCE)

    async def ask(source: RemoteSource, way: Any) -> SourceStamp:
        async with turnstile:
            return await source._stamp(way, None)

    return await asyncio.gather(*(ask(*pair) for pair in connected))


# -- reading a file of which nothing is recorded yet: what parsers read -----------------------------------------------


class FileReader:
    """The bytes of one remote file, which stays what it was at the first look.

    Pickled, it forgets the bytes but not what the file looked like.

    Parameters
    ----------
    url
        As references to the file will be written.
    lookup_target
        Gives the way to it; as `VirtualAccess.lookup_target`.
    """

    def __init__(self, url: str, lookup_target: Callable[[str], Target]) -> None:
        self.url = url
        self._lookup_target = lookup_target
        self._stamp: SourceStamp | None = None
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._target: Target | None = None
        self._head = b""
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next, self._run = -1, 1

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_lookup_target": self._lookup_target, "_stamp": self._stamp}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def stamp(self) -> SourceStamp:
        """The look of the file when it was first read.

        Raises
        ------
        FileNotFoundError, StorageError
            When it is not there; ``unreadable-source``.
        """
        with self._lock:
            if self._stamp is None:
                self._head = self._fetch(0, HEAD_BYTES)
            assert self._stamp is not None
            return self._stamp

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return int(self.stamp().size or 0)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes ``[start, stop)``, fewer at the end of the file.

        Raises
        ------
        FileNotFoundError, StorageError
            As `stamp`; ``virtual-chunk-modified`` when the file is another one by now.
        """
        with self._lock:
            stop = min(stop, self.size)
            if start >= stop:
                return b""
            if stop <= len(self._head):
                return self._head[start:stop]
            if stop - start > CACHE_BLOCKS // 2 * BLOCK_BYTES:
                return self._fetch(start, stop)
            self._load(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
            parts = [self._blocks[number] for number in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))]
            first = start // BLOCK_BYTES * BLOCK_BYTES
            data = b"".join(parts)[start - first : stop - first]
            while len(self._blocks) > CACHE_BLOCKS:
                self._blocks.popitem(last=False)
            return data

    def _load(self, first: int, stop: int) -> None:
        """See to it that these blocks are here; more at once while reads follow each other."""
        self._run = min(self._run * 2, MOST_AT_ONCE) if first == self._next else 1
        self._next = stop
        last = -(-self.size // BLOCK_BYTES)
        number = first
        while number < stop:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                number += 1
                continue
            end = min(max(stop, number + self._run), last)
            end = next((block for block in range(number, end) if block in self._blocks), end)
            data = self._fetch(number * BLOCK_BYTES, min(end * BLOCK_BYTES, self.size))
            for skipped in range(0, len(data), BLOCK_BYTES):
                self._blocks[number + skipped // BLOCK_BYTES] = data[skipped : skipped + BLOCK_BYTES]
            number = end

    def _fetch(self, start: int, stop: int) -> bytes:
        if self._target is None:
            self._target = self._lookup_target(self.url)
        try:
            found, data = run(self._target.read_range(self._target.connect(), start, stop))
        except AnswerError as error:
            problem, status = error.problem, error.status
        else:
            return self._checked(found, data, start, stop)
        if status in (404, 410):
            raise FileNotFoundError(self.url)
        if status == 416 and start == 0:  # an empty file
            self._stamp = self._stamp or SourceStamp(size=0)
            return b""
        raise self.unreadable(problem)

    def _checked(self, found: SourceStamp, data: bytes, start: int, stop: int) -> bytes:
        if found.size is None:
            raise self.unreadable("has no length, says its server")
        if self._stamp is None:
            self._stamp = found
        if contradicts(found, self._stamp):
            raise StorageError(
                f"source {redact(self.url)!r} changed while it was parsed: first {describe(self._stamp)}, then"
                f" {describe(found)}; try again when nobody writes to it",
                ErrorKind.VIRTUAL_CHUNK_MODIFIED,
            )
        if len(data) != min(stop, found.size) - start:
            raise self.unreadable(f"gave {len(data)} bytes of {stop - start}")
        return data

    def unreadable(self, problem: str) -> StorageError:
        """The error for a file that cannot be read."""
        return StorageError(f"source {redact(self.url)!r} {problem}", ErrorKind.UNREADABLE_SOURCE)


class FileReaders:
    """The remote files of one scan, each read by one reader; pickles to the processes that scan.

    Parameters
    ----------
    lookup_target
        The way to an object, also for what reads it otherwise; as `VirtualAccess.lookup_target`.
    """

    def __init__(self, lookup_target: Callable[[str], Target]) -> None:
        self.lookup_target = lookup_target
        self._readers: OrderedDict[str, FileReader] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"lookup_target": self.lookup_target, "_readers": OrderedDict()}

    def lookup(self, url: str) -> FileReader:
        """The reader of a file, which may have read some of it."""
        reader = self._readers.get(url)
        if reader is None:
            reader = self._readers[url] = FileReader(url, self.lookup_target)
            while len(self._readers) > MOST_READERS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(url)
        return reader


# -- services that fsspec has a package for ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FilesystemObject:
    """One object and the fsspec filesystem that reads it.

    Attributes
    ----------
    options
        Keyword arguments of the filesystem, as pairs.
    """

    url: str
    options: tuple[tuple[str, Any], ...] = ()
    _looks: list[SourceStamp] = field(default_factory=list, compare=False)  # the last one

    def connect(self) -> Any:
        """The filesystem; fsspec keeps one for each set of options.

        Raises
        ------
        AnswerError
            When its package is not installed, or refuses the options.
        """
        from fsspec import get_filesystem_class

        scheme = self.url.partition("://")[0]
        try:
            return get_filesystem_class(scheme)(**dict(self.options))
        except ImportError:
            package = _PACKAGES.get(scheme, scheme)
            problem = f"needs the package {package!r}: pip install {package}"
        except Exception as error:  # noqa: BLE001  # whatever that package raises; its message may hold a secret
            problem = f"cannot be reached with the options given: {type(error).__name__}"
        raise AnswerError(problem)

    def is_connected(self) -> bool:
        """Whether `connect` asks nobody; the package may do anything."""
        return False

    async def read_range(self, filesystem: Any, start: int, stop: int) -> tuple[SourceStamp, bytes]:
        """The object as it is now, and its bytes ``[start, stop)``, which may be fewer at its end.

        Raises
        ------
        AnswerError
            With status 416 for a range past the end.
        """
        return await asyncio.to_thread(self._read_range, filesystem, start, stop)

    def _read_range(self, filesystem: Any, start: int, stop: int) -> tuple[SourceStamp, bytes]:
        found = self._looks[-1] if self._looks else self._stamp(filesystem)
        if found == SourceStamp():
            raise AnswerError("does not exist; put the object back, or correct the reference", 404)
        if found.size is not None and start >= found.size:
            raise AnswerError(f"has {found.size} bytes", 416)
        stop = stop if found.size is None else min(stop, found.size)
        try:
            data: bytes = filesystem.cat_file(self.url, start=start, end=stop)
        except Exception as error:  # noqa: BLE001  # whatever that package raises
            problem = type(error).__name__
        else:
            if len(data) == stop - start:
                return found, data
            problem = f"{len(data)} bytes came of {stop - start}"
        raise _failure(problem)

    async def stamp(self, filesystem: Any) -> SourceStamp:
        """Size, ETag and time of the object now; empty when it does not exist.

        Raises
        ------
        AnswerError
            When the service cannot be asked.
        """
        return await asyncio.to_thread(self._stamp, filesystem)

    def _stamp(self, filesystem: Any) -> SourceStamp:
        try:
            filesystem.invalidate_cache()
            info = filesystem.info(self.url)
        except FileNotFoundError:
            return SourceStamp()
        except Exception as error:  # noqa: BLE001
            problem = type(error).__name__
        else:
            etag, modified = info.get("etag"), info.get("mtime") or info.get("last_modified") or info.get("created")
            found = SourceStamp(
                size=info.get("size"),
                etag=None if etag is None else str(etag).strip('"'),
                modified_at=int(modified.timestamp()) * SECOND if isinstance(modified, datetime) else None,
            )
            self._looks[:] = [found]
            return found
        raise _failure(problem)


def _failure(name: str) -> AnswerError:
    return AnswerError(f"could not be fetched: {name}; check the network and what was authorised for it")
