"""The way to a remote source: which client reads a URL of which scheme, and with what.

Where a request goes and how it is signed comes from the caller: from an authorisation, or for what lies beside a
remote catalog from that catalog's own address.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any, Protocol
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
from icelite.storage import AnyObjectStoreConfig, ObjectStoreConfig, RemoteAddress, S3Address
from icelite.types import ChunkType, Location, SourceStamp
from icelite.virtual.clients import client_for, run, run_async
from icelite.virtual.filesystems import FilesystemObject
from icelite.virtual.s3 import S3Object
from icelite.virtual.source import AnswerError, fetch_error, modified_error, range_error
from icelite.virtual.stamps import is_changed
from icelite.virtual.urls import bucket_and_key, relative_path
from icelite.virtual.web import ATTEMPTS, WebObject, beside, quoted


class Target(Protocol):
    """One remote file or object and the way to it.

    `connect` may ask the caller for keys, so it is called outside the event loop; the requests run on it. They raise
    `AnswerError`.
    """

    @property
    def url(self) -> str:
        """How messages call it."""
        ...

    def connect(self) -> Any:
        """What the requests are sent with."""
        ...

    def is_connected(self) -> bool:
        """Whether `connect` asks nobody."""
        ...

    async def read_range(self, way: Any, start: int, stop: int, /) -> tuple[SourceStamp, bytes]:
        """What it looks like now, and its bytes ``[start, stop)``, fewer at its end; status 416 past it."""
        ...

    async def stamp(self, way: Any, /) -> SourceStamp:
        """What it looks like now; empty when it does not exist."""
        ...


_STAMPS_AT_ONCE = 32
_STAMPS_A_RUN = 1_024  # keys that expire are renewed between runs
_NOWHERE = Location(ChunkType.virtual, "")  # of which nothing is recorded


def reach(url: str, prefix: str, credential: AnyCredential | None, store: AnyObjectStoreConfig | None) -> Target:
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


def reach_beside(address: RemoteAddress, path: str) -> Target:
    """The object at a path, checked before, that starts at a remote catalog's prefix; asked with its credentials."""
    if isinstance(address, S3Address):
        url = address.base + path
        bucket, key = bucket_and_key(url)
        return S3Object(bucket, key, url, None, client_for(address.credentials, address.options))
    url = beside(address.base, path)
    return WebObject(address.base + path, address.base, url, address.access, address.max_attempts or ATTEMPTS)


def path_inside(address: RemoteAddress, url: str) -> str | None:
    """The path of an absolute URL from a remote catalog's prefix, as `reach_beside` takes it; None outside.

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
    """What the targets look like now, several asked at once; empty stamps for those that do not exist; blocks.

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
