"""Where virtual chunks come from: the kinds of store that a `VirtualChunkContainer` may name."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from icelite.credentials import S3Options


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
