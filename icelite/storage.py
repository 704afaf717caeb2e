"""Where a repository's catalog is (`StorageConfig`), and where virtual chunks come from (`ObjectStoreConfig`).

These are values: making one touches no file and no network. A path is made absolute and its symbolic links are
resolved here, once, because relative references are relative to the directory of the real catalog file.
Nothing here holds a credential.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Never
from urllib.parse import unquote, urlsplit

from icelite.errors import ErrorKind, InvalidInputError, StorageError


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to reach an S3-compatible service; never who is asking.

    Attributes
    ----------
    region
        None: what the environment says, else us-east-1.
    endpoint_url
        None: Amazon's. A plain ``http://`` endpoint needs ``allow_http=True``.
    anonymous
        Requests are not signed, whatever the credentials.
    force_path_style
        ``endpoint/bucket/key`` instead of ``bucket.endpoint/key``; always so when ``endpoint_url`` is given.
    network_stream_timeout_seconds
        Seconds without a byte after which a request fails; None: 60.

    Raises
    ------
    InvalidInputError
        ``storage-config`` for an endpoint that is not a plain http(s) URL, or is http without ``allow_http``.
    """

    region: str | None = None
    endpoint_url: str | None = None
    allow_http: bool = False
    anonymous: bool = False
    force_path_style: bool = False
    network_stream_timeout_seconds: int | None = None
    requester_pays: bool = False

    def __post_init__(self) -> None:
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url, self.allow_http)

    def merge(self, other: S3Options) -> S3Options:
        """These options with everything that ``other`` sets laid over them."""
        return replace(self, **other.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what differs from the defaults."""
        values = ((option.name, getattr(self, option.name), option.default) for option in fields(self))
        return {name: value for name, value, default in values if value != default}


def _check_endpoint(endpoint_url: str, allow_http: bool) -> None:
    if "@" in endpoint_url:  # not echoed: it may hold a password
        raise InvalidInputError(
            "an endpoint_url with a user or password in it is refused: pass credentials with icelite.s3_credentials",
            ErrorKind.STORAGE_CONFIG,
        )
    scheme, _, rest = endpoint_url.partition("://")
    if scheme not in ("http", "https") or not rest.strip("/") or any(mark in rest for mark in "?#\\ "):
        raise InvalidInputError(
            f"endpoint_url {endpoint_url!r} is not a URL such as 'https://s3.example.org' or 'http://localhost:9000'",
            ErrorKind.STORAGE_CONFIG,
        )
    if scheme == "http" and not allow_http:
        raise InvalidInputError(
            f"endpoint_url {endpoint_url!r} is not encrypted: pass allow_http=True with it if that is meant",
            ErrorKind.STORAGE_CONFIG,
        )


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


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """Where one repository's catalog is. Made by its class methods.

    Attributes
    ----------
    path
        The catalog file, absolute and without symbolic links; None for a catalog in memory.
    name
        The path as text; for a catalog in memory an identifier that no other one has.
    """

    path: Path | None
    name: str

    @classmethod
    def filesystem(cls, path: str | os.PathLike[str]) -> StorageConfig:
        """One file on a local disk; ``~`` is expanded.

        Raises
        ------
        InvalidInputError
            ``invalid-path`` for an empty path or one with a NUL.
        """
        text: object = os.fspath(path)
        if not isinstance(text, str) or not text or "\0" in text:
            raise InvalidInputError(
                f"catalog path {text!r} is not a path of text: pass one such as 'ocean.icelite'",
                ErrorKind.INVALID_PATH,
            )
        absolute = os.path.realpath(os.path.expanduser(text))
        return cls(Path(absolute), absolute)

    @classmethod
    def memory(cls, prefix: str | None = None) -> StorageConfig:
        """A catalog that lives as long as this process; every call gives another one."""
        return cls(None, f"{prefix or 'memory'}-{uuid.uuid4().hex}")

    @classmethod
    def s3_from_config(cls, *, bucket: str, prefix: str | None = None, **options: Any) -> StorageConfig:
        """A catalog in a bucket: not in this release.

        Raises
        ------
        StorageError
            ``unsupported-storage``, always.
        """
        _refuse_remote(_bucket_url(bucket, prefix))

    @classmethod
    def s3_from_env(cls, *, bucket: str, prefix: str | None = None, **options: Any) -> StorageConfig:
        """A catalog in a bucket: not in this release; see `s3_from_config`."""
        _refuse_remote(_bucket_url(bucket, prefix))

    @classmethod
    def s3_anonymous(cls, *, bucket: str, prefix: str | None = None, **options: Any) -> StorageConfig:
        """A catalog in a bucket: not in this release; see `s3_from_config`."""
        _refuse_remote(_bucket_url(bucket, prefix))

    @property
    def directory(self) -> Path | None:
        """The catalog's directory, from which relative references start; None in memory."""
        return None if self.path is None else self.path.parent

    def __repr__(self) -> str:
        return (
            f"StorageConfig.memory({self.name!r})" if self.path is None else f"StorageConfig.filesystem({self.name!r})"
        )


def local_filesystem_storage(path: str | os.PathLike[str]) -> StorageConfig:
    """`StorageConfig.filesystem` under Icechunk's name."""
    return StorageConfig.filesystem(path)


def in_memory_storage() -> StorageConfig:
    """`StorageConfig.memory` under Icechunk's name."""
    return StorageConfig.memory()


def s3_storage(*, bucket: str, prefix: str | None = None, **options: Any) -> StorageConfig:
    """A catalog in a bucket: not in this release; see `StorageConfig.s3_from_config`."""
    _refuse_remote(_bucket_url(bucket, prefix))


def as_storage(storage: str | os.PathLike[str] | StorageConfig) -> StorageConfig:
    """What a caller passed as the place of a repository, as a `StorageConfig`.

    Raises
    ------
    StorageError
        ``unsupported-storage`` for a URL other than ``file://``.
    InvalidInputError
        ``invalid-path`` for an unusable path, ``invalid-argument`` for another type.
    """
    if isinstance(storage, StorageConfig):
        return storage
    if isinstance(storage, str) and "://" in storage:
        if not storage.startswith("file:///"):
            _refuse_remote(storage)
        return StorageConfig.filesystem(_path_of_file_url(storage))
    if isinstance(storage, (str, os.PathLike)):
        return StorageConfig.filesystem(storage)
    raise InvalidInputError(
        f"a repository's place is a path or a StorageConfig, not {type(storage).__name__}:"
        " pass 'ocean.icelite' or icelite.StorageConfig.filesystem('ocean.icelite')",
        ErrorKind.INVALID_ARGUMENT,
    )


def _path_of_file_url(url: str) -> str:
    path = url.removeprefix("file://")
    return path if os.path.exists(path) else unquote(path)


def _bucket_url(bucket: str, prefix: str | None) -> str:
    return f"s3://{bucket}/{prefix or ''}"


def _refuse_remote(url: str) -> Never:
    place = urlsplit(url)._replace(query="", fragment="")  # a presigned URL carries a signature there
    place = place._replace(netloc=place.netloc.rpartition("@")[2])
    raise StorageError(
        f"a repository at {place.geturl()!r} is not supported by this release: the catalog must be a file on a local"
        " disk, such as icelite.StorageConfig.filesystem('ocean.icelite'); its virtual references may be on S3",
        ErrorKind.UNSUPPORTED_STORAGE,
    )
