"""The location of a repository's catalog (`StorageConfig`), and of the files of virtual chunks (`ObjectStoreConfig`).

These are values: making one touches no file and no network. A path is made absolute and its symbolic links are
resolved here, once, because relative references are relative to the directory of the real catalog file.
A catalog in a bucket or on a web server has an `S3Address` or a `WebAddress`, which carries the credentials for it.
They travel in a pickle, as they must to reach a worker; no `repr`, name or message shows them.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Never
from urllib.parse import unquote

from icelite.credentials import (
    AnyS3Credential,
    S3Credentials,
    S3Options,
    WebAccess,
    check_attempts,
    check_credential,
    http_access,
    s3_credentials,
)
from icelite.errors import ErrorKind, InvalidInputError, StorageError, shown

EXTENSION = ".icelite"
DEFAULT_NAME = "catalog" + EXTENSION
WHOLE_BYTES = 32 << 20  # catalogs up to this size are fetched in one request
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")  # no ARN: that would name a region and an account
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class S3Address:
    """A catalog that is one object in a bucket.

    Attributes
    ----------
    whole_bytes
        A catalog up to this size is fetched in one request, a larger one is read by ranges.
    unsafe
        Write even where the service ignores conditions on a PUT, so that two writers may overwrite each other.
    """

    bucket: str
    key: str
    credentials: AnyS3Credential = field(repr=False)
    options: S3Options = field(default_factory=S3Options)
    whole_bytes: int = WHOLE_BYTES
    unsafe: bool = False

    @property
    def url(self) -> str:
        """Its name in messages."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def base(self) -> str:
        """The prefix, with its final ``/``, from which relative references start."""
        return self.url.rpartition("/")[0] + "/"


@dataclass(frozen=True, slots=True)
class WebAddress:
    """A catalog on a web server: it is read, never written.

    Attributes
    ----------
    url
        Without a query; how messages call it.
    query
        What a presigned URL carries after its ``?``; sent with requests for the catalog itself only.
    access
        Headers for every request, those for relative references included.
    max_attempts, whole_bytes
        As for `S3Options` and `S3Address`.
    """

    url: str
    query: str = field(default="", repr=False)
    access: WebAccess = field(default_factory=WebAccess, repr=False)
    max_attempts: int | None = None
    whole_bytes: int = WHOLE_BYTES

    @property
    def base(self) -> str:
        """The prefix, with its final ``/``, from which relative references start."""
        return self.url.rpartition("/")[0] + "/"


RemoteAddress = S3Address | WebAddress


def check_bucket(bucket: str) -> None:
    """Refuse what cannot be a bucket's name.

    Raises
    ------
    InvalidInputError
        ``storage-config``.
    """
    if "@" in bucket:  # not echoed: it may hold a password
        raise InvalidInputError(
            "a URL of a bucket with a user or password in it is refused: pass credentials= to"
            " icelite.StorageConfig.s3_from_config",
            ErrorKind.STORAGE_CONFIG,
        )
    if not BUCKET.fullmatch(bucket):
        raise InvalidInputError(f"{bucket!r} is not the name of a bucket", ErrorKind.STORAGE_CONFIG)


def catalog_key(prefix: str) -> str:
    """The key of the catalog that a prefix stands for.

    Raises
    ------
    InvalidInputError
        ``invalid-path``.
    """
    folder = prefix.strip("/")
    if any(mark in prefix for mark in ("\0", "//", "\\")) or not {".", ".."}.isdisjoint(folder.split("/")):
        raise InvalidInputError(
            f"prefix {prefix!r} is not a plain key such as 'archive/ocean.icelite'", ErrorKind.INVALID_PATH
        )
    return folder if folder.endswith(EXTENSION) else f"{folder}/{DEFAULT_NAME}".lstrip("/")


def check_web_url(url: str, allow_http: bool) -> None:
    """Refuse what is no plain URL of a file, or one that is neither encrypted nor of this machine.

    Raises
    ------
    InvalidInputError
        ``storage-config``.
    """
    host = url.partition("://")[2].partition("/")[0]
    if "@" in host:  # not echoed: it may hold a password
        raise InvalidInputError(
            "a URL with a user or password in it is refused: pass headers= to icelite.StorageConfig.http",
            ErrorKind.STORAGE_CONFIG,
        )
    path = url.partition("://")[2].partition("/")[2]
    dots = {".", ".."} & {*path.split("/"), *unquote(path).split("/")}
    if not url.startswith(("https://", "http://")) or not host or not path or dots or re.search(r"[#\\\s\0]", url):
        raise InvalidInputError(
            f"{url!r} is not the URL of a catalog, such as 'https://example.org/data/ocean.icelite'",
            ErrorKind.STORAGE_CONFIG,
        )
    if url.startswith("http://") and not allow_http and re.sub(r":\d+$", "", host) not in _LOOPBACK:
        raise InvalidInputError(
            f"{url!r} is not encrypted: write 'https://...', or if it is meant"
            f" icelite.StorageConfig.http({url!r}, allow_http=True)",
            ErrorKind.STORAGE_CONFIG,
        )


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """The location of one repository's catalog. Made by its class methods.

    Attributes
    ----------
    path
        The catalog file, absolute and without symbolic links; None for a catalog in memory or elsewhere.
    name
        The path or URL as text; for a catalog in memory an identifier that no other one has.
    address
        The bucket or web server; None for a catalog of this machine.
    """

    path: Path | None
    name: str
    address: RemoteAddress | None = None

    @classmethod
    def filesystem(cls, path: str | os.PathLike[str]) -> StorageConfig:
        """One file on a local disk; ``~`` is expanded.

        Raises
        ------
        InvalidInputError
            ``invalid-path`` for an empty path, one with a NUL, or a text that is no Unicode.
        """
        text: object = os.fspath(path)
        if not isinstance(text, str) or not text or "\0" in text or not is_encodable(text):
            raise InvalidInputError(
                f"catalog path {shown(text)} is not a path of text: pass one such as 'ocean.icelite'",
                ErrorKind.INVALID_PATH,
            )
        absolute = os.path.realpath(os.path.expanduser(text))
        return cls(Path(absolute), absolute)

    @classmethod
    def memory(cls, prefix: str | None = None) -> StorageConfig:
        """A catalog that lives as long as this process; every call gives another one."""
        return cls(None, f"{prefix or 'memory'}-{uuid.uuid4().hex}")

    @classmethod
    def s3_from_config(
        cls,
        *,
        bucket: str,
        prefix: str | None = None,
        credentials: AnyS3Credential | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        allow_http: bool = False,
        anonymous: bool = False,
        force_path_style: bool = False,
        network_stream_timeout_seconds: int | None = None,
        requester_pays: bool = False,
        max_attempts: int | None = None,
        unsafe: bool = False,
        whole_bytes: int = WHOLE_BYTES,
    ) -> StorageConfig:
        """A catalog in a bucket.

        Parameters
        ----------
        prefix
            The catalog's key, if it ends in ``.icelite``; otherwise a folder, in which the catalog is
            ``catalog.icelite``.
        credentials
            `S3Credentials` or what `s3_credentials` gives; None: what the environment offers.
        region, endpoint_url, allow_http, force_path_style, network_stream_timeout_seconds, requester_pays, max_attempts
            See `S3Options`; what the credentials say themselves goes before.
        anonymous
            Requests are not signed.
        unsafe, whole_bytes
            See `S3Address`.

        Raises
        ------
        InvalidInputError
            ``storage-config``, ``invalid-path``; ``invalid-credentials`` for credentials that are not for S3.
        """
        chosen = S3Credentials.FromEnv() if credentials is None else credentials
        check_credential("s3://", S3Credentials.Anonymous() if anonymous else chosen)
        check_bucket(bucket)
        options = S3Options(
            region,
            endpoint_url,
            allow_http,
            anonymous,
            force_path_style,
            network_stream_timeout_seconds,
            requester_pays,
            max_attempts,
        )
        address = S3Address(bucket, catalog_key(prefix or ""), chosen, options, whole_bytes, unsafe)
        return cls(None, address.url, address)

    @classmethod
    def s3_from_env(cls, *, bucket: str, prefix: str | None = None, **options: Any) -> StorageConfig:
        """A catalog in a bucket, with the credentials of the environment; otherwise as `s3_from_config`."""
        return cls.s3_from_config(bucket=bucket, prefix=prefix, credentials=S3Credentials.FromEnv(), **options)

    @classmethod
    def s3_anonymous(cls, *, bucket: str, prefix: str | None = None, **options: Any) -> StorageConfig:
        """A catalog in a public bucket, whose requests are not signed; otherwise as `s3_from_config`."""
        return cls.s3_from_config(bucket=bucket, prefix=prefix, credentials=S3Credentials.Anonymous(), **options)

    @classmethod
    def http(
        cls,
        url: str,
        *,
        allow_http: bool = False,
        headers: Mapping[str, str] | None = None,
        max_attempts: int | None = None,
        whole_bytes: int = WHOLE_BYTES,
    ) -> StorageConfig:
        """A catalog on a web server, to read.

        Parameters
        ----------
        url
            ``https://...``; ``http://...`` on this machine's own loopback address, elsewhere with ``allow_http``.
        headers
            Sent with every request for the catalog and the files beside it, such as ``{"Authorization": ...}``.
        max_attempts, whole_bytes
            See `WebAddress`.

        Raises
        ------
        InvalidInputError
            ``storage-config`` for a URL that is none, or is not encrypted; ``invalid-credentials`` for bad headers.
        """
        check_attempts(max_attempts)
        plain, _, query = url.partition("?")
        check_web_url(plain, allow_http)
        return cls(None, plain, WebAddress(plain, query, http_access(headers), max_attempts, whole_bytes))

    @property
    def directory(self) -> Path | None:
        """The catalog's directory, from which relative references start; None when it is in memory or remote."""
        return None if self.path is None else self.path.parent

    @property
    def home(self) -> str | None:
        """The directory or URL prefix from which relative references start; None in memory."""
        if self.address is not None:
            return self.address.base
        return None if self.path is None else str(self.path.parent)

    def __repr__(self) -> str:
        if isinstance(self.address, S3Address):
            return f"StorageConfig.s3_from_config(bucket={self.address.bucket!r}, prefix={self.address.key!r})"
        if self.address is not None:
            return f"StorageConfig.http({self.name!r})"
        return (
            f"StorageConfig.memory({self.name!r})" if self.path is None else f"StorageConfig.filesystem({self.name!r})"
        )


def is_encodable(text: str) -> bool:
    """Whether the system can have a file of that name."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def local_filesystem_storage(path: str | os.PathLike[str]) -> StorageConfig:
    """`StorageConfig.filesystem` under Icechunk's name."""
    return StorageConfig.filesystem(path)


def in_memory_storage() -> StorageConfig:
    """`StorageConfig.memory` under Icechunk's name."""
    return StorageConfig.memory()


def http_storage(url: str, **options: Any) -> StorageConfig:
    """`StorageConfig.http` under Icechunk's name; the URL is that of the catalog itself."""
    return StorageConfig.http(url, **options)


def s3_storage(
    *,
    bucket: str,
    prefix: str | None = None,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    anonymous: bool | None = None,
    from_env: bool | None = None,
    get_credentials: Any = None,
    expires_after: datetime | None = None,
    scatter_initial_credentials: bool = False,
    **options: Any,
) -> StorageConfig:
    """`StorageConfig.s3_from_config` with Icechunk's parameters: exactly one way to bring credentials.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials`` for two ways at once, and as `StorageConfig.s3_from_config`.
    """
    credentials = s3_credentials(
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        session_token=session_token,
        anonymous=anonymous,
        from_env=from_env,
        get_credentials=get_credentials,
        expires_after=expires_after,
        scatter_initial_credentials=scatter_initial_credentials,
    )
    return StorageConfig.s3_from_config(bucket=bucket, prefix=prefix, credentials=credentials, **options)


def as_storage(storage: str | os.PathLike[str] | StorageConfig) -> StorageConfig:
    """The `StorageConfig` that a caller passed, or that a path or URL stands for.

    A URL of S3 is reached with the credentials, region and endpoint of the environment.

    Raises
    ------
    StorageError
        ``unsupported-storage`` for a URL of another scheme than ``file``, ``s3``, ``https`` and ``http``.
    InvalidInputError
        ``invalid-path`` for an unusable path, ``storage-config`` for an unusable URL, ``invalid-argument`` for another
        type.
    """
    if isinstance(storage, StorageConfig):
        return storage
    if isinstance(storage, str) and "://" in storage:
        return _from_url(storage)
    if isinstance(storage, (str, os.PathLike)):
        return StorageConfig.filesystem(storage)
    raise InvalidInputError(
        f"a repository is opened by a path or a StorageConfig, not {type(storage).__name__}:"
        " pass 'ocean.icelite' or icelite.StorageConfig.filesystem('ocean.icelite')",
        ErrorKind.INVALID_ARGUMENT,
    )


def _from_url(url: str) -> StorageConfig:
    if url.startswith("file:///"):
        path = url.removeprefix("file://")
        return StorageConfig.filesystem(path if os.path.exists(path) else unquote(path))
    if url.startswith(("https://", "http://")):
        return StorageConfig.http(url)
    if url.startswith("s3://"):
        bucket, _, key = url.removeprefix("s3://").partition("/")
        return StorageConfig.s3_from_env(bucket=bucket, prefix=key)
    _refuse(url)


def _refuse(url: str) -> Never:
    scheme, _, rest = url.partition("?")[0].partition("#")[0].partition("://")
    host, slash, path = rest.partition("/")
    plain = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    raise StorageError(
        f"a repository at {shown(plain)} is not supported: it is a path, such as in"
        " icelite.StorageConfig.filesystem('ocean.icelite'), or a URL that begins with s3:// or https://",
        ErrorKind.UNSUPPORTED_STORAGE,
    )


# -- the stores of virtual chunks ------------------------------------------------------------------------------------


class ObjectStoreConfig:
    """The kinds of store that a `VirtualChunkContainer` may name."""

    @dataclass(frozen=True, slots=True)
    class LocalFileSystem:
        """Files of this machine, under ``path``."""

        path: str

    @dataclass(frozen=True, slots=True)
    class S3:
        """Amazon S3."""

        options: S3Options = field(default_factory=S3Options)

    @dataclass(frozen=True, slots=True)
    class S3Compatible:
        """Another service that speaks S3's protocol."""

        options: S3Options = field(default_factory=S3Options)


Storage = StorageConfig  # the name that code for Icechunk annotates with
AnyObjectStoreConfig = ObjectStoreConfig.LocalFileSystem | ObjectStoreConfig.S3 | ObjectStoreConfig.S3Compatible


def local_filesystem_store(path: str | os.PathLike[str]) -> ObjectStoreConfig.LocalFileSystem:
    """The local file system as the store of a ``file://`` container."""
    return ObjectStoreConfig.LocalFileSystem(os.fspath(path))


def s3_store(
    region: str | None = None,
    endpoint_url: str | None = None,
    allow_http: bool = False,
    anonymous: bool = False,
    s3_compatible: bool = False,
    force_path_style: bool = False,
    network_stream_timeout_seconds: int = 60,
    requester_pays: bool = False,
) -> ObjectStoreConfig.S3 | ObjectStoreConfig.S3Compatible:
    """S3, or a compatible service, as the store of an ``s3://`` container; see `S3Options`.

    Raises
    ------
    InvalidInputError
        ``storage-config`` for an unusable ``endpoint_url``.
    """
    options = S3Options(
        region=region,
        endpoint_url=endpoint_url,
        allow_http=allow_http,
        anonymous=anonymous,
        force_path_style=force_path_style,
        network_stream_timeout_seconds=network_stream_timeout_seconds,
        requester_pays=requester_pays,
    )
    return ObjectStoreConfig.S3Compatible(options) if s3_compatible else ObjectStoreConfig.S3(options)
