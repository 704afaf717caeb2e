"""How to reach an S3-compatible service: endpoint, region and patience, apart from who is asking."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from icelite.errors import ErrorKind, InvalidInputError


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
