"""Reading files of web servers by range, through aiohttp on fsspec's event loop.

A redirect is followed only to where the prefix covers it, and every reply is checked to be the range asked for.
Errors name the URL without its query, and of what a server wrote only numbers.
"""

from __future__ import annotations

import asyncio
import os
import re
import weakref
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from icelite.types import Location, SourceStamp
from icelite.virtual.clients import run, run_async
from icelite.virtual.source import fetch_error, is_changed, modified_error, range_error

ATTEMPTS = 3
MAX_REDIRECTS = 5
CONNECT_SECONDS, READ_SECONDS = 10, 60
SECOND = 1_000_000_000
_VERBATIM = "/:?[]@!$&'()*+,;=~%-._"  # what a URL may hold as it is; '#' is part of a name here
_AGAIN = (429, 500, 502, 503, 504)


class _Sessions:
    """aiohttp's session of this process, made on fsspec's loop at the first request."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._session: Any = None

    def lookup(self) -> Any:
        if self._session is None or self._session.closed:
            from aiohttp import ClientSession, ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
            self._session = ClientSession(timeout=timeout, trust_env=True, auto_decompress=False)
            weakref.finalize(self, _close, self._session, asyncio.get_running_loop(), os.getpid())
        return self._session


def _close(session: Any, loop: asyncio.AbstractEventLoop, process: int) -> None:
    """Close connections when the program ends, so that nothing complains about them."""
    if os.getpid() == process and loop.is_running():
        asyncio.run_coroutine_threadsafe(session.close(), loop).result(CONNECT_SECONDS)


_sessions = _Sessions()
os.register_at_fork(after_in_child=_sessions.clear)  # connections and event loop stay with the parent


class WebError(Exception):
    """What a server's answer was, in words that hold nothing secret.

    Attributes
    ----------
    status
        The HTTP status; None when no server answered.
    """

    def __init__(self, problem: str, status: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = status


@dataclass(frozen=True, slots=True)
class WebObject:
    """One file of a web server and the way to it.

    Attributes
    ----------
    url
        How messages call it: without a query that may hold a signature.
    root
        Redirects must stay below this prefix.
    target
        What is requested.
    headers
        Sent with each request.
    """

    url: str
    root: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    attempts: int = ATTEMPTS

    @asynccontextmanager
    async def ask(self, method: str, headers: Mapping[str, str], accept: tuple[int, ...]) -> AsyncIterator[Any]:
        """The response to one request, sent again when the server fails; its body is not read yet.

        Raises
        ------
        WebError
            For a status not in ``accept``, a redirect out of the prefix, or no answer.
        """
        response = await self._send(method, {**dict(self.headers), "Accept-Encoding": "identity", **headers}, accept)
        try:
            yield response
        finally:
            response.release()  # closes the connection where some of the body was not read

    async def _send(self, method: str, headers: Mapping[str, str], accept: tuple[int, ...]) -> Any:
        failure = WebError("could not be fetched")
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(0.1 * 4**attempt)
            try:
                return await self._follow(method, headers, accept)
            except WebError as error:
                failure = error
                if error.status is not None and error.status not in _AGAIN:
                    break
        raise failure

    async def _follow(self, method: str, headers: Mapping[str, str], accept: tuple[int, ...]) -> Any:
        from aiohttp import ClientError
        from yarl import URL

        target = URL(self.target, encoded=True)
        for _ in range(MAX_REDIRECTS):
            name = None
            try:
                response = await _sessions.lookup().request(method, target, headers=headers, allow_redirects=False)
            except (TimeoutError, ClientError, OSError, ValueError) as error:
                name = type(error).__name__
            if name is not None:  # out here, the library's exception is not the context of this one
                raise WebError(f"could not be fetched: {name}; check the URL and the network")
            if response.status in accept:
                return response
            response.close()
            if response.status not in (301, 302, 303, 307, 308):
                raise WebError(_refusal(response.status), response.status)
            target = target.join(URL(response.headers.get("Location", "")))
            if not str(target).startswith(self.root) or target.user is not None:
                place = target.with_query(None).with_fragment(None).with_user(None)
                raise WebError(
                    f"redirects to '{place}', which is not below {self.root!r}: icelite follows no redirect out of"
                    " the prefix; use that URL instead if you trust it",
                    response.status,
                )
        raise WebError(f"redirects more than {MAX_REDIRECTS} times", 310)

    async def read_range(self, start: int, stop: int, *, version: str | None = None) -> tuple[SourceStamp, bytes]:
        """The file as it is now, and its bytes ``[start, stop)``, which may be fewer at the end of the file.

        Raises
        ------
        WebError
            With status 412 for another version than ``version``, 416 past the end, 200 when the server knows no ranges.
        """
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(0.1 * 4**attempt)
            async with self.ask("GET", headers, (200, 206)) as response:
                found = stamp_of(response)
                if version is not None and version_of(response) != version:
                    raise WebError("was replaced while it was read", 412)
                if response.status == 200 and not (start == 0 and found.size is not None and found.size <= stop):
                    raise WebError(
                        "is on a server that ignores range requests; serve it from one that knows them (HTTP 206), or"
                        " copy it",
                        200,
                    )
                if response.status == 206 and not _fits(response, start, stop):
                    raise WebError(f"was asked for bytes {start} to {stop} and the server sent others", 206)
                data = await read_body(response, stop - start)
            if data is not None:
                return found, data
        raise WebError(f"broke off while it was read, {self.attempts} times; check the network and try again")

    async def stamp(self) -> SourceStamp:
        """Size, ETag and time of the file now; empty when it does not exist.

        Raises
        ------
        WebError
            When the server cannot be asked.
        """
        async with self.ask("HEAD", {}, (200, 404, 410)) as response:
            return stamp_of(response) if response.status == 200 else SourceStamp()


async def read_body(response: Any, limit: int, *, cut: bool = False) -> bytes | None:
    """The body, which must have the announced length and no more than ``limit`` bytes; None when it broke off.

    Parameters
    ----------
    cut
        Only the first ``limit`` bytes are wanted.
    """
    from aiohttp import ClientError

    announced = response.content_length
    parts, size = [], 0
    try:
        async for part in response.content.iter_chunked(1 << 18):
            parts.append(part)
            size += len(part)
            if cut and size >= limit:
                return b"".join(parts)[:limit]
            if size > limit:
                raise WebError(f"sends more than the {limit} bytes it was asked for", response.status)
    except (TimeoutError, ClientError, OSError):
        return None
    return b"".join(parts) if announced is None or size == announced else None


def version_of(response: Any) -> str | None:
    """What tells versions of a file apart: the ETag with its quotes, else time and size; None without either."""
    etag: str | None = response.headers.get("ETag")
    if etag is not None:
        return etag
    found = stamp_of(response)
    return None if found.modified_at is None else f"{found.modified_at}-{found.size}"


def stamp_of(response: Any) -> SourceStamp:
    """What the headers of a response say about the whole file."""
    match = re.fullmatch(r"bytes \d+-\d+/(\d{1,19})", response.headers.get("Content-Range") or "")
    size = int(match[1]) if match else response.content_length if response.status == 200 else None
    try:
        modified = int(parsedate_to_datetime(response.headers["Last-Modified"]).timestamp()) * SECOND
    except (KeyError, ValueError, TypeError, OverflowError):
        modified = None
    return SourceStamp(size=size, etag=(response.headers.get("ETag") or "").strip('"') or None, modified_at=modified)


def _fits(response: Any, start: int, stop: int) -> bool:
    match = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", response.headers.get("Content-Range") or "")
    if match is None or int(match[1]) != start:
        return False
    return int(match[2]) + 1 == stop or (match[3] != "*" and int(match[2]) + 1 == int(match[3]) < stop)


def _refusal(status: int) -> str:
    if status in (404, 410):
        return f"does not exist, says the server: HTTP {status}; check the URL"
    if status in (401, 403):
        return f"was refused by the server: HTTP {status}; check the headers or the signature that it asks for"
    return f"was refused by the server: HTTP {status}"


def quoted(url: str) -> str:
    """A URL of a reference as it is requested: what cannot stand in one is percent-encoded."""
    return quote(url, safe=_VERBATIM)


def beside(base: str, path: str) -> str:
    """The URL of a file whose path, as a file system knows it, starts at a base URL."""
    return base + quote(path, safe="/~!$&'()*+,;=:@-._")


class WebSource:
    """One file of a web server; see `Source`.

    Parameters
    ----------
    check_time
        Whether the modification time (whole seconds) counts.
    """

    is_local = False

    def __init__(self, location: Location, target: WebObject, *, check_time: bool) -> None:
        self._location = location
        self._object = target
        self._check_time = check_time

    def read(self, offset: int, length: int, chunk: str) -> bytes:
        """See `Source.read`."""
        return run(self._read(offset, length, chunk))

    async def read_async(self, offset: int, length: int, chunk: str) -> bytes:
        """See `Source.read_async`."""
        return await run_async(self._read(offset, length, chunk))

    def check(self, chunk: str | None) -> SourceStamp | None:
        """See `Source.check`."""
        found = run(self._translated(self._object.stamp(), chunk))
        if found == SourceStamp():
            return None
        self._compare(found, chunk)
        return found

    async def _read(self, offset: int, length: int, chunk: str) -> bytes:
        if offset < 0 or length <= 0:
            raise fetch_error(chunk, self._object.url, f"cannot have bytes {offset} to {offset + length}")
        try:
            found, data = await self._object.read_range(offset, offset + length)
        except WebError as error:
            status, problem = error.status, error.problem
        else:
            self._compare(found, chunk)
            if len(data) != length:
                raise range_error(chunk, self._object.url, offset, length, found.size or offset + len(data))
            return data
        if status == 416:  # the file changed, or the reference is wrong
            found = await self._translated(self._object.stamp(), chunk)
            self._compare(found, chunk)
            raise range_error(chunk, self._object.url, offset, length, found.size or 0)
        raise fetch_error(chunk, self._object.url, problem)

    async def _translated(self, asking: Coroutine[Any, Any, SourceStamp], chunk: str | None) -> SourceStamp:
        try:
            return await asking
        except WebError as error:
            problem = error.problem
        raise fetch_error(chunk, self._object.url, problem)

    def _compare(self, found: SourceStamp, chunk: str | None) -> None:
        if is_changed(found, self._location, check_time=self._check_time, resolution=SECOND):
            raise modified_error(chunk, self._object.url, self._location, found)
