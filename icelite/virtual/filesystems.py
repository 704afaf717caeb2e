"""Reading objects of Google Cloud Storage and Azure through the fsspec package for them, which must be installed.

Size and ETag are asked once for each source, before its first bytes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from icelite.errors import StorageError
from icelite.types import Location, SourceStamp
from icelite.virtual.source import fetch_error, is_changed, modified_error, range_error

SECOND = 1_000_000_000
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


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

    def connect(self, chunk: str | None) -> Any:
        """The filesystem; fsspec keeps one for each set of options.

        Raises
        ------
        StorageError
            ``virtual-chunk-fetch`` when its package is not installed, or refuses the options.
        """
        from fsspec import get_filesystem_class

        scheme = self.url.partition("://")[0]
        try:
            return get_filesystem_class(scheme)(**dict(self.options))
        except ImportError:
            problem = f"needs the package {PACKAGES.get(scheme, scheme)!r}: pip install {PACKAGES.get(scheme, scheme)}"
        except Exception as error:  # noqa: BLE001  # whatever that package raises; its message may hold a secret
            problem = f"cannot be reached with the options given: {type(error).__name__}"
        raise fetch_error(chunk, self.url, problem)

    def stamp(self, chunk: str | None = None) -> SourceStamp:
        """Size, ETag and time of the object now; empty when it does not exist; blocks.

        Raises
        ------
        StorageError
            ``virtual-chunk-fetch`` when the service cannot be asked.
        """
        filesystem = self.connect(chunk)
        try:
            filesystem.invalidate_cache()
            info = filesystem.info(self.url)
        except FileNotFoundError:
            return SourceStamp()
        except Exception as error:  # noqa: BLE001
            problem = type(error).__name__
        else:
            etag, modified = info.get("etag"), info.get("mtime") or info.get("last_modified") or info.get("created")
            return SourceStamp(
                size=info.get("size"),
                etag=None if etag is None else str(etag).strip('"'),
                modified_at=int(modified.timestamp()) * SECOND if isinstance(modified, datetime) else None,
            )
        raise self.failure(problem, chunk)

    def failure(self, name: str, chunk: str | None) -> StorageError:
        """The error for a request that failed with an exception of this name."""
        return fetch_error(
            chunk, self.url, f"could not be fetched: {name}; check the network and what was authorised for it"
        )


class FilesystemSource:
    """One object behind fsspec; see `Source`."""

    is_local = False

    def __init__(self, location: Location, target: FilesystemObject, *, check_time: bool) -> None:
        self._location = location
        self._object = target
        self._check_time = check_time
        self._found: SourceStamp | None = None

    def read(self, offset: int, length: int, chunk: str) -> bytes:
        """See `Source.read`."""
        url = self._object.url
        if self._found is None:
            self._found = self.check(chunk)
        if self._found is None:
            raise fetch_error(chunk, url, "does not exist; put the object back, or correct the reference")
        if offset < 0 or length <= 0 or offset + length > (self._found.size or 0):
            raise range_error(chunk, url, offset, length, self._found.size or 0)
        filesystem = self._object.connect(chunk)
        try:
            data: bytes = filesystem.cat_file(url, start=offset, end=offset + length)
        except Exception as error:  # noqa: BLE001  # whatever that package raises
            problem = type(error).__name__
        else:
            if len(data) == length:
                return data
            problem = f"{len(data)} bytes came of {length}"
        raise self._object.failure(problem, chunk)

    async def read_async(self, offset: int, length: int, chunk: str) -> bytes:
        """See `Source.read_async`."""
        return await asyncio.to_thread(self.read, offset, length, chunk)

    def check(self, chunk: str | None) -> SourceStamp | None:
        """See `Source.check`."""
        found = self._object.stamp(chunk)
        if found == SourceStamp():
            return None
        if is_changed(found, self._location, check_time=self._check_time, resolution=SECOND):
            raise modified_error(chunk, self._object.url, self._location, found)
        return found
