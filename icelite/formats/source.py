"""One file (or directory) to parse: how its first bytes are read, and what it looks like at that moment.

URLs are kept verbatim, as icelite's references are: a local path becomes ``file://`` and the path, nothing is
percent-encoded. Local files are read with the operating system, others as chunks are (`icelite.virtual.remote`),
through object stores of the caller's own, or through an fsspec filesystem, which is enough to tell a format.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from icelite.errors import ErrorKind, IceliteError, InvalidInputError, StorageError
from icelite.types import SourceStamp
from icelite.virtual.remote import FileReader, FileReaders
from icelite.virtual.s3 import S3Object
from icelite.virtual.stamps import SECOND

if TYPE_CHECKING:
    from obspec_utils.registry import ObjectStoreRegistry

Registry = Any  # an `ObjectStoreRegistry`, or something else that resolves a URL to a store and a path
_KEYS_FOR = timedelta(minutes=5)  # then they are asked for again
_STORE_MARKS = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to parse.

    Attributes
    ----------
    url
        As references to it will be written.
    path
        The same as a path, for a local file; else None.
    registry
        Readers of remote files, or the caller's object stores by URL prefix.
    filesystem
        An fsspec filesystem, to be asked instead of the registry.
    """

    url: str
    path: str | None
    registry: FileReaders | ObjectStoreRegistry[Any] | None = None
    filesystem: Any = None

    @classmethod
    def locate(
        cls,
        url_or_path: str | os.PathLike[str],
        *,
        registry: FileReaders | ObjectStoreRegistry[Any] | None = None,
        filesystem: Any = None,
    ) -> SourceFile:
        """The file at a URL or path.

        Raises
        ------
        InvalidInputError
            ``invalid-argument`` for a URL that is not local when there is nothing to read it with.
        """
        text = os.fspath(url_or_path)
        scheme, mark, rest = text.partition("://")
        if mark and scheme != "file":
            if registry is None and filesystem is None:
                raise InvalidInputError(
                    f"{text!r} is not a local file: pass registry= with an object store for it, such as"
                    " ObjectStoreRegistry({'s3://bucket': obstore.store.S3Store('bucket', ...)})",
                    ErrorKind.INVALID_ARGUMENT,
                )
            return cls(text, None, registry, filesystem)
        path = os.path.abspath(rest if mark else text)
        return cls("file://" + path, path, registry, filesystem if mark else None)

    def stamp(self) -> SourceStamp:
        """What it looks like now; empty for a directory.

        Raises
        ------
        StorageError
            ``unreadable-source``.
        """
        try:
            if self.path is not None:
                status = os.stat(self.path)
                if os.path.isdir(self.path):
                    return SourceStamp()
                return SourceStamp(size=status.st_size, modified_at=status.st_mtime_ns)
            if self.filesystem is not None or self.registry is None:
                return SourceStamp()
            if self._reader is not None:
                return SourceStamp() if self.is_directory() else self._reader.stamp()
            found = self._store().head(self._key())
        except IceliteError:
            raise
        except (OSError, ValueError) as error:
            raise self.unreadable(error) from error
        etag = (found.get("e_tag") or "").strip('"') or None
        seconds = int(found["last_modified"].timestamp())
        return SourceStamp(size=int(found["size"]), etag=etag, modified_at=seconds * SECOND)

    @property
    def _reader(self) -> FileReader | None:
        if self.path is not None or self.filesystem is not None or not isinstance(self.registry, FileReaders):
            return None
        return self.registry.lookup(self.url)

    def is_directory(self) -> bool:
        """Whether it is a directory, or a prefix of objects; an object store is asked for the one object first."""
        if self.path is not None:
            return os.path.isdir(self.path)
        if self.filesystem is not None:
            return bool(self.filesystem.isdir(self.url))
        try:
            if self._reader is not None:
                self._reader.stamp()
            else:
                self._store().head(self._key())
        except FileNotFoundError:
            return any(self.has(name) for name in _STORE_MARKS)
        except IceliteError:
            raise
        except (OSError, ValueError) as error:
            raise self.unreadable(error) from error
        return False

    def has(self, name: str) -> bool:
        """Whether the directory holds a file of that name."""
        if self.path is not None:
            return os.path.exists(os.path.join(self.path, name))
        if self.filesystem is not None:
            return bool(self.filesystem.exists(f"{self.url.rstrip('/')}/{name}"))
        try:
            if isinstance(self.registry, FileReaders):
                self.registry.lookup(f"{self.url.rstrip('/')}/{name}").stamp()
            else:
                self._store().head(f"{self._key().rstrip('/')}/{name}")
        except (OSError, ValueError):
            return False
        return True

    def read(self, start: int, length: int | None) -> bytes:
        """At most ``length`` bytes from ``start``; fewer at the end of the file, None for the rest of it.

        Raises
        ------
        StorageError
            ``unreadable-source``.
        """
        try:
            with self.open() as stream:
                stream.seek(start)
                return stream.read(-1 if length is None else length)
        except IceliteError:
            raise
        except (OSError, ValueError) as error:
            raise self.unreadable(error) from error

    def open(self) -> BinaryIO:
        """The file as a stream that can be sought."""
        if self.path is not None:
            return open(self.path, "rb")
        if self.filesystem is not None:
            return cast(BinaryIO, self.filesystem.open(self.url, "rb"))
        if self._reader is not None:
            return cast(BinaryIO, io.BufferedReader(_Stream(self._reader)))
        from obspec_utils.readers import BlockStoreReader

        return cast(BinaryIO, io.BufferedReader(_StoreStream(BlockStoreReader(self._store(), self._key()))))

    def unreadable(self, error: BaseException | str) -> StorageError:
        """The error for a file that cannot be opened or read."""
        if isinstance(error, FileNotFoundError):
            problem = "does not exist"
        elif isinstance(error, PermissionError):
            problem = "may not be read: permission denied"
        else:
            problem = f"cannot be read: {describe(error)}"
        return StorageError(f"source {self.url!r} {problem}", ErrorKind.UNREADABLE_SOURCE)

    @property
    def stores(self) -> Registry:
        """What VirtualiZarr's parsers of files, and what they return, read with."""
        if self.path is None and self.registry is not None and not isinstance(self.registry, FileReaders):
            return self.registry
        return FileStores(self.registry)

    @property
    def directory_stores(self) -> ObjectStoreRegistry[Any]:
        """What VirtualiZarr's parser of Zarr directories lists and reads with, which must be obstore's own."""
        from obspec_utils.registry import ObjectStoreRegistry
        from obstore.store import LocalStore

        if self.path is not None:
            return ObjectStoreRegistry({"file://": LocalStore()})
        if not isinstance(self.registry, FileReaders):
            assert self.registry is not None
            return self.registry
        target = self.registry.lookup_target(self.url)
        if not isinstance(target, S3Object):
            raise self.unreadable("is a directory on a server that lists none: pass registry= with an object store")
        return ObjectStoreRegistry({f"s3://{target.bucket}": _bucket_store(target)})

    def _store(self) -> Any:
        return self._given.resolve(self.url)[0]

    def _key(self) -> str:
        return str(self._given.resolve(self.url)[1])

    @property
    def _given(self) -> Any:
        assert self.registry is not None
        return self.registry


class _StoreStream(io.RawIOBase):
    """An obspec reader as Python's own streams are."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())

    def readinto(self, buffer: Any) -> int:
        data = self._reader.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Stream(io.RawIOBase):
    """A remote file as Python's own streams are."""

    def __init__(self, reader: FileReader) -> None:
        self._reader = reader
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._reader.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._reader.read(self._at, self._at + len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class FileStores:
    """Files by URL for VirtualiZarr: resolves each URL, verbatim, to a store that holds that one file."""

    def __init__(self, readers: Any) -> None:
        self._readers = readers

    def resolve(self, url: str) -> tuple[FileStore, str]:
        """The store of a file, and a path that it does not look at."""
        return FileStore(SourceFile.locate(url, registry=self._readers)), "file"


class FileStore:
    """One file in the form of an object store: what parsers ask of obspec's protocols (https://obspec.dev)."""

    def __init__(self, source: SourceFile) -> None:
        self._source = source

    def head(self, path: str) -> dict[str, Any]:
        """Size, time and ETag."""
        stamp = self._source.stamp()
        time = datetime.fromtimestamp((stamp.modified_at or 0) / SECOND, UTC)
        return {"path": path, "size": stamp.size, "e_tag": stamp.etag, "last_modified": time, "version": None}

    def get(self, path: str, *, options: Any = None) -> StoredFile:
        """The whole file."""
        return StoredFile(self.head(path), self._source.read(0, None))

    def get_range(self, path: str, *, start: int, end: int | None = None, length: int | None = None) -> bytes:
        """The bytes ``[start, end)``."""
        return self._source.read(start, length if end is None else end - start)

    def get_ranges(
        self,
        path: str,
        *,
        starts: Sequence[int],
        ends: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> list[bytes]:
        """Several ranges."""
        sizes = lengths if ends is None else [end - start for start, end in zip(starts, ends, strict=True)]
        return [self._source.read(start, size) for start, size in zip(starts, sizes or (), strict=True)]

    async def head_async(self, path: str) -> dict[str, Any]:
        """As `head`."""
        return await asyncio.to_thread(self.head, path)

    async def get_async(self, path: str, *, options: Any = None) -> StoredFile:
        """As `get`."""
        return await asyncio.to_thread(self.get, path)

    async def get_range_async(
        self, path: str, *, start: int, end: int | None = None, length: int | None = None
    ) -> bytes:
        """As `get_range`."""
        return await asyncio.to_thread(self.get_range, path, start=start, end=end, length=length)

    async def get_ranges_async(
        self,
        path: str,
        *,
        starts: Sequence[int],
        ends: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> list[bytes]:
        """As `get_ranges`."""
        return await asyncio.to_thread(self.get_ranges, path, starts=starts, ends=ends, lengths=lengths)


class StoredFile:
    """A whole file as an object store gives it."""

    def __init__(self, meta: dict[str, Any], data: bytes) -> None:
        self.meta = meta
        self.attributes: dict[str, Any] = {}
        self.range = (0, len(data))
        self._data = data

    def buffer(self) -> bytes:
        """The bytes, as obspec has it."""
        return self._data

    async def buffer_async(self) -> bytes:
        """As `buffer`."""
        return self._data

    bytes = buffer  # as obstore has it
    bytes_async = buffer_async


def _bucket_store(target: S3Object) -> Any:
    """Obstore's way to a bucket, with the keys, the endpoint and the region that s3fs has worked out."""
    from obstore.store import S3Store

    found = target.settings()
    options: dict[str, Any] = {
        "region": found.region,
        "endpoint": found.endpoint,
        "virtual_hosted_style_request": False,
        "client_options": {"allow_http": True, "timeout": f"{found.seconds} seconds"},
    }
    if found.keys is None:
        return S3Store(target.bucket, skip_signature=True, **options)

    def provide() -> Any:  # instead of whatever the environment holds
        keys = target.settings().keys
        assert keys is not None
        expires_at = datetime.now(UTC) + _KEYS_FOR
        return {"access_key_id": keys[0], "secret_access_key": keys[1], "token": keys[2], "expires_at": expires_at}

    if target.client.options.requester_pays:
        options["request_payer"] = True
    return S3Store(target.bucket, credential_provider=provide, **options)


def describe(error: BaseException | str) -> str:
    """An error of a library in one line."""
    if isinstance(error, str):
        return error
    lines = str(error).strip().splitlines()
    return f"{lines[0]} ({type(error).__name__})" if lines else type(error).__name__
