"""The ways to reach S3 that this process has in use: one s3fs filesystem for each pair of credentials and options.

Where a request goes and how it is signed comes from the caller and the environment only, never from a catalog.
The libraries are imported when the first client is used.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from icelite.credentials import AnyS3Credential, S3Credentials, S3Options, S3StaticCredentials
from icelite.errors import ErrorKind, InternalError, InvalidInputError

_MAX_CLIENTS = 32
_ATTEMPTS = 3  # of one request, by botocore
_EARLY = timedelta(seconds=60)  # temporary keys are renewed this long before they expire

T = TypeVar("T")


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
        if (
            self._process != os.getpid()
        ):  # after a fork: the connections, the loop, perhaps a held lock, are the parent's
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
                keys = _ask(credentials)
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
            "retries": {"mode": "standard", "max_attempts": options.max_attempts or _ATTEMPTS},
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


def _ask(credentials: S3Credentials.Refreshable) -> S3StaticCredentials:
    failure = None
    try:
        keys: object = credentials.get_credentials()
    except Exception as error:  # noqa: BLE001  # the caller's function; its message may hold a secret
        keys, failure = None, type(error).__name__
    if not isinstance(keys, S3StaticCredentials):
        outcome = f"raised {failure}" if failure else f"returned a {type(keys).__name__}, not S3StaticCredentials"
        raise InvalidInputError(
            f"the get_credentials function of s3_refreshable_credentials {outcome}: call it by itself to see why",
            ErrorKind.INVALID_CREDENTIALS,
        )
    return keys


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
