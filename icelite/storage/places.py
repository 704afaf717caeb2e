"""Places of a catalog that are not on this machine: an object in a bucket, a file on a web server."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from icelite.credentials import AnyS3Credential, S3Options, WebAccess
from icelite.errors import ErrorKind, InvalidInputError

EXTENSION = ".icelite"
DEFAULT_NAME = "catalog" + EXTENSION
WHOLE_BYTES = 32 << 20  # catalogs up to this size are fetched in one request
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")  # no ARN: that would name a region and an account
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class S3Place:
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
        """How messages call it."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def base(self) -> str:
        """The prefix, with its final ``/``, from which relative references start."""
        return self.url.rpartition("/")[0] + "/"


@dataclass(frozen=True, slots=True)
class WebPlace:
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
        As for `S3Options` and `S3Place`.
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


RemotePlace = S3Place | WebPlace


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
    if not _BUCKET.fullmatch(bucket):
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
