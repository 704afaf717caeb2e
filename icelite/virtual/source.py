"""What every kind of source promises, and the check that a source is still the one that was referenced."""

from __future__ import annotations

from typing import Protocol

from icelite.errors import ErrorKind, StorageError
from icelite.types import Location, SourceStamp

TIME_TOLERANCE = 1_000  # nanoseconds: Icechunk's checksums and Python's datetimes have microseconds


class Source(Protocol):
    """One opened file or object, past the gates. Safe to use from several threads at once.

    ``chunk`` is the chunk's key, for messages only.
    """

    is_local: bool

    def read(self, offset: int, length: int, chunk: str) -> bytes:
        """Exactly the bytes ``[offset, offset + length)``; blocks.

        Raises
        ------
        StorageError
            ``virtual-chunk-fetch`` when they cannot be had, ``virtual-chunk-modified`` when the source is no longer
            as recorded, ``invalid-object-size`` when it ends within the chunk.
        """
        ...

    async def read_async(self, offset: int, length: int, chunk: str) -> bytes:
        """`read` without blocking on the network; raises the same."""
        ...

    def check(self, chunk: str | None) -> SourceStamp | None:
        """What the source looks like now, if it is still the one that was referenced; None when it does not exist.

        No bytes of it are read; blocks.

        Raises
        ------
        StorageError
            ``virtual-chunk-modified`` when it is another one, ``virtual-chunk-fetch`` when it cannot be opened.
        """
        ...


def is_newer(found: int, location: Location, *, resolution: int) -> bool:
    """Whether a modification time contradicts the recorded one.

    With a recorded size the source was looked at when it was referenced, so the times must be equal, in units of
    ``resolution`` nanoseconds. Without, the time is a limit (Icechunk's ``checksum=datetime``): not modified after it.
    """
    recorded = location.modified_at
    if recorded is None:
        return False
    if location.size is not None:
        return found // resolution != recorded // resolution
    return found > recorded + TIME_TOLERANCE


def is_changed(found: SourceStamp, location: Location, *, check_time: bool, resolution: int) -> bool:
    """Whether a remote source is another one than was referenced, as far as that was recorded."""
    if location.size is not None and found.size != location.size:
        return True
    if location.etag is not None and found.etag != location.etag.strip('"'):
        return True
    if not check_time or location.modified_at is None:
        return False
    return found.modified_at is None or is_newer(found.modified_at, location, resolution=resolution)


def fetch_error(
    chunk: str | None, url: str, problem: str, kind: ErrorKind = ErrorKind.VIRTUAL_CHUNK_FETCH
) -> StorageError:
    """The error for bytes that cannot be had: the chunk (if it is about one), the source, the problem and a remedy."""
    subject = f"virtual reference {url!r}" if chunk is None else f"chunk {chunk!r}: its source {url!r}"
    return StorageError(f"{subject} {problem}", kind)


def modified_error(chunk: str | None, url: str, location: Location, found: SourceStamp) -> StorageError:
    """The error for a source that is no longer the one that was referenced."""
    return fetch_error(
        chunk,
        url,
        f"changed since it was referenced: recorded {_describe(location)}, found {_describe(found)};"
        " restore the file, or write its references again",
        ErrorKind.VIRTUAL_CHUNK_MODIFIED,
    )


def range_error(chunk: str, url: str, offset: int, length: int, size: int) -> StorageError:
    """The error for a chunk that reaches past its source's end."""
    kind = ErrorKind.INVALID_OBJECT_SIZE if 0 <= offset < size else ErrorKind.VIRTUAL_CHUNK_FETCH
    return fetch_error(
        chunk,
        url,
        f"has {size} bytes, the chunk is said to be bytes {offset} to {offset + length}: the file was cut short or"
        " replaced, or the reference is wrong",
        kind,
    )


def _describe(stamp: Location | SourceStamp) -> str:
    parts = {
        "size": stamp.size,
        "ETag": stamp.etag,
        "modification time": None if stamp.modified_at is None else f"{stamp.modified_at} ns",
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None) or "nothing"
