"""What opens places other than S3, and which credential fits which URL prefix."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from icelite.credentials.s3 import HIDDEN, AnyS3Credential, invalid_credentials

COPY_BYTES = 256 << 20


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
    redirects
        URL prefixes out of the authorised one that redirects may lead to; they get none of the headers.
    get_headers
        Gives the headers instead, again when a server says that they are no longer good (HTTP 401).
    copy_bytes
        The most that is copied of one file whose server knows no ranges.
    """

    headers: tuple[tuple[str, str], ...] = ()
    redirects: tuple[str, ...] = ()
    get_headers: Callable[[], Mapping[str, str]] | None = None

    copy_bytes: int = COPY_BYTES
    _renewed: list[dict[str, str]] = field(default_factory=list, compare=False)

    def current_headers(self) -> dict[str, str]:
        """The headers to send now; the first time the caller's function is asked.

        Raises
        ------
        InvalidInputError
            ``invalid-credentials`` when that fails.
        """
        if self.get_headers is None:
            return dict(self.headers)
        return self._renewed[-1] if self._renewed else self.renewed_headers({})

    def renewed_headers(self, refused: Mapping[str, str]) -> dict[str, str]:
        """New headers from the caller's function, unless another request has asked it since these were refused."""
        assert self.get_headers is not None
        with _renewing:
            if not self._renewed or self._renewed[-1] == refused:
                self._renewed[:] = [dict(_ask(self.get_headers))]
            return self._renewed[-1]

    def __repr__(self) -> str:
        names = ", ".join(name for name, _ in self.headers) if self.get_headers is None else "get_headers"
        return f"WebAccess({names}={HIDDEN})" if names else "HttpAccess"


_renewing = threading.RLock()


def _ask(get_headers: Callable[[], Mapping[str, str]]) -> tuple[tuple[str, str], ...]:
    failure = None
    try:
        headers: object = get_headers()
    except Exception as error:  # noqa: BLE001  # the caller's function; its message may hold a secret
        headers, failure = None, type(error).__name__
    if not isinstance(headers, Mapping):
        outcome = f"raised {failure}" if failure else f"returned a {type(headers).__name__}, not a mapping"
        raise invalid_credentials(f"the get_headers function of http_access {outcome}: call it by itself to see why")
    return _checked(headers)


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


def http_access(
    headers: Mapping[str, str] | None = None,
    *,
    redirects: Iterable[str] = (),
    get_headers: Callable[[], Mapping[str, str]] | None = None,
    copy_bytes: int = COPY_BYTES,
) -> WebAccess:
    """Authorises an ``https://`` prefix, with headers to send; without headers it is `HttpAccess`.

    A login for the host in ``~/.netrc`` (or the file that ``NETRC`` names) is used where no ``Authorization`` is sent.

    Parameters
    ----------
    redirects
        URL prefixes that redirects may lead to, such as a login's host and the one of signed URLs. The headers are not
        sent there.
    get_headers
        Gives the headers instead, such as a token that expires: called before the first request, and again when a
        server answers with HTTP 401.
    copy_bytes
        A server that knows no ranges sends a file whole, and it is copied to the temporary folder for a while: at most
        so many bytes of one file.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials`` for headers that are no text, prefixes that name no host, or both kinds of headers.
    """
    if isinstance(redirects, str):
        redirects = (redirects,)
    places = tuple(redirects)
    for place in places:
        named: object = place
        if not isinstance(named, str) or not re.fullmatch(r"https?://[^/@\s]+/\S*", place):
            raise invalid_credentials(f"redirects holds {place!r}, which is no prefix such as 'https://example.org/'")
    given_function: object = get_headers
    if given_function is not None and (headers or not callable(given_function)):
        raise invalid_credentials("pass headers, or a function that gives them as get_headers, not both")
    given: object = copy_bytes
    if type(given) is not int or copy_bytes < 0:
        raise invalid_credentials(f"copy_bytes={copy_bytes!r} is not a number of bytes")
    return WebAccess(_checked(headers or {}), places, get_headers, copy_bytes)


def _checked(headers: Mapping[Any, Any]) -> tuple[tuple[str, str], ...]:
    pairs = tuple(headers.items())
    if not all(isinstance(part, str) and part.isprintable() for pair in pairs for part in pair):
        raise invalid_credentials("headers must be a mapping of printable text to printable text")
    return pairs


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
