"""What every kind of source promises, and the errors of all of them."""

from __future__ import annotations

from typing import Protocol

from icelite.errors import ErrorKind, StorageError
from icelite.types import SourceStamp
from icelite.virtual.stamps import Stamped, describe


class AnswerError(Exception):
    """What a service's answer was, in words that hold nothing secret.

    Attributes
    ----------
    status
        The HTTP status; None when no service answered.
    """

    def __init__(self, problem: str, status: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = status


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


def fetch_error(
    chunk: str | None, url: str, problem: str, kind: ErrorKind = ErrorKind.VIRTUAL_CHUNK_FETCH
) -> StorageError:
    """The error for bytes that cannot be had: the chunk (if it is about one), the source, the problem and a remedy."""
    subject = f"virtual reference {url!r}" if chunk is None else f"chunk {chunk!r}: its source {url!r}"
    return StorageError(f"{subject} {problem}", kind)


def modified_error(chunk: str | None, url: str, recorded: Stamped, found: Stamped) -> StorageError:
    """The error for a source that is no longer the one that was referenced."""
    return fetch_error(
        chunk,
        url,
        f"changed since it was referenced: recorded {describe(recorded)}, found {describe(found)};"
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
