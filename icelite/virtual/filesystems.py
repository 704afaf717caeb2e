"""Reading objects of Google Cloud Storage and Azure through the fsspec package for them, which must be installed.

Size and ETag are asked once for each source, before its first bytes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from icelite.types import SourceStamp
from icelite.virtual.source import AnswerError
from icelite.virtual.stamps import SECOND

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
            problem = f"needs the package {PACKAGES.get(scheme, scheme)!r}: pip install {PACKAGES.get(scheme, scheme)}"
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
