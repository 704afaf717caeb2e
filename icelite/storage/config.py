"""`StorageConfig`: where one repository's catalog is, and the functions that make one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never
from urllib.parse import unquote

from icelite.credentials import (
    AnyS3Credential,
    S3Credentials,
    S3Options,
    check_attempts,
    check_credential,
    http_access,
    s3_credentials,
)
from icelite.errors import ErrorKind, InvalidInputError, StorageError, shown
from icelite.storage.places import (
    WHOLE_BYTES,
    RemotePlace,
    S3Place,
    WebPlace,
    catalog_key,
    check_bucket,
    check_web_url,
)


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """Where one repository's catalog is. Made by its class methods.

    Attributes
    ----------
    path
        The catalog file, absolute and without symbolic links; None for a catalog in memory or elsewhere.
    name
        The path or URL as text; for a catalog in memory an identifier that no other one has.
    place
        The bucket or web server; None for a catalog of this machine.
    """

    path: Path | None
    name: str
    place: RemotePlace | None = None

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
            See `S3Place`.

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
        place = S3Place(bucket, catalog_key(prefix or ""), chosen, options, whole_bytes, unsafe)
        return cls(None, place.url, place)

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
            See `WebPlace`.

        Raises
        ------
        InvalidInputError
            ``storage-config`` for a URL that is none, or is not encrypted; ``invalid-credentials`` for bad headers.
        """
        check_attempts(max_attempts)
        place, _, query = url.partition("?")
        check_web_url(place, allow_http)
        return cls(None, place, WebPlace(place, query, http_access(headers), max_attempts, whole_bytes))

    @property
    def directory(self) -> Path | None:
        """The catalog's directory, from which relative references start; None when it is in memory or remote."""
        return None if self.path is None else self.path.parent

    @property
    def home(self) -> str | None:
        """The directory or URL prefix from which relative references start; None in memory."""
        if self.place is not None:
            return self.place.base
        return None if self.path is None else str(self.path.parent)

    def __repr__(self) -> str:
        if isinstance(self.place, S3Place):
            return f"StorageConfig.s3_from_config(bucket={self.place.bucket!r}, prefix={self.place.key!r})"
        if self.place is not None:
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
    )
    return StorageConfig.s3_from_config(bucket=bucket, prefix=prefix, credentials=credentials, **options)


def as_storage(storage: str | os.PathLike[str] | StorageConfig) -> StorageConfig:
    """What a caller passed as the place of a repository, as a `StorageConfig`.

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
        f"a repository's place is a path or a StorageConfig, not {type(storage).__name__}:"
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
    place = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    raise StorageError(
        f"a repository at {shown(place)} is not supported: it is a path, such as in"
        " icelite.StorageConfig.filesystem('ocean.icelite'), or a URL that begins with s3:// or https://",
        ErrorKind.UNSUPPORTED_STORAGE,
    )
