"""The means by which a caller is let in: credentials, the way to a service (`S3Options`), words for what needs none.

Invariants: no secret, key id or token is in any `repr`, `str` or error; nothing here is ever stored in a catalog
(pickling does carry secrets, as it must to reach a worker). The classes and functions have Icechunk's names; the
keywords ``region``, ``endpoint_url``, ``allow_http``, ``force_path_style`` and ``max_attempts`` are additions, because
a catalog is never asked where credentials should be sent.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any

from icelite.errors import ErrorKind, InvalidInputError

COPY_BYTES = 256 << 20  # of one file whose server knows no ranges
_HIDDEN = "***"


@dataclass(frozen=True, slots=True)
class S3Options:
    """The way to an S3-compatible service; never who is asking.

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
    max_attempts
        How often a request is sent in all when the service fails (5xx), times out or breaks off, with growing pauses
        between; None: 3.

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
    max_attempts: int | None = None

    def __post_init__(self) -> None:
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url, self.allow_http)
        check_attempts(self.max_attempts)

    def merge(self, other: S3Options) -> S3Options:
        """These options with everything that ``other`` sets laid over them."""
        return replace(self, **other.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what differs from the defaults."""
        values = ((option.name, getattr(self, option.name), option.default) for option in fields(self))
        return {name: value for name, value, default in values if value != default}


def check_attempts(max_attempts: object) -> None:
    """Refuse a number of attempts that is none.

    Raises
    ------
    InvalidInputError
        ``storage-config``.
    """
    if max_attempts is not None and (type(max_attempts) is not int or not 1 <= max_attempts <= 100):
        raise InvalidInputError(
            f"max_attempts={max_attempts!r} must be a number of requests from 1 to 100", ErrorKind.STORAGE_CONFIG
        )


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


# -- S3: the ways to sign a request, or not to --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class S3StaticCredentials:
    """An access key, its secret, and for temporary ones a token and the time they end.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials`` for an empty key or secret, or an ``expires_after`` without time zone.
    """

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None
    expires_after: datetime | None = None

    def __post_init__(self) -> None:
        secrets: tuple[object, ...] = (self.access_key_id, self.secret_access_key)
        if not all(isinstance(secret, str) and secret for secret in secrets):
            raise _invalid_credentials("access_key_id and secret_access_key must both be given, as non-empty strings")
        if self.expires_after is not None and self.expires_after.tzinfo is None:
            raise _invalid_credentials(
                f"expires_after={self.expires_after.isoformat()} has no time zone: add tzinfo=timezone.utc"
            )

    def __repr__(self) -> str:
        token = None if self.session_token is None else _HIDDEN
        return (
            f"{type(self).__name__}(access_key_id={_HIDDEN!r}, secret_access_key={_HIDDEN!r},"
            f" session_token={token!r}, expires_after={self.expires_after!r})"
        )


class S3Credentials(S3StaticCredentials):
    """Access key and secret; and the home of the other ways to sign a request (or not to).

    ``S3Credentials(access_key_id=..., secret_access_key=...)`` is accepted wherever credentials are.
    """

    __slots__ = ()

    @dataclass(frozen=True, slots=True)
    class FromEnv:
        """Environment variables, the AWS configuration files, or the machine's role."""

        options: S3Options = field(default_factory=S3Options)

    @dataclass(frozen=True, slots=True)
    class Anonymous:
        """Requests are not signed: public buckets."""

        options: S3Options = field(default_factory=S3Options)

    @dataclass(frozen=True, slots=True)
    class Static:
        """The same keys for every request."""

        credentials: S3StaticCredentials
        options: S3Options = field(default_factory=S3Options)

    @dataclass(frozen=True, slots=True)
    class Refreshable:
        """A function that is asked for keys, and asked again when their ``expires_after`` passes.

        Attributes
        ----------
        get_credentials
            Picklable if the repository is to be pickled.
        current
            Keys to start with, instead of a first call.
        """

        get_credentials: Callable[[], S3StaticCredentials]
        current: S3StaticCredentials | None = None
        options: S3Options = field(default_factory=S3Options)


AnyS3Credential = (
    S3StaticCredentials
    | S3Credentials.Static
    | S3Credentials.Anonymous
    | S3Credentials.FromEnv
    | S3Credentials.Refreshable
)


def s3_credentials(
    *,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    expires_after: datetime | None = None,
    anonymous: bool | None = None,
    from_env: bool | None = None,
    get_credentials: Callable[[], S3StaticCredentials] | None = None,
    scatter_initial_credentials: bool = False,
    region: str | None = None,
    endpoint_url: str | None = None,
    allow_http: bool = False,
    force_path_style: bool = False,
    max_attempts: int | None = None,
) -> AnyS3Credential:
    """Credentials for S3, and optionally where the service is.

    Exactly one way is chosen: keys, ``anonymous=True``, ``get_credentials``, or the environment (also when nothing
    is given).

    Parameters
    ----------
    get_credentials, scatter_initial_credentials
        See `s3_refreshable_credentials`.
    region, endpoint_url, allow_http, force_path_style, max_attempts
        See `S3Options`.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials`` for a key without its secret or for two ways at once; ``storage-config`` for an
        unusable ``endpoint_url``.
    """
    options = S3Options(region, endpoint_url, allow_http, force_path_style=force_path_style, max_attempts=max_attempts)
    keys = (access_key_id, secret_access_key, session_token, expires_after)
    with_keys = any(value is not None for value in keys)
    ways = [bool(anonymous), bool(from_env), get_credentials is not None, with_keys]
    if sum(ways) > 1:
        raise _invalid_credentials(
            "s3_credentials was given more than one of: keys, anonymous=True, from_env=True, get_credentials; give one"
        )
    if anonymous:
        return S3Credentials.Anonymous(options)
    if get_credentials is not None:
        return s3_refreshable_credentials(get_credentials, scatter_initial_credentials, options=options)
    if not with_keys:
        return S3Credentials.FromEnv(options)
    static = S3StaticCredentials(access_key_id or "", secret_access_key or "", session_token, expires_after)
    return S3Credentials.Static(static, options)


def s3_static_credentials(
    *,
    access_key_id: str,
    secret_access_key: str,
    session_token: str | None = None,
    expires_after: datetime | None = None,
) -> S3Credentials.Static:
    """Keys that stay the same.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials``, as `S3StaticCredentials`.
    """
    return S3Credentials.Static(S3StaticCredentials(access_key_id, secret_access_key, session_token, expires_after))


def s3_anonymous_credentials() -> S3Credentials.Anonymous:
    """No signature: public buckets."""
    return S3Credentials.Anonymous()


def s3_from_env_credentials() -> S3Credentials.FromEnv:
    """Whatever the environment, the AWS configuration files or the machine's role offer."""
    return S3Credentials.FromEnv()


def s3_refreshable_credentials(
    get_credentials: Callable[[], S3StaticCredentials],
    scatter_initial_credentials: bool = False,
    *,
    options: S3Options | None = None,
) -> S3Credentials.Refreshable:
    """Keys from a function, asked again when they expire.

    Parameters
    ----------
    get_credentials
        Must be picklable if the repository is pickled.
    scatter_initial_credentials
        Ask now and carry the answer, so that pickled copies need not ask at once.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials`` when ``get_credentials`` cannot be called.
    """
    if not callable(get_credentials):
        raise _invalid_credentials(f"get_credentials must be a function, not {type(get_credentials).__name__}")
    current = get_credentials() if scatter_initial_credentials else None
    return S3Credentials.Refreshable(get_credentials, current, options or S3Options())


def ask_caller(function: Callable[[], Any], name: str, taker: str, kind: type) -> Any:
    """The answer of a function that the caller gave for credentials.

    Parameters
    ----------
    name, taker
        The parameter that it came by, and of what.
    kind
        The type that it must return.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials`` when it raises, or returns something else; what it said is not repeated, since it may
        hold a secret.
    """
    failure = None
    try:
        answer: object = function()
    except Exception as error:  # noqa: BLE001  # the caller's function
        answer, failure = None, type(error).__name__
    if isinstance(answer, kind):
        return answer
    outcome = f"raised {failure}" if failure else f"returned a {type(answer).__name__}, not {kind.__name__}"
    raise _invalid_credentials(f"the {name} function of {taker} {outcome}: call it by itself to see why")


def _invalid_credentials(message: str) -> InvalidInputError:
    """The error for credentials that cannot be used; the message must not repeat them."""
    return InvalidInputError(message, ErrorKind.INVALID_CREDENTIALS)


# -- files, web servers and other services; which credential fits which URL prefix -----------------------------------


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
                self._renewed[:] = [dict(_checked(ask_caller(self.get_headers, "get_headers", "http_access", Mapping)))]
            return self._renewed[-1]

    def __repr__(self) -> str:
        names = ", ".join(name for name, _ in self.headers) if self.get_headers is None else "get_headers"
        return f"WebAccess({names}={_HIDDEN})" if names else "HttpAccess"


_renewing = threading.RLock()


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
        return f"FilesystemAccess({', '.join(f'{name}={_HIDDEN}' for name, _ in self.options)})"


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
    prefixes = tuple(redirects)
    for prefix in prefixes:
        named: object = prefix
        if not isinstance(named, str) or not re.fullmatch(r"https?://[^/@\s]+/\S*", prefix):
            raise _invalid_credentials(f"redirects holds {prefix!r}, which is no prefix such as 'https://example.org/'")
    given_function: object = get_headers
    if given_function is not None and (headers or not callable(given_function)):
        raise _invalid_credentials("pass headers, or a function that gives them as get_headers, not both")
    given: object = copy_bytes
    if type(given) is not int or copy_bytes < 0:
        raise _invalid_credentials(f"copy_bytes={copy_bytes!r} is not a number of bytes")
    return WebAccess(_checked(headers or {}), prefixes, get_headers, copy_bytes)


def _checked(headers: Mapping[Any, Any]) -> tuple[tuple[str, str], ...]:
    pairs = tuple(headers.items())
    if not all(isinstance(part, str) and part.isprintable() for pair in pairs for part in pair):
        raise _invalid_credentials("headers must be a mapping of printable text to printable text")
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
        raise _invalid_credentials(
            f"{prefix!r} cannot be authorised: a prefix starts with one of {', '.join(_ACCEPTED)} and '://'"
        )
    kind, wanted = _ACCEPTED[scheme]
    if credential is not None and not isinstance(credential, kind):
        raise _invalid_credentials(f"{prefix!r} was authorised with a {type(credential).__name__}: pass {wanted}")
    if kind is WebAccess and not rest.strip("/"):
        raise _invalid_credentials(
            f"{prefix!r} would authorise every web server: name one, as in '{scheme}://example.org/data/'"
        )
