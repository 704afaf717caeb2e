"""The ways to sign a request to S3, or not to. Secrets are in no `repr`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from icelite.credentials.options import S3Options
from icelite.errors import ErrorKind, InvalidInputError

HIDDEN = "***"


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
            raise invalid_credentials("access_key_id and secret_access_key must both be given, as non-empty strings")
        if self.expires_after is not None and self.expires_after.tzinfo is None:
            raise invalid_credentials(
                f"expires_after={self.expires_after.isoformat()} has no time zone: add tzinfo=timezone.utc"
            )

    def __repr__(self) -> str:
        token = None if self.session_token is None else HIDDEN
        return (
            f"{type(self).__name__}(access_key_id={HIDDEN!r}, secret_access_key={HIDDEN!r},"
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
        raise invalid_credentials(
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
        raise invalid_credentials(f"get_credentials must be a function, not {type(get_credentials).__name__}")
    current = get_credentials() if scatter_initial_credentials else None
    return S3Credentials.Refreshable(get_credentials, current, options or S3Options())


def invalid_credentials(message: str) -> InvalidInputError:
    """The error for credentials that cannot be used; the message must not repeat them."""
    return InvalidInputError(message, ErrorKind.INVALID_CREDENTIALS)
