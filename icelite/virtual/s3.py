"""Reading objects on S3 by range, through s3fs.

One request gives a chunk's bytes together with the object's size, ETag and time, so the check and the bytes belong to
the same object. The check precedes the body: nothing is read that is not exactly the range asked for.
Errors name the object and the service's error code, never its message nor an exception of the libraries below, which
may repeat keys or tokens.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from icelite.errors import StorageError
from icelite.types import Location, SourceStamp
from icelite.virtual.clients import S3Client, run, run_async
from icelite.virtual.source import fetch_error, is_changed, modified_error, range_error

ATTEMPTS = 3  # of a whole read; botocore repeats single requests by itself
SECOND = 1_000_000_000
_CREDENTIAL_CODES = {
    "AccessDenied",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_REGION_CODES = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}


@dataclass(frozen=True, slots=True)
class S3Object:
    """One object and the way to it.

    Attributes
    ----------
    url
        How messages call it.
    prefix
        What the caller authorised; messages name it when credentials fail. None for what belongs to the catalog.
    """

    bucket: str
    key: str
    url: str
    prefix: str | None
    client: S3Client

    async def ask(
        self, filesystem: Any, method: str, chunk: str | None, *, none_for: int, **arguments: Any
    ) -> dict[str, Any] | None:
        """Send one request on s3fs's loop; None when the service answers with the HTTP status ``none_for``.

        Raises
        ------
        StorageError
            ``virtual-chunk-fetch``.
        """
        if self.client.options.requester_pays:
            arguments["RequestPayer"] = "requester"
        try:
            service = await filesystem.set_session()
            response: dict[str, Any] = await getattr(service, method)(Bucket=self.bucket, Key=self.key, **arguments)
            return response
        except library_errors() as error:
            status, problem = status_of(error), self.problem(error)
        if status == none_for:
            return None
        raise fetch_error(chunk, self.url, problem)  # out here, the library's exception is not the context of this one

    def problem(self, error: BaseException) -> str:
        """What went wrong and what to do, without anything a library or server wrote but a short code."""
        name = type(error).__name__
        given = "the credentials of the catalog's StorageConfig"
        if self.prefix is not None:
            given = f"what authorize_virtual_chunk_access gives for {self.prefix!r}"
        remedy = f"; check {given}"
        status, code = status_of(error), _code(error)
        if status is not None:
            answer = f"{code} (HTTP {status})" if code else f"HTTP {status}"
            if code in _REGION_CODES or status in (301, 307):
                return f"is in another region, says S3: {answer}; pass region= to icelite.s3_credentials"
            if status == 404:
                return f"does not exist, says S3: {answer}; put the object back, or correct the reference"
            if code in _CREDENTIAL_CODES or status in (401, 403):
                return f"was refused by S3: {answer}{remedy}"
            return f"was refused by S3: {answer}"
        if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"):
            return f"needs credentials, and none were found in the environment ({name}){remedy}"
        place = self.client.options.endpoint_url or "Amazon S3"
        return f"could not be fetched from {place}: {name}; check the network and endpoint_url"

    async def stamp(self, filesystem: Any, chunk: str | None = None) -> SourceStamp:
        """Size, ETag and time of the object now; empty when it does not exist.

        Raises
        ------
        StorageError
            ``virtual-chunk-fetch`` when the service cannot be asked.
        """
        response = await self.ask(filesystem, "head_object", chunk, none_for=404)
        return SourceStamp() if response is None else _stamp(response)


class S3Source:
    """One object on S3; see `Source`.

    Parameters
    ----------
    check_time
        Whether the modification time (whole seconds on S3) counts.
    """

    is_local = False

    def __init__(self, location: Location, target: S3Object, *, check_time: bool) -> None:
        self._location = location
        self._object = target
        self._check_time = check_time

    def read(self, offset: int, length: int, chunk: str) -> bytes:
        """See `Source.read`."""
        return run(self._read(self._object.client.filesystem(), offset, length, chunk))

    async def read_async(self, offset: int, length: int, chunk: str) -> bytes:
        """See `Source.read_async`."""
        client = self._object.client
        filesystem = await asyncio.to_thread(client.filesystem) if client.is_stale() else client.filesystem()
        return await run_async(self._read(filesystem, offset, length, chunk))

    def check(self, chunk: str | None) -> SourceStamp | None:
        """See `Source.check`."""
        found = run(self._object.stamp(self._object.client.filesystem(), chunk))
        if found == SourceStamp():
            return None
        if self._is_changed(found):
            raise modified_error(chunk, self._object.url, self._location, found)
        return found

    async def _read(self, filesystem: Any, offset: int, length: int, chunk: str) -> bytes:
        if offset < 0 or length <= 0:
            raise fetch_error(chunk, self._object.url, f"cannot have bytes {offset} to {offset + length}")
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(0.1 * 4**attempt)
            data = await self._try(filesystem, offset, length, chunk)
            if data is not None:
                return data
        raise fetch_error(
            chunk, self._object.url, f"broke off while it was read, {ATTEMPTS} times; check the network and try again"
        )

    async def _try(self, filesystem: Any, offset: int, length: int, chunk: str) -> bytes | None:
        """The bytes, or None when the connection broke off while they came."""
        span = f"bytes={offset}-{offset + length - 1}"
        response = await self._object.ask(filesystem, "get_object", chunk, none_for=416, Range=span)
        if response is None:
            raise await self._past_end(filesystem, offset, length, chunk)
        body = response["Body"]
        try:
            self._check(response, offset, length, chunk)
            data: bytes = await body.read()
        except library_errors():
            return None
        finally:
            body.close()
        return data if len(data) == length else None

    async def _past_end(self, filesystem: Any, offset: int, length: int, chunk: str) -> StorageError:
        """Why the service refused the range: the object changed, or the reference is wrong."""
        found = await self._object.stamp(filesystem, chunk)
        if self._is_changed(found):
            return modified_error(chunk, self._object.url, self._location, found)
        return range_error(chunk, self._object.url, offset, length, found.size or 0)

    def _check(self, response: Any, offset: int, length: int, chunk: str) -> None:
        url = self._object.url
        found = _stamp(response)
        if self._is_changed(found):
            raise modified_error(chunk, url, self._location, found)
        if found.size is not None and offset + length > found.size:
            raise range_error(chunk, url, offset, length, found.size)
        start, end = _span(response)
        if (start, end) != (offset, offset + length) or response.get("ContentLength") != length:
            raise fetch_error(
                chunk, url, f"was asked for bytes {offset} to {offset + length} and the server offered {start} to {end}"
            )

    def _is_changed(self, found: SourceStamp) -> bool:
        return is_changed(found, self._location, check_time=self._check_time, resolution=SECOND)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of a service's refusal; None when no service answered."""
    response = getattr(error, "response", None)
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if isinstance(response, dict) else None


def _code(error: BaseException) -> str:
    """The service's short error code; '' when it is none, since a server may write anything there, even a key."""
    response = getattr(error, "response", None)
    code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
    return code if re.fullmatch(r"[A-Z][A-Za-z]{2,63}", code) else ""


def _span(response: Any) -> tuple[int, int]:
    """The half-open range that a response carries."""
    match = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/\d{1,19}", response.get("ContentRange") or "")
    if match is None:  # the server ignored the range, or had no need of one
        return 0, int(response.get("ContentLength") or 0)
    return int(match[1]), int(match[2]) + 1


def _stamp(response: Any) -> SourceStamp:
    match = re.fullmatch(r"bytes \d+-\d+/(\d{1,19})", response.get("ContentRange") or "")
    modified: datetime | None = response.get("LastModified")
    return SourceStamp(
        size=int(match[1]) if match else response.get("ContentLength"),
        etag=(response.get("ETag") or "").strip('"') or None,
        modified_at=None if modified is None else int(modified.timestamp()) * SECOND,
    )


def library_errors() -> tuple[type[BaseException], ...]:
    """What s3fs and the libraries under it raise when a request fails."""
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    return (BotoCoreError, ClientError, HttpError, OSError, asyncio.TimeoutError, ValueError)
