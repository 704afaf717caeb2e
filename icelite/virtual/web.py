"""Reading files of web servers by range, through aiohttp on fsspec's event loop.

A redirect is followed only to where the prefix covers it or the caller names the host, which gets none of the caller's
headers; every reply is checked to be the range asked for. A server that knows no ranges costs one bounded copy a file.
Errors name the URL without its query, and of what a server wrote only numbers.
"""

from __future__ import annotations

import asyncio
import base64
import netrc
import os
import tempfile
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

from icelite.credentials import HttpAccess, WebAccess
from icelite.retry import ATTEMPTS, Patience
from icelite.types import SourceStamp
from icelite.virtual.local import Descriptor
from icelite.virtual.source import AnswerError, parse_content_range
from icelite.virtual.stamps import SECOND, is_changed

MAX_REDIRECTS = 10  # a login takes four
CONNECT_SECONDS, READ_SECONDS = 10, 60
MOST_KEPT = 8  # copies of files
FRESH_SECONDS = 30.0  # a copy is not asked after for so long
_VERBATIM = "/:?[]@!$&'()*+,;=~%-._"  # what a URL may hold as it is; '#' is part of a name here
_AGAIN = (429, 500, 502, 503, 504)


class _Sessions:
    """aiohttp's sessions of this process, made on fsspec's loop at the first request.

    Requests with a login keep the cookies that it leads to, apart from all others.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._sessions: dict[WebAccess | None, Any] = {}

    def lookup(self, access: WebAccess) -> Any:
        login = access if access.redirects else None
        session = self._sessions.get(login)
        if session is None or session.closed:
            from aiohttp import ClientSession, ClientTimeout, CookieJar, DummyCookieJar

            timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
            jar = DummyCookieJar() if login is None else CookieJar()
            session = self._sessions[login] = ClientSession(timeout=timeout, auto_decompress=False, cookie_jar=jar)
            weakref.finalize(self, _close, session, asyncio.get_running_loop(), os.getpid())
        return session


def _close(session: Any, loop: asyncio.AbstractEventLoop, process: int) -> None:
    """Close connections when the program ends, so that nothing complains about them."""
    if os.getpid() == process and loop.is_running():
        asyncio.run_coroutine_threadsafe(session.close(), loop).result(CONNECT_SECONDS)


_sessions = _Sessions()
os.register_at_fork(after_in_child=_sessions.clear)  # connections and event loop stay with the parent


@dataclass(frozen=True, slots=True)
class WebObject:
    """One file of a web server and the way to it.

    Attributes
    ----------
    url
        How messages call it: without a query that may hold a signature.
    root
        Redirects must stay below this prefix, or one that the caller named for them.
    target
        What is requested.
    """

    url: str
    root: str
    target: str
    access: WebAccess = HttpAccess
    attempts: int = ATTEMPTS

    def connect(self) -> Mapping[str, str]:
        """The headers to send; may call the caller's function for them."""
        return self.access.current_headers()

    def is_connected(self) -> bool:
        """Whether `connect` asks nobody."""
        return self.access.get_headers is None

    @asynccontextmanager
    async def ask(
        self, method: str, given: Mapping[str, str], headers: Mapping[str, str], accept: tuple[int, ...]
    ) -> AsyncIterator[Any]:
        """The response to one request, sent again when the server fails; its body is not read yet.

        Parameters
        ----------
        given
            As `connect` gives them.

        Raises
        ------
        AnswerError
            For a status not in ``accept``, a redirect out of the prefix, or no answer.
        """
        response = await self._send(method, given, {"Accept-Encoding": "identity", **headers}, accept)
        try:
            yield response
        finally:
            response.release()  # closes the connection where some of the body was not read

    async def _send(
        self, method: str, given: Mapping[str, str], headers: Mapping[str, str], accept: tuple[int, ...]
    ) -> Any:
        refreshed = False
        async for is_last in Patience(self.attempts).tries_async():
            try:
                try:
                    return await self._follow(method, given, headers, accept)
                except AnswerError as error:
                    if error.status != 401 or self.access.get_headers is None or refreshed:
                        raise
                    refreshed = True
                given = await asyncio.to_thread(self.access.renewed_headers, given)
                return await self._follow(method, given, headers, accept)
            except AnswerError as error:
                if is_last or (error.status is not None and error.status not in _AGAIN):
                    raise
        raise AssertionError("the last try returns or raises")

    async def _follow(
        self, method: str, given: Mapping[str, str], headers: Mapping[str, str], accept: tuple[int, ...]
    ) -> Any:
        from aiohttp import ClientError
        from yarl import URL

        session = _sessions.lookup(self.access)
        target = URL(self.target, encoded=True)
        for _ in range(MAX_REDIRECTS):
            own = given if self._is_inside(str(target)) else {}  # nobody else gets the caller's headers
            name = None
            try:
                way = await _way_to(target, {**own, **headers})
                response = await session.request(method, target, allow_redirects=False, **way)
            except (TimeoutError, ClientError, OSError, ValueError) as error:
                name = type(error).__name__
            if name is not None:  # out here, the library's exception is not the context of this one
                raise AnswerError(f"could not be fetched: {name}; check the URL and the network")
            if response.status in accept:
                return response
            response.close()
            if response.status not in (301, 302, 303, 307, 308):
                raise AnswerError(_refusal(response.status), response.status)
            try:
                target = target.join(URL(response.headers.get("Location", ""), encoded=True))
            except ValueError:
                raise AnswerError("redirects to something that is no URL", response.status) from None
            self._check_redirect(target, response.status)
        raise AnswerError(f"redirects more than {MAX_REDIRECTS} times", 310)

    def _is_inside(self, target: str) -> bool:
        return target == self.target or target.startswith(self.root)

    def _check_redirect(self, target: Any, status: int) -> None:
        allowed = self._is_inside(str(target)) or str(target).startswith(tuple(self.access.redirects))
        if not allowed or target.user is not None:
            shown = target.with_query(None).with_fragment(None).with_user(None)
            host = shown.origin() if shown.is_absolute() else shown
            raise AnswerError(
                f"redirects to '{shown}', which is not below {self.root!r}: icelite follows a redirect out of the"
                f" prefix only to hosts that you name, as in icelite.http_access(redirects=['{host}/'])",
                status,
            )

    async def read_range(
        self, given: Mapping[str, str], start: int, stop: int, *, version: str | None = None
    ) -> tuple[SourceStamp, bytes]:
        """The file as it is now, and its bytes ``[start, stop)``, which may be fewer at the end of the file.

        A server that knows no ranges sends all of it, which is kept for the next call.

        Raises
        ------
        AnswerError
            With status 412 for another version than ``version``, 416 past the end, 200 when the server knows no ranges
            and the file is too large to be kept.
        """
        if self._origin in copies.ranged:
            return await self._read_range(given, start, stop, version)
        async with copies.turn(self):  # or many readers at once would each be sent the whole file
            return await self._read_range(given, start, stop, version)

    @property
    def _origin(self) -> str:
        return "/".join(self.target.split("/", 3)[:3])

    async def _read_range(
        self, given: Mapping[str, str], start: int, stop: int, version: str | None
    ) -> tuple[SourceStamp, bytes]:
        kept = await copies.find(self, given)
        if kept is not None and version in (None, kept.version):
            return kept.stamp, kept.read(start, stop)
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        async for _ in Patience(self.attempts).tries_async():
            async with self.ask("GET", given, headers, (200, 206)) as response:
                found = stamp_of(response)
                if version is not None and version_of(response) != version:
                    raise AnswerError("was replaced while it was read", 412)
                if response.status == 200 and not (start == 0 and found.size is not None and found.size <= stop):
                    kept = await copies.keep(self, response)
                    if kept is not None:
                        return kept.stamp, kept.read(start, stop)
                    continue
                if response.status == 206:
                    copies.ranged.add(self._origin)
                    if not _fits(response, start, stop):
                        raise AnswerError(f"was asked for bytes {start} to {stop} and the server sent others", 206)
                data = await read_body(response, stop - start)
            if data is not None:
                return found, data
        raise AnswerError(f"broke off while it was read, {self.attempts} times; check the network and try again")

    async def stamp(self, given: Mapping[str, str]) -> SourceStamp:
        """Size, ETag and time of the file now; empty when it does not exist.

        A server that refuses HEAD, as for a URL that was signed for GET, is asked for one byte.

        Raises
        ------
        AnswerError
            When the server cannot be asked.
        """
        try:
            async with self.ask("HEAD", given, {}, (200, 404, 410)) as response:
                found = stamp_of(response)
                if response.status != 200:
                    return SourceStamp()
                if found != SourceStamp():
                    return found
        except AnswerError as error:
            if error.status not in (400, 401, 403, 405, 501):
                raise
        return await self._stamp_by_get(given)

    async def _stamp_by_get(self, given: Mapping[str, str]) -> SourceStamp:
        async with self.ask("GET", given, {"Range": "bytes=0-0"}, (200, 206, 404, 410, 416)) as response:
            return SourceStamp() if response.status in (404, 410) else stamp_of(response)


async def _way_to(target: Any, headers: Mapping[str, str]) -> dict[str, Any]:
    """The proxy and the login for a host, as the environment and ``~/.netrc`` have them.

    aiohttp would find both by itself, but refuses a request that has a token and a login.
    """
    from yarl import URL

    way: dict[str, Any] = {"headers": dict(headers)}
    proxy = None if proxy_bypass(target.host or "") else getproxies().get(target.scheme)
    if proxy is not None:
        found = URL(proxy)
        way["proxy"] = found.with_user(None)
        if found.user is not None:
            way["proxy_headers"] = {"Proxy-Authorization": _basic(found.user, found.password or "")}
    if not any(name.lower() == "authorization" for name in headers):
        login = await asyncio.to_thread(_find_login, target.host or "")
        if login is not None:
            way["headers"]["Authorization"] = _basic(*login)
    return way


def _basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def _find_login(host: str) -> tuple[str, str] | None:
    """Name and password for a host in the caller's netrc file."""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        found = netrc.netrc(path).hosts.get(host)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):  # there is none that can be read
        return None
    return None if found is None else (found[0], found[2] or "")


class KeptCopy:
    """All of a file whose server knows no ranges, on this machine until it is forgotten."""

    def __init__(self, stamp: SourceStamp, version: str | None) -> None:
        self.stamp = stamp
        self.version = version
        self.checked_at = time.monotonic()
        number, name = tempfile.mkstemp(prefix="icelite-")
        os.unlink(name)
        self._file = Descriptor(number)

    def append(self, data: bytes) -> None:
        """Add to what is here."""
        with memoryview(data) as rest:
            done = 0
            while done < len(data):
                done += os.write(self._file.number, rest[done:])

    def read(self, start: int, stop: int) -> bytes:
        """Its bytes ``[start, stop)``, fewer at its end.

        Raises
        ------
        AnswerError
            With status 416 for a range past the end.
        """
        if start >= (self.stamp.size or 0):
            raise AnswerError(f"has {self.stamp.size} bytes", 416)
        return os.pread(self._file.number, stop - start, start)


class KeptCopies:
    """The copies of files whose servers know no ranges: few, bounded, and asked after now and then.

    Attributes
    ----------
    ranged
        Servers that are known to give ranges.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget them all."""
        self.ranged: set[str] = set()
        self._kept: OrderedDict[WebObject, KeptCopy] = OrderedDict()
        self._turns: weakref.WeakValueDictionary[WebObject, asyncio.Lock] = weakref.WeakValueDictionary()

    def turn(self, target: WebObject) -> asyncio.Lock:
        """Lets one reader of a file ask its server at a time."""
        return self._turns.setdefault(target, asyncio.Lock())

    async def find(self, target: WebObject, given: Mapping[str, str]) -> KeptCopy | None:
        """The copy of a file, if there is one and the file is still as it was."""
        kept = self._kept.get(target)
        if kept is None:
            return None
        if time.monotonic() - kept.checked_at > FRESH_SECONDS:
            if kept.version is None or is_changed(await target.stamp(given), kept.stamp):
                self._kept.pop(target, None)
                return None
            kept.checked_at = time.monotonic()
        self._kept.move_to_end(target)
        return kept

    async def keep(self, target: WebObject, response: Any) -> KeptCopy | None:
        """Copy the body of a response; None when it broke off.

        Raises
        ------
        AnswerError
            With status 200, when it is too large.
        """
        try:
            kept = KeptCopy(stamp_of(response), version_of(response))
        except OSError as error:
            raise AnswerError(f"could not be copied to the temporary folder: {error.strerror}") from None
        if not await self._fill(kept, response, target.access.copy_bytes):
            return None
        self._kept[target] = kept
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return kept

    async def _fill(self, kept: KeptCopy, response: Any, limit: int) -> bool:
        size = 0
        async for part in body_of(response):
            if part is None:
                return False
            size += len(part)
            if size > limit or (kept.stamp.size or 0) > limit:
                raise AnswerError(
                    f"is on a server that ignores range requests, and larger than the {limit / (1 << 20):g} MiB that"
                    " are copied of such a file: serve it from one that knows ranges (HTTP 206), or pass more"
                    " copy_bytes to icelite.http_access",
                    200,
                )
            try:
                kept.append(part)
            except OSError as error:
                raise AnswerError(f"could not be copied to the temporary folder: {error.strerror}") from None
        kept.stamp = replace(kept.stamp, size=size)
        return True


copies = KeptCopies()
os.register_at_fork(after_in_child=copies.clear)


async def read_body(response: Any, limit: int, *, cut: bool = False) -> bytes | None:
    """The body, which must have the announced length and no more than ``limit`` bytes; None when it broke off.

    Parameters
    ----------
    cut
        Only the first ``limit`` bytes are wanted.
    """
    parts, size = [], 0
    async for part in body_of(response):
        if part is None:
            return None
        parts.append(part)
        size += len(part)
        if cut and size >= limit:
            return b"".join(parts)[:limit]
        if size > limit:
            raise AnswerError(f"sends more than the {limit} bytes it was asked for", response.status)
    return b"".join(parts)


async def body_of(response: Any) -> AsyncIterator[bytes | None]:
    """The parts of a body; then None, if it broke off or has another length than was announced."""
    from aiohttp import ClientError

    announced, size = response.content_length, 0
    try:
        async for part in response.content.iter_chunked(1 << 18):
            size += len(part)
            yield part
    except (TimeoutError, ClientError, OSError):
        yield None
        return
    if announced is not None and size != announced:
        yield None


def version_of(response: Any) -> str | None:
    """The name of a version of a file: the ETag with its quotes, else time and size; None without either."""
    etag: str | None = response.headers.get("ETag")
    if etag is not None:
        return etag
    found = stamp_of(response)
    return None if found.modified_at is None else f"{found.modified_at}-{found.size}"


def stamp_of(response: Any) -> SourceStamp:
    """The look of the whole file, by the headers of a response."""
    span = parse_content_range(response.headers.get("Content-Range"))
    size = span.size if span is not None else response.content_length if response.status == 200 else None
    try:
        modified = int(parsedate_to_datetime(response.headers["Last-Modified"]).timestamp()) * SECOND
    except (KeyError, ValueError, TypeError, OverflowError):
        modified = None
    return SourceStamp(size=size, etag=(response.headers.get("ETag") or "").strip('"') or None, modified_at=modified)


def _fits(response: Any, start: int, stop: int) -> bool:
    found = parse_content_range(response.headers.get("Content-Range"))
    if found is None or found.start != start:
        return False
    return found.stop == stop or (found.size is not None and found.stop == found.size < stop)


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
