"""Reading objects on S3 by range, through s3fs: one filesystem for each pair of credentials and options in use.

One request gives bytes together with the object's size, ETag and time, so the check and the bytes belong to the same
object. Nothing is read that is not exactly the range asked for.
Where a request goes and how it is signed comes from the caller and the environment only, never from a catalog.
Errors name the object and the service's error code, never its message nor an exception of the libraries below, which
may repeat keys or tokens.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from icelite.credentials import AnyS3Credential, S3Credentials, S3Options, S3StaticCredentials, ask_caller
from icelite.retry import ATTEMPTS, Patience
from icelite.types import SourceStamp
from icelite.virtual.source import AnswerError, fetch_error, parse_content_range, run
from icelite.virtual.stamps import SECOND

_MAX_CLIENTS = 32
_EARLY = timedelta(seconds=60)  # temporary keys are renewed this long before they expire
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


class S3Client:
    """One way to reach S3: an s3fs filesystem, made at the first use and again when the keys expire."""

    def __init__(self, credentials: AnyS3Credential, options: S3Options) -> None:
        self.credentials = credentials
        self.options = options
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._filesystem: Any = None
        self._expires_at: datetime | None = None
        self._first = credentials.current if isinstance(credentials, S3Credentials.Refreshable) else None

    def filesystem(self) -> Any:
        """The s3fs filesystem to use now; may call the caller's ``get_credentials``."""
        if self._process != os.getpid():  # after a fork: connections, loop, perhaps a held lock are the parent's
            self._lock, self._filesystem, self._process = threading.Lock(), None, os.getpid()
        with self._lock:
            if self.is_stale():
                self._filesystem = self._connect(self._keys())
            return self._filesystem

    def is_stale(self) -> bool:
        """Whether the next `filesystem` makes a new one."""
        expires_at = self._expires_at
        if self._filesystem is None or self._process != os.getpid():
            return True
        return expires_at is not None and datetime.now(UTC) >= expires_at - _EARLY

    def _keys(self) -> S3StaticCredentials | None:
        credentials = self.credentials
        if isinstance(credentials, S3Credentials.Static):
            return credentials.credentials
        if isinstance(credentials, S3StaticCredentials):
            return credentials
        if isinstance(credentials, S3Credentials.Refreshable):
            keys, self._first = self._first, None
            if keys is None or (keys.expires_after is not None and datetime.now(UTC) >= keys.expires_after - _EARLY):
                keys = ask_caller(
                    credentials.get_credentials, "get_credentials", "s3_refreshable_credentials", S3StaticCredentials
                )
            self._expires_at = keys.expires_after
            return keys
        return None

    def _connect(self, keys: S3StaticCredentials | None) -> Any:
        from s3fs import S3FileSystem

        options = self.options
        anonymous = options.anonymous or isinstance(self.credentials, S3Credentials.Anonymous)
        region = options.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region is None and not isinstance(self.credentials, S3Credentials.FromEnv):
            region = "us-east-1"  # with FromEnv the AWS configuration files may name another
        config: dict[str, Any] = {
            "connect_timeout": 10,
            "read_timeout": options.network_stream_timeout_seconds or 60,
            "retries": {"mode": "standard", "max_attempts": options.max_attempts or ATTEMPTS},
            "max_pool_connections": 64,
        }
        if options.force_path_style or options.endpoint_url is not None:
            config["s3"] = {"addressing_style": "path"}
        return S3FileSystem(
            anon=anonymous,
            key=None if keys is None else keys.access_key_id,
            secret=None if keys is None else keys.secret_access_key,
            token=None if keys is None else keys.session_token,
            endpoint_url=options.endpoint_url,
            requester_pays=options.requester_pays,
            client_kwargs={} if region is None else {"region_name": region},
            config_kwargs=config,
            skip_instance_cache=True,
        )


class _Clients:
    """The clients of this process, so that sessions and repositories share connections."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._lock = threading.Lock()
        self._clients: OrderedDict[Any, S3Client] = OrderedDict()

    def lookup(self, credentials: AnyS3Credential, options: S3Options) -> S3Client:
        key: Any = (credentials, options)
        if isinstance(credentials, S3Credentials.Refreshable):  # not every callable has a hash
            key = (id(credentials.get_credentials), options)  # valid as long as the client keeps it alive
        elif isinstance(credentials, S3Credentials.FromEnv):  # read once, when the client is made
            key = (key, tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))
        with self._lock:
            client = self._clients.setdefault(key, S3Client(credentials, options))
            self._clients.move_to_end(key)
            if len(self._clients) > _MAX_CLIENTS:
                self._clients.popitem(last=False)
            return client


_clients = _Clients()
os.register_at_fork(after_in_child=_clients.clear)  # connections and event loop stay with the parent


def client_for(credentials: AnyS3Credential, options: S3Options) -> S3Client:
    """The client for these credentials; options set on the credentials go over ``options``."""
    own = S3Options() if isinstance(credentials, S3StaticCredentials) else credentials.options
    return _clients.lookup(credentials, options.merge(own))


class S3Settings(NamedTuple):
    """The endpoint of requests and the keys that sign them: id, secret and token, or None for unsigned requests."""

    endpoint: str
    region: str
    seconds: int
    keys: tuple[str, str, str | None] | None

    def __repr__(self) -> str:
        return f"S3Settings({self.endpoint!r}, {self.region!r})"


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

    def connect(self) -> Any:
        """The s3fs filesystem to use now; may ask for keys."""
        return self.client.filesystem()

    def is_connected(self) -> bool:
        """Whether `connect` asks nobody."""
        return not self.client.is_stale()

    def settings(self) -> S3Settings:
        """The settings that s3fs has worked out from credentials, options and environment; blocks.

        Raises
        ------
        StorageError
            ``virtual-chunk-fetch``.
        """
        filesystem = self.connect()

        async def find() -> S3Settings:
            service = await filesystem.set_session()
            keys = None if filesystem.anon else await service._request_signer._credentials.get_frozen_credentials()
            region, endpoint = service.meta.region_name, service.meta.endpoint_url
            seconds = self.client.options.network_stream_timeout_seconds or 60
            return S3Settings(endpoint, region, seconds, None if keys is None else tuple(keys)[:3])

        try:
            return run(find())
        except library_errors() as error:
            problem = self.problem(error)
        raise fetch_error(None, self.url, problem)

    async def ask(self, filesystem: Any, method: str, **arguments: Any) -> dict[str, Any]:
        """The response to one request, sent again by botocore when the service fails.

        Raises
        ------
        AnswerError
            For a refusal, or no answer.
        """
        if self.client.options.requester_pays:
            arguments["RequestPayer"] = "requester"
        try:
            service = await filesystem.set_session()
            response: dict[str, Any] = await getattr(service, method)(
                **{"Bucket": self.bucket, "Key": self.key, **arguments}
            )
            return response
        except library_errors() as error:
            status, problem = status_of(error), self.problem(error)
        raise AnswerError(problem, status)  # out here, the library's exception is not the context of this one

    async def read_range(self, filesystem: Any, start: int, stop: int) -> tuple[SourceStamp, bytes]:
        """The object as it is now, and its bytes ``[start, stop)``, which may be fewer at its end.

        Raises
        ------
        AnswerError
            With status 416 for a range past the end.
        """
        async for _ in Patience(ATTEMPTS).tries_async():
            response = await self.ask(filesystem, "get_object", Range=f"bytes={start}-{stop - 1}")
            body = response["Body"]
            try:
                found = _stamp(response)
                expected = min(stop, found.size or stop)
                if _span(response) != (start, expected) or response.get("ContentLength") != expected - start:
                    offered = "{} to {}".format(*_span(response))
                    raise AnswerError(f"was asked for bytes {start} to {stop} and the server offered {offered}")
                data: bytes = await body.read()
            except library_errors():
                continue
            finally:
                body.close()
            if len(data) == expected - start:
                return found, data
        raise AnswerError(f"broke off while it was read, {ATTEMPTS} times; check the network and try again")

    async def stamp(self, filesystem: Any) -> SourceStamp:
        """Size, ETag and time of the object now; empty when it does not exist.

        Raises
        ------
        AnswerError
            When the service cannot be asked.
        """
        try:
            return _stamp(await self.ask(filesystem, "head_object"))
        except AnswerError as error:
            if error.status != 404:
                raise
        return SourceStamp()

    def problem(self, error: BaseException) -> str:
        """The problem and its remedy in words, without anything a library or server wrote but a short code."""
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
        service = self.client.options.endpoint_url or "Amazon S3"
        return f"could not be fetched from {service}: {name}; check the network and endpoint_url"


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
    found = parse_content_range(response.get("ContentRange"))
    if found is None:  # the server ignored the range, or had no need of one
        return 0, int(response.get("ContentLength") or 0)
    return found.start, found.stop


def _stamp(response: Any) -> SourceStamp:
    found = parse_content_range(response.get("ContentRange"))
    modified: datetime | None = response.get("LastModified")
    return SourceStamp(
        size=response.get("ContentLength") if found is None else found.size,
        etag=(response.get("ETag") or "").strip('"') or None,
        modified_at=None if modified is None else int(modified.timestamp()) * SECOND,
    )


def library_errors() -> tuple[type[Exception], ...]:
    """The exceptions of s3fs and the libraries under it when a request fails."""
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    return (BotoCoreError, ClientError, HttpError, OSError, ValueError)
