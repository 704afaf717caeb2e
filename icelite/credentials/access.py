"""What opens places other than S3, and which credential fits which URL prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icelite.credentials.s3 import HIDDEN, AnyS3Credential, invalid_credentials


@dataclass(frozen=True, slots=True)
class LocalAccess:
    """The type of `LocalFileSystemAccess`."""

    def __repr__(self) -> str:
        return "LocalFileSystemAccess"


#: Authorises the local files under a ``file://`` prefix; there are no credentials to give.
LocalFileSystemAccess = LocalAccess()


@dataclass(frozen=True, slots=True, repr=False)
class WebAccess:
    """Files of a web server, and the headers to send with every request for them.

    Attributes
    ----------
    headers
        Pairs of name and value, such as ``("Authorization", "Bearer ...")``; only their names are ever printed.
    """

    headers: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        names = ", ".join(name for name, _ in self.headers)
        return f"WebAccess({names}={HIDDEN})" if self.headers else "HttpAccess"


#: Authorises the files under an ``https://`` prefix, with no credentials.
HttpAccess = WebAccess()


@dataclass(frozen=True, slots=True, repr=False)
class FilesystemAccess:
    """Objects under a ``gs://`` or ``az://`` prefix, through the fsspec package for them.

    Attributes
    ----------
    options
        Keyword arguments of the fsspec filesystem as pairs, such as ``("account_name", "ocean")``; never printed.
    """

    options: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        return f"FilesystemAccess({', '.join(f'{name}={HIDDEN}' for name, _ in self.options)})"


AnyCredential = AnyS3Credential | LocalAccess | WebAccess | FilesystemAccess

_ACCEPTED: dict[str, tuple[Any, str]] = {
    "file": (LocalAccess, "icelite.LocalFileSystemAccess"),
    "s3": (AnyS3Credential, "icelite.s3_credentials(...)"),
    "https": (WebAccess, "icelite.HttpAccess"),
    "http": (WebAccess, "icelite.HttpAccess"),
    "memory": (FilesystemAccess, "icelite.credentials.filesystem_access(...)"),
    "gcs": (FilesystemAccess, "icelite.credentials.filesystem_access(...)"),
    "gs": (FilesystemAccess, "icelite.credentials.filesystem_access(...)"),
    "az": (FilesystemAccess, "icelite.credentials.filesystem_access(...)"),
    "abfs": (FilesystemAccess, "icelite.credentials.filesystem_access(...)"),
}


def http_access(headers: Mapping[str, str] | None = None) -> WebAccess:
    """Authorises an ``https://`` prefix, with headers to send; without headers it is `HttpAccess`.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials`` for headers that are no text.
    """
    pairs: tuple[tuple[Any, Any], ...] = tuple((headers or {}).items())
    if not all(isinstance(part, str) and part.isprintable() for pair in pairs for part in pair):
        raise invalid_credentials("headers must be a mapping of printable text to printable text")
    return WebAccess(pairs)


def filesystem_access(**options: Any) -> FilesystemAccess:
    """Authorises a ``gs://`` or ``az://`` prefix: keyword arguments of gcsfs's or adlfs's filesystem, if any."""
    return FilesystemAccess(tuple(sorted(options.items())))


def containers_credentials(m: Mapping[str, AnyCredential | None]) -> dict[str, AnyCredential | None]:
    """Check a mapping of URL prefix to credentials, for ``authorize_virtual_chunk_access``.

    None stands for `LocalFileSystemAccess` on a ``file://`` prefix, for `HttpAccess` on an ``https://`` one, and for
    the environment on all others.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials`` for a value that does not fit its prefix.
    """
    for prefix, credential in m.items():
        check_credential(prefix, credential)
    return dict(m)


def check_credential(prefix: str, credential: AnyCredential | None) -> None:
    """Refuse a credential of the wrong kind for a prefix; the value itself is never printed.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials``.
    """
    scheme, _, rest = str(prefix).partition("://")
    if scheme not in _ACCEPTED:
        raise invalid_credentials(
            f"{prefix!r} cannot be authorised: a prefix starts with one of {', '.join(_ACCEPTED)} and '://'"
        )
    kind, wanted = _ACCEPTED[scheme]
    if credential is not None and not isinstance(credential, kind):
        raise invalid_credentials(f"{prefix!r} was authorised with a {type(credential).__name__}: pass {wanted}")
    if kind is WebAccess and not rest.strip("/"):
        raise invalid_credentials(
            f"{prefix!r} would authorise every web server: name one, as in '{scheme}://example.org/data/'"
        )
