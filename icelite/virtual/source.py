"""The promises of every kind of source, the way its requests are run, and the errors of all of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, NamedTuple, Protocol, TypeVar

from icelite.errors import ErrorKind, InternalError, StorageError, shown
from icelite.types import SourceStamp
from icelite.virtual.stamps import Stamped, describe

T = TypeVar("T")


class AnswerError(Exception):
    """An answer of a service that is no success, in words that hold nothing secret.

    Attributes
    ----------
    status
        The HTTP status; None when no service answered.
    """

    def __init__(self, problem: str, status: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = status


class ContentRange(NamedTuple):
    """The half-open range of bytes that a response carries, and the size of the whole, None where it is not told."""

    start: int
    stop: int
    size: int | None


def parse_content_range(header: str | None) -> ContentRange | None:
    """The value of a ``Content-Range`` header (RFC 9110, section 14.4); None where there is none of bytes."""
    match = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", header or "")
    if match is None:
        return None
    return ContentRange(int(match[1]), int(match[2]) + 1, None if match[3] == "*" else int(match[3]))


class Target(Protocol):
    """One remote file or object and the way to it.

    `connect` may ask the caller for keys, so it is called outside the event loop; the requests run on it. They raise
    `AnswerError`.
    """

    @property
    def url(self) -> str:
        """Its name in messages."""
        ...

    def connect(self) -> Any:
        """The means to send requests with."""
        ...

    def is_connected(self) -> bool:
        """Whether `connect` asks nobody."""
        ...

    async def read_range(self, way: Any, start: int, stop: int, /) -> tuple[SourceStamp, bytes]:
        """Its look now, and its bytes ``[start, stop)``, fewer at its end; status 416 past it."""
        ...

    async def stamp(self, way: Any, /) -> SourceStamp:
        """Its look now; empty when it does not exist."""
        ...


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
        """The look of the source now, if it is still the one that was referenced; None when it does not exist.

        No bytes of it are read; blocks.

        Raises
        ------
        StorageError
            ``virtual-chunk-modified`` when it is another one, ``virtual-chunk-fetch`` when it cannot be opened.
        """
        ...


def run(task: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of s3fs or aiohttp on fsspec's event loop and wait for it.

    Raises
    ------
    InternalError
        When called on that loop, which would wait for itself for ever.
    """
    from fsspec.asyn import get_loop

    loop = get_loop()
    try:
        waits_for_itself = asyncio.get_running_loop() is loop
    except RuntimeError:  # not on an event loop
        waits_for_itself = False
    if waits_for_itself:
        task.close()
        raise InternalError("a remote catalog or source was read in a blocking way on fsspec's own event loop")
    return asyncio.run_coroutine_threadsafe(task, loop).result()


async def run_async(task: Coroutine[Any, Any, T]) -> T:
    """`run` without blocking the running event loop."""
    from fsspec.asyn import get_loop

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(task, get_loop()))


def fetch_error(
    chunk: str | None, url: str, problem: str, kind: ErrorKind = ErrorKind.VIRTUAL_CHUNK_FETCH
) -> StorageError:
    """The error for bytes that cannot be had: the chunk (if it is about one), the source, the problem and a remedy."""
    subject = f"virtual reference {shown(url)}" if chunk is None else f"chunk {shown(chunk)}: its source {shown(url)}"
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
