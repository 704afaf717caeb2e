"""One file (or directory) to parse: how its first bytes are read, and what it looks like at that moment.

URLs are kept verbatim, as icelite's references are: a local path becomes ``file://`` and the path, nothing is
percent-encoded. Local files are read with the operating system, others through the caller's registry of object
stores (or an fsspec filesystem, which is enough to tell a format).
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from icelite.errors import ErrorKind, InvalidInputError, StorageError
from icelite.types import SourceStamp

if TYPE_CHECKING:
    from obspec_utils.registry import ObjectStoreRegistry

_SECOND = 1_000_000_000


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
        Object stores by URL prefix.
    filesystem
        An fsspec filesystem, to be asked instead of the registry.
    """

    url: str
    path: str | None
    registry: ObjectStoreRegistry[Any] | None = None
    filesystem: Any = None

    @classmethod
    def locate(
        cls,
        url_or_path: str | os.PathLike[str],
        *,
        registry: ObjectStoreRegistry[Any] | None = None,
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
            if self.registry is None:
                return SourceStamp()
            found = self._store().head(self._key())
        except (OSError, ValueError) as error:
            raise self.unreadable(error) from error
        etag = (found.get("e_tag") or "").strip('"') or None
        seconds = int(found["last_modified"].timestamp())
        return SourceStamp(size=int(found["size"]), etag=etag, modified_at=seconds * _SECOND)

    def is_directory(self) -> bool:
        """Whether it is a directory, or a prefix of objects; an object store is asked for the one object first."""
        if self.path is not None:
            return os.path.isdir(self.path)
        if self.filesystem is not None:
            return bool(self.filesystem.isdir(self.url))
        try:
            self._store().head(self._key())
        except FileNotFoundError:
            return any(self.has(name) for name in ("zarr.json", ".zgroup", ".zarray", ".zmetadata"))
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
        except (OSError, ValueError) as error:
            raise self.unreadable(error) from error

    def open(self) -> BinaryIO:
        """The file as a stream that can be sought."""
        if self.path is not None:
            return open(self.path, "rb")
        if self.filesystem is not None:
            return cast(BinaryIO, self.filesystem.open(self.url, "rb"))
        from obspec_utils.readers import BlockStoreReader

        return cast(BinaryIO, io.BufferedReader(_Reader(BlockStoreReader(self._store(), self._key()))))

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
    def stores(self) -> ObjectStoreRegistry[Any]:
        """The registry, of a source that has one."""
        assert self.registry is not None
        return self.registry

    def _store(self) -> Any:
        return self.stores.resolve(self.url)[0]

    def _key(self) -> str:
        return str(self.stores.resolve(self.url)[1])


class _Reader(io.RawIOBase):
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


def describe(error: BaseException | str) -> str:
    """An error of a library in one line."""
    if isinstance(error, str):
        return error
    lines = str(error).strip().splitlines()
    return f"{lines[0]} ({type(error).__name__})" if lines else type(error).__name__
