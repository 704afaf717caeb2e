"""The object that a remote catalog is: fetched, read by ranges of one version, replaced if nobody else did.

A version is the object's ETag as the service gave it (where there is none, its modification time and size). Whatever
bytes are given out belong to the version that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from icelite.credentials import S3Options
from icelite.errors import ErrorKind, ReadOnlyError, RepositoryNotFoundError, StorageError
from icelite.retry import ATTEMPTS, Patience
from icelite.storage import RemoteAddress, S3Address, WebAddress
from icelite.virtual.s3 import S3Object, client_for, library_errors
from icelite.virtual.source import AnswerError, run
from icelite.virtual.web import WebObject, quoted, read_body, version_of

T = TypeVar("T")

PART = 8 << 20  # of a download
BROKE_OFF = "broke off while it was read; check the network and try again"
_LOST = (404, 409, 412)  # of a conditional PUT: the object is another one than the condition says
QUOTED, BARE = "quoted", "bare"  # RFC 9110 wants quotes; Ceph RGW up to 19 refuses every ETag in them
NOBODYS = '"00000000000000000000000000000000"'
_REFUSED = (400, 401, 403, 405, 411, 413, 501)  # of a PUT: nothing was written


@dataclass(frozen=True, slots=True)
class Fetched:
    """A version of the object.

    Attributes
    ----------
    version
        None when the service gives no way to tell versions apart.
    size
        Bytes in all.
    data
        All of them, or only the first ones of a large object.
    ranges
        Whether the service says that it gives ranges; None when it says nothing.
    """

    version: str | None
    size: int
    data: bytes
    ranges: bool | None

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to fetch."""
        return len(self.data) == self.size


class LostRaceError(Exception):
    """A conditional write found another version than it expected, says the service.

    Attributes
    ----------
    status
        412 where the condition failed, 409 where another write was under way, 404 where the object is gone.
    """

    def __init__(self, problem: str, status: int | None = None) -> None:
        super().__init__(problem)
        self.status = status


class UnknownOutcomeError(Exception):
    """A write was sent and no answer came that tells whether it took place; the message says what came."""


def replaced(url: str) -> StorageError:
    """The error for a catalog that is another one than when it was opened."""
    return StorageError(
        f"the catalog {url!r} was replaced while it was read; open it again to read the new one",
        ErrorKind.CATALOG_REPLACED,
    )


def object_at(address: RemoteAddress) -> S3Catalog | WebCatalog:
    """The object at an address."""
    return S3Catalog(address) if isinstance(address, S3Address) else WebCatalog(address)


def _missing(url: str, answer: str) -> RepositoryNotFoundError:
    return RepositoryNotFoundError(f"no repository at {url!r}: {answer}", ErrorKind.REPOSITORY_NOT_FOUND)


class S3Catalog:
    """A catalog in a bucket; every method blocks."""

    def __init__(self, address: S3Address) -> None:
        self.url = address.url
        self._object = S3Object(
            address.bucket, address.key, address.url, None, client_for(address.credentials, address.options)
        )

    @property
    def options(self) -> S3Options:
        """The way to the service."""
        return self._object.client.options

    def _ask(
        self, method: str, key: str | None = None, *, want: Callable[[int], int] | None = None, **arguments: Any
    ) -> tuple[Any, bytes]:
        """The response to one request, and as many bytes of its body as are wanted of those announced.

        Raises
        ------
        AnswerError
            For a refusal, no answer, or a body that breaks off.
        """
        filesystem = self._object.connect()
        if key is not None:
            arguments["Key"] = key

        async def send() -> tuple[Any, bytes]:
            response = await self._object.ask(filesystem, method, **arguments)
            if want is None:
                return response, b""
            body = response["Body"]
            try:
                parts, missing = [], want(int(response["ContentLength"]))
                while missing > 0 and (part := await body.read(missing)):
                    parts.append(part)
                    missing -= len(part)
                return response, b"".join(parts)
            except library_errors() as error:
                problem = self._object.problem(error)
            finally:
                body.close()
            raise AnswerError(problem)

        return run(send())

    def _patience(self) -> Patience:
        return Patience(self.options.max_attempts or ATTEMPTS)

    def fetch(self, known: str | None, whole_bytes: int, head_bytes: int) -> Fetched | None:
        """The object if it is up to ``whole_bytes``, else its head; None when it is still ``known``, a strong ETag.

        One request, whose body is not read to its end where that is not needed.

        Raises
        ------
        RepositoryNotFoundError, StorageError
            ``repository-not-found``; ``io`` when the service cannot be asked or refuses.
        """
        condition: dict[str, Any] = {} if known is None else {"IfNoneMatch": known}

        def want(size: int) -> int:
            return size if size <= whole_bytes else min(size, head_bytes)

        problem, status = BROKE_OFF, None
        for _ in self._patience().tries():
            try:
                response, data = self._ask("get_object", want=want, **condition)
            except AnswerError as error:
                problem, status = error.problem, error.status
                break
            size = int(response["ContentLength"])
            if known is not None and response.get("ETag") == known:  # the service heeds no conditions
                return None
            if len(data) == want(size):
                return Fetched(response.get("ETag"), size, data, True)
        if status == 304:
            return None
        if status == 404:
            raise _missing(self.url, f"it {problem}")
        raise StorageError(f"the catalog {self.url!r} {problem}", ErrorKind.IO)

    def read_range(self, start: int, stop: int, version: str | None) -> bytes:
        """Exactly the bytes ``[start, stop)`` of a version.

        Raises
        ------
        StorageError
            ``catalog-replaced`` when the object is another one by now; ``io``.
        """
        condition: dict[str, Any] = {} if version is None else {"IfMatch": version}

        def want(size: int) -> int:
            return min(size, stop - start)

        problem, status = BROKE_OFF, None
        for _ in self._patience().tries():
            try:
                response, data = self._ask("get_object", want=want, Range=f"bytes={start}-{stop - 1}", **condition)
            except AnswerError as error:
                problem, status = error.problem, error.status
                break
            if version is not None and response.get("ETag") != version:
                raise replaced(self.url)
            if len(data) == stop - start and (response.get("ContentRange") or "").startswith(f"bytes {start}-"):
                return data
        if status in (404, 412, 416):
            raise replaced(self.url)
        raise StorageError(f"the catalog {self.url!r} {problem}", ErrorKind.IO)

    def download(self, version: str | None, size: int, file: BinaryIO) -> None:
        """Write all of a version to a file, in parts; raises as `read_range`."""
        for start in range(0, size, PART):
            file.write(self.read_range(start, min(start + PART, size), version))

    def endpoint(self) -> str:
        """The URL that requests go to, whether the caller, the environment or the configuration of the region says so.

        Raises
        ------
        StorageError
            ``io``.
        """
        return self._object.settings().endpoint

    def write(self, data: bytes, expected: str | None, form: str) -> str:
        """Replace the version ``expected`` (None: there is no object) by new bytes; the new version.

        Parameters
        ----------
        form
            How the service wants a version written in a condition; see `probe`.

        Raises
        ------
        LostRaceError, UnknownOutcomeError
            Another version is there; the write may or may not have taken place.
        ReadOnlyError
            ``read-only-storage``: the service does not let this caller write.
        """
        return self._put(None, data, {"IfNoneMatch": "*"} if expected is None else {"IfMatch": _as(form, expected)})

    def overwrite(self, data: bytes) -> str:
        """Replace whatever is there; raises as `write`."""
        return self._put(None, data, {})

    def _put(self, key: str | None, data: bytes, condition: dict[str, Any]) -> str:
        try:
            response, _ = self._ask("put_object", key, Body=data, **condition)
        except AnswerError as error:
            problem, status = error.problem, error.status
        else:
            version = response.get("ETag")
            if not version:
                raise UnknownOutcomeError("was stored under no ETag that the service named")
            return str(version)
        if condition and status in _LOST and not ("IfNoneMatch" in condition and status == 404):
            raise LostRaceError(problem, status)
        if status in _REFUSED or status == 404:
            raise ReadOnlyError(f"the catalog {self.url!r} was not written: it {problem}", ErrorKind.READ_ONLY_STORAGE)
        raise UnknownOutcomeError(problem)

    def probe(self, name: str) -> str:
        """The form of an ETag in a condition on a PUT by which this service is safe to write.

        Tried on a small object beside the catalog, which is then removed: with conditions that must fail, and with one
        that must hold, since there are services that refuse an ETag in quotes whatever it is, and ones that want it so.

        Raises
        ------
        StorageError
            ``unsafe-storage`` when conditions that must fail are ignored, or ones that must hold are refused; ``io``.
        """
        key = f"{self._object.key}.{name}"
        try:
            version = self._put(key, b"icelite asks whether this service heeds conditions", {"IfNoneMatch": "*"})
            if not self._is_refused(key, {"IfNoneMatch": "*"}):
                raise self._unsafe("ignores conditions on a PUT")
            for form in (QUOTED, BARE):
                if not self._is_refused(key, {"IfMatch": _as(form, NOBODYS)}):
                    raise self._unsafe("ignores conditions on a PUT")
                if not self._is_refused(key, {"IfMatch": _as(form, version)}):
                    return form
        except (LostRaceError, UnknownOutcomeError) as error:
            raise StorageError(
                f"could not find out whether {self.url!r} can be written safely: {error}", ErrorKind.IO
            ) from None
        finally:
            self._remove(key)
        raise self._unsafe("refuses a PUT on the condition that an object is unchanged, although it is")

    def _unsafe(self, habit: str) -> StorageError:
        return StorageError(
            f"{self.url!r} cannot be written safely: the service at {self.endpoint()} {habit}, so two"
            " writers could overwrite each other's commits; if there is only ever one, pass unsafe=True to"
            " icelite.StorageConfig.s3_from_config",
            ErrorKind.UNSAFE_STORAGE,
        )

    def _is_refused(self, key: str, condition: dict[str, str]) -> bool:
        try:
            self._put(key, b"", condition)
        except (LostRaceError, ReadOnlyError):
            return True
        return False

    def _remove(self, key: str) -> None:
        try:
            self._ask("delete_object", key)
        except AnswerError:  # not allowed to: an object of 50 bytes stays
            return


def _as(form: str, version: str) -> str:
    """A version as a condition names it."""
    return version if form == QUOTED else version.strip('"')


class WebCatalog:
    """A catalog on a web server; read as an `S3Catalog`, never written."""

    def __init__(self, address: WebAddress) -> None:
        self.url = address.url
        target = quoted(address.url) + (f"?{address.query}" if address.query else "")
        self._object = WebObject(address.url, address.base, target, address.access, address.max_attempts or ATTEMPTS)

    def fetch(self, known: str | None, whole_bytes: int, head_bytes: int) -> Fetched | None:
        """See `S3Catalog.fetch`: one request, whose body is not read to its end where that is not needed."""
        return self._translated(lambda: run(self._fetch(self._object.connect(), known, whole_bytes, head_bytes)))

    async def _fetch(
        self, given: Mapping[str, str], known: str | None, whole_bytes: int, head_bytes: int
    ) -> Fetched | None:
        headers = {} if known is None else {"If-None-Match": known}
        async for _ in Patience(self._object.attempts).tries_async():
            async with self._object.ask("GET", given, headers, (200, 304)) as response:
                version = version_of(response)
                if response.status == 304 or (known is not None and version == known):
                    return None
                size: int | None = response.content_length
                limit = whole_bytes if size is None or size <= whole_bytes else head_bytes
                data = await read_body(response, limit, cut=size is not None and size > limit)
                if data is not None:
                    ranges = {"bytes": True, "none": False}.get(response.headers.get("Accept-Ranges", ""))
                    return Fetched(version, len(data) if size is None else size, data, ranges)
        raise AnswerError(BROKE_OFF)

    def gives_ranges(self) -> bool:
        """Whether the server answers a request for a range with the range."""
        return self._translated(lambda: run(self._gives_ranges(self._object.connect())))

    async def _gives_ranges(self, given: Mapping[str, str]) -> bool:
        async with self._object.ask("GET", given, {"Range": "bytes=1-1"}, (200, 206)) as response:
            return bool(response.status == 206)

    def read_range(self, start: int, stop: int, version: str | None) -> bytes:
        """See `S3Catalog.read_range`."""
        given = self._object.connect()
        _, data = self._translated(lambda: run(self._object.read_range(given, start, stop, version=version)))
        if len(data) != stop - start:
            raise replaced(self.url)
        return data

    def download(self, version: str | None, size: int, file: BinaryIO) -> None:
        """See `S3Catalog.download`; in one request, for servers that know no ranges."""
        self._translated(lambda: run(self._download(self._object.connect(), version, size, file)))

    async def _download(self, given: Mapping[str, str], version: str | None, size: int, file: BinaryIO) -> None:
        async with self._object.ask("GET", given, {}, (200,)) as response:
            if version_of(response) != version:
                raise AnswerError("was replaced", 412)
            data = await read_body(response, size)
        if data is None or len(data) != size:
            raise AnswerError(BROKE_OFF)
        file.write(data)

    def _translated(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except AnswerError as error:
            status, problem = error.status, error.problem
        if status in (404, 410):
            raise _missing(self.url, f"it {problem}")
        if status in (412, 416):
            raise replaced(self.url)
        raise StorageError(f"the catalog {self.url!r} {problem}", ErrorKind.IO)
