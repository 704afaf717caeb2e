"""The way to a remote source: which client reads a URL of which scheme, and with what.

Where a request goes and how it is signed comes from the caller: from an authorisation, or for what lies beside a
remote catalog from that catalog's own place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from icelite.credentials import AnyCredential, AnyS3Credential, FilesystemAccess, S3Credentials, S3Options, WebAccess
from icelite.storage import AnyObjectStoreConfig, ObjectStoreConfig, RemotePlace, S3Place
from icelite.types import Location, SourceStamp
from icelite.virtual.clients import client_for, run
from icelite.virtual.filesystems import FilesystemObject, FilesystemSource
from icelite.virtual.s3 import S3Object, S3Source
from icelite.virtual.source import Source, fetch_error
from icelite.virtual.urls import bucket_and_key, relative_path
from icelite.virtual.web import ATTEMPTS, WebError, WebObject, WebSource, beside, quoted

Target = S3Object | WebObject | FilesystemObject

_STAMPS_AT_ONCE = 32
_STAMPS_A_RUN = 1_024  # keys that expire are renewed between runs


def reach(url: str, prefix: str, credential: AnyCredential | None, store: AnyObjectStoreConfig | None) -> Target:
    """The object at an absolute URL, reached with what was authorised for a prefix of it."""
    if url.startswith("s3://"):
        bucket, key = bucket_and_key(url)
        local = store is None or isinstance(store, ObjectStoreConfig.LocalFileSystem)
        options = S3Options() if store is None or local else getattr(store, "options", S3Options())
        chosen = credential if isinstance(credential, AnyS3Credential) else S3Credentials.FromEnv()
        return S3Object(bucket, key, url, prefix, client_for(chosen, options))
    if url.startswith(("https://", "http://")):
        headers = credential.headers if isinstance(credential, WebAccess) else ()
        return WebObject(url.partition("?")[0], prefix, quoted(url), headers)
    return FilesystemObject(url, credential.options if isinstance(credential, FilesystemAccess) else ())


def reach_beside(place: RemotePlace, path: str) -> Target:
    """The object at a path, checked before, that starts at a remote catalog's prefix; asked with its credentials."""
    if isinstance(place, S3Place):
        url = place.base + path
        bucket, key = bucket_and_key(url)
        return S3Object(bucket, key, url, None, client_for(place.credentials, place.options))
    url = beside(place.base, path)
    return WebObject(place.base + path, place.base, url, place.access.headers, place.max_attempts or ATTEMPTS)


def path_inside(place: RemotePlace, url: str) -> str | None:
    """The path of an absolute URL from a remote catalog's prefix, as `reach_beside` takes it; None outside.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref`` for a path that might leave the prefix.
    """
    if not url.startswith(place.base) or "?" in url:
        return None
    path = url.removeprefix(place.base)
    return relative_path(path if isinstance(place, S3Place) else unquote(path))


def open_target(location: Location, target: Target, *, check_time: bool) -> Source:
    """The source that reads a target."""
    if isinstance(target, S3Object):
        return S3Source(location, target, check_time=check_time)
    if isinstance(target, WebObject):
        return WebSource(location, target, check_time=check_time)
    return FilesystemSource(location, target, check_time=check_time)


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
        # connected here, not on the event loop: the caller's get_credentials may need that loop itself
        connected = [(t, t.client.filesystem() if isinstance(t, S3Object) else None) for t in batch]
        found.extend(run(_stamp_all(connected)))
    return found


async def _stamp_all(connected: Sequence[tuple[Target, Any]]) -> list[SourceStamp]:
    turnstile = asyncio.Semaphore(_STAMPS_AT_ONCE)

    async def ask(target: Target, filesystem: Any) -> SourceStamp:
        async with turnstile:
            if isinstance(target, S3Object):
                return await target.stamp(filesystem)
            if isinstance(target, FilesystemObject):
                return await asyncio.to_thread(target.stamp)
            return await _stamp_web(target)

    return await asyncio.gather(*(ask(*pair) for pair in connected))


async def _stamp_web(target: WebObject) -> SourceStamp:
    try:
        return await target.stamp()
    except WebError as error:
        problem = error.problem
    raise fetch_error(None, target.url, problem)
