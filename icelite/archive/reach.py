"""How the sources of one call are reached: object stores for parsers, made from what the caller authorised.

A `Reach` is a value: it pickles to the processes that scan, and each opens its own connections.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from icelite.credentials import AnyS3Credential, S3Credentials, S3Options, S3StaticCredentials
from icelite.errors import ErrorKind, InvalidInputError
from icelite.virtual.refusal import expression, literal, narrow_prefix
from icelite.virtual.s3 import S3Object
from icelite.virtual.web import WebObject

if TYPE_CHECKING:
    from obstore.store import S3Credential

    from icelite.virtual import VirtualAccess
    from icelite.virtual.remote import Target


@dataclass(frozen=True)
class Reach:
    """The way to each place that sources are in.

    Attributes
    ----------
    buckets
        ``s3://bucket`` to credentials and options. Options set on the credentials are in both.
    hosts
        ``https://host`` to the headers that go with each request.
    given
        A registry of the caller's own, used instead.
    """

    buckets: dict[str, tuple[AnyS3Credential, S3Options]] = field(default_factory=dict)
    hosts: dict[str, dict[str, str]] = field(default_factory=dict)
    given: Any = None

    @cached_property
    def registry(self) -> Any:
        """The registry that VirtualiZarr's parsers take."""
        if self.given is not None:
            return self.given
        from obspec_utils.registry import ObjectStoreRegistry
        from obstore.store import HTTPStore, LocalStore

        stores: dict[str, Any] = {"file://": LocalStore()}
        for url, way in self.buckets.items():
            stores[url] = _open_bucket(url.removeprefix("s3://"), *way)
        for url, headers in self.hosts.items():
            stores[url] = HTTPStore(url, client_options={"allow_http": True, "default_headers": headers})
        return ObjectStoreRegistry(stores)

    def __getstate__(self) -> dict[str, Any]:
        return {"buckets": self.buckets, "hosts": self.hosts, "given": self.given}


def reach_of(urls: list[str], access: VirtualAccess, registry: Any) -> Reach:
    """The way to these sources.

    Raises
    ------
    InvalidInputError
        ``unauthorized-virtual-chunk-container``: nothing that the caller passed covers one; ``invalid-argument`` for
        a service that only a ``registry`` reads; ``invalid-virtual-ref``.
    """
    found = Reach(given=registry)
    for url in urls if registry is None else ():
        scheme, _, rest = url.partition("://")
        place = f"{scheme}://{rest.partition('/')[0]}"
        if scheme == "file" or place in found.buckets or place in found.hosts:
            continue
        target = lookup_target(url, access)
        if isinstance(target, S3Object):
            found.buckets[place] = target.client.credentials, target.client.options
        elif isinstance(target, WebObject):
            found.hosts[place] = dict(target.headers)
        else:
            raise InvalidInputError(
                f"source {url!r} is read with an object store of yours: pass registry=, an ObjectStoreRegistry that"
                f" has one for {place!r}",
                ErrorKind.INVALID_ARGUMENT,
            )
    return found


def lookup_target(url: str, access: VirtualAccess) -> Target:
    """The object at a remote URL, which the caller must have authorised.

    Raises
    ------
    InvalidInputError
        ``unauthorized-virtual-chunk-container``, ``invalid-virtual-ref``.
    """
    found = access.find_target(url)
    if found is None:
        prefix = narrow_prefix(url)
        public = ", with icelite.s3_credentials(anonymous=True) for a public bucket" if url.startswith("s3://") else ""
        raise InvalidInputError(
            f"source {url!r} may not be read: nothing that was passed covers it; add"
            f" authorize_virtual_chunk_access={{{literal(prefix)}: {expression(prefix)}}}{public}",
            ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
        )
    return found


def _open_bucket(bucket: str, credentials: AnyS3Credential, options: S3Options) -> Any:
    from obstore.store import S3Store

    settings: dict[str, Any] = {
        "region": options.region,
        "endpoint": options.endpoint_url,
        "request_payer": options.requester_pays or None,
        "virtual_hosted_style_request": None if options.force_path_style or options.endpoint_url else True,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    seconds = options.network_stream_timeout_seconds or 60
    settings["client_options"] = {"allow_http": options.allow_http, "timeout": f"{seconds} seconds"}
    if options.anonymous or isinstance(credentials, S3Credentials.Anonymous):
        return S3Store(bucket, skip_signature=True, **settings)
    if isinstance(credentials, S3Credentials.Refreshable | S3Credentials.FromEnv):
        return S3Store(bucket, credential_provider=_Provider(credentials), **settings)
    keys = credentials.credentials if isinstance(credentials, S3Credentials.Static) else credentials
    settings["access_key_id"], settings["secret_access_key"] = keys.access_key_id, keys.secret_access_key
    if keys.session_token is not None:
        settings["session_token"] = keys.session_token
    return S3Store(bucket, **settings)


class _Provider:
    """Keys that may expire, in the form that obstore asks for."""

    def __init__(self, credentials: S3Credentials.Refreshable | S3Credentials.FromEnv) -> None:
        self._credentials = credentials

    def __call__(self) -> S3Credential:
        keys = self._ask()
        return {
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            "token": keys.session_token,
            "expires_at": keys.expires_after,
        }

    def _ask(self) -> S3StaticCredentials:
        if isinstance(self._credentials, S3Credentials.Refreshable):
            return self._credentials.get_credentials()
        from botocore.session import get_session  # type: ignore[import-untyped]

        found = get_session().get_credentials()  # as s3fs finds them
        if found is None:
            raise InvalidInputError(
                "S3 needs credentials, and none were found in the environment: pass icelite.s3_credentials(...), or"
                " icelite.s3_credentials(anonymous=True) for a public bucket",
                ErrorKind.INVALID_CREDENTIALS,
            )
        keys = found.get_frozen_credentials()
        return S3StaticCredentials(keys.access_key, keys.secret_key, keys.token)
