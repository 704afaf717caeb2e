"""How a repository behaves (`RepositoryConfig`), and the prefixes that virtual chunks may come from.

A URL prefix always ends in ``/`` and covers whole path segments: ``s3://bucket/pre/`` covers ``s3://bucket/pre/x``
and ``s3://bucket/pre``, not ``s3://bucket/prefix``. A container grants nothing: reading also needs the caller's
authorisation (`icelite.virtual`). Only `VirtualRefConfig` holds credentials,
and it is never stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from icelite.credentials import AnyCredential, AnyS3Credential, S3Credentials, S3Options
from icelite.errors import ErrorKind, InvalidInputError, has_secret
from icelite.storage import AnyObjectStoreConfig, ObjectStoreConfig

_EVERY = frozenset({""})  # of removed containers; no prefix is empty
_STORES: dict[str, tuple[type, ...]] = {
    "file": (ObjectStoreConfig.LocalFileSystem,),
    "s3": (ObjectStoreConfig.S3, ObjectStoreConfig.S3Compatible),
}


def normalize_prefix(url_prefix: str) -> str:
    """The one spelling of a URL prefix: with a ``/`` at its end.

    Raises
    ------
    InvalidInputError
        ``storage-config`` when it has no scheme, a ``..``, or a NUL.
    """
    scheme, mark, rest = str(url_prefix).partition("://")
    if scheme != "file" and ("@" in rest.partition("/")[0] or has_secret(url_prefix)):
        raise InvalidInputError(
            f"url_prefix {url_prefix!r} has a user, a password or a signature in it, which everybody who has the"
            " catalog could read: leave it out, and pass credentials or headers with authorize_virtual_chunk_access",
            ErrorKind.STORAGE_CONFIG,
        )
    if not mark or not scheme.isalnum() or ".." in rest.split("/") or "\0" in rest:
        raise InvalidInputError(
            f"url_prefix {url_prefix!r} is not a URL prefix such as 's3://bucket/data/' or 'file:///data/'",
            ErrorKind.STORAGE_CONFIG,
        )
    if scheme == "file" and rest and not rest.startswith("/"):
        raise InvalidInputError(
            f"url_prefix {url_prefix!r} names no absolute directory: write 'file:///{rest}' if that is meant",
            ErrorKind.STORAGE_CONFIG,
        )
    return url_prefix if url_prefix.endswith("/") else url_prefix + "/"


def covers(prefix: str, url: str) -> bool:
    """Whether a normalised prefix covers a URL, on a path segment's boundary."""
    return url.startswith(prefix) or url == prefix[:-1]


def longest_covering(prefixes: Mapping[str, Any], url: str) -> str | None:
    """The longest of the normalised prefixes that covers a URL; None when none does."""
    return max((prefix for prefix in prefixes if covers(prefix, url)), key=len, default=None)


@dataclass(frozen=True, slots=True)
class VirtualChunkContainer:
    """A URL prefix that virtual references may point below. It grants nothing by itself.

    Attributes
    ----------
    url_prefix
        Such as ``s3://bucket/data/``; ``s3://`` alone stands for every bucket. A ``/`` is added at the end.
    store
        How to reach it; None: the defaults of the scheme. Used only when the caller passes the container in this
        process: what a catalog says about endpoints is never followed.
    name
        Lets references be written as ``vcc://name/path``; the prefix itself when none is given.

    Raises
    ------
    InvalidInputError
        ``storage-config`` for a prefix that is none, or a store of another scheme.
    """

    url_prefix: str
    store: AnyObjectStoreConfig | None = None
    name: str | None = None
    from_catalog: bool = field(default=False, init=False, repr=False, compare=False)  # then nobody vouched for it

    def __post_init__(self) -> None:
        object.__setattr__(self, "url_prefix", normalize_prefix(self.url_prefix))
        scheme = self.url_prefix.partition("://")[0]
        if self.store is not None and not isinstance(self.store, _STORES.get(scheme, ())):
            raise InvalidInputError(
                f"container {self.url_prefix!r} was given a {type(self.store).__name__} store, which cannot serve"
                f" {scheme}:// URLs",
                ErrorKind.STORAGE_CONFIG,
            )
        if self.name is None:
            object.__setattr__(self, "name", self.url_prefix)  # cannot clash: a vcc:// name has no slash
        elif self.name != self.url_prefix and (not self.name or any(mark in self.name for mark in "/\0\\")):
            raise InvalidInputError(
                f"container name {self.name!r} must be non-empty and without '/': it is written as vcc://name/path",
                ErrorKind.STORAGE_CONFIG,
            )

    def at(self, url_prefix: str) -> VirtualChunkContainer:
        """The same container at another prefix: with its name, if it has one, and its store if that serves there."""
        same = url_prefix.partition("://")[0] == self.url_prefix.partition("://")[0] != "file"
        name = None if self.name == self.url_prefix else self.name
        moved = VirtualChunkContainer(url_prefix, self.store if same else None, name)
        object.__setattr__(moved, "from_catalog", self.from_catalog)
        return moved

    def options(self) -> dict[str, Any]:
        """The store as a JSON-able object, for the catalog; `from_options` reads it back."""
        if self.store is None:
            return {}
        if isinstance(self.store, ObjectStoreConfig.LocalFileSystem):
            return {"type": "local", "path": self.store.path}
        kind = "s3" if isinstance(self.store, ObjectStoreConfig.S3) else "s3_compatible"
        return {"type": kind, **self.store.options.to_dict()}

    @classmethod
    def from_options(
        cls, url_prefix: str, options: Mapping[str, Any], name: str | None = None
    ) -> VirtualChunkContainer:
        """A container whose store `options` wrote; keys this release does not know are left out.

        Raises
        ------
        InvalidInputError
            ``storage-config`` for values of the wrong type.
        """
        given: object = options
        if not isinstance(given, Mapping):
            raise _bad_options()
        container = cls(url_prefix, _store_from_options(given) if given else None, name)
        object.__setattr__(container, "from_catalog", True)
        return container


def _store_from_options(options: Mapping[str, Any]) -> AnyObjectStoreConfig:
    kind, path = options.get("type"), options.get("path")
    if kind == "local" and isinstance(path, str):
        return ObjectStoreConfig.LocalFileSystem(path)
    given = {option.name: options[option.name] for option in fields(S3Options) if option.name in options}
    if kind not in ("s3", "s3_compatible") or not all(_is_option(name, value) for name, value in given.items()):
        raise _bad_options()
    return (ObjectStoreConfig.S3 if kind == "s3" else ObjectStoreConfig.S3Compatible)(S3Options(**given))


def _bad_options() -> InvalidInputError:
    return InvalidInputError(
        "the stored options of a container are not those of a local or S3 store", ErrorKind.STORAGE_CONFIG
    )


def _is_option(name: str, value: object) -> bool:
    if name in ("region", "endpoint_url"):
        return isinstance(value, str)
    return type(value) is (int if name in ("network_stream_timeout_seconds", "max_attempts") else bool)


class RepositoryConfig:
    """Settings of a repository. What is not given stays as stored, or as the default.

    Parameters
    ----------
    inline_chunk_threshold_bytes
        Where objects are used, chunks up to this many bytes go into the catalog all the same; default 512.
    object_target_bytes
        Where objects are used, smaller chunks that are written together share an object of about this many bytes;
        default 8 MiB. With 0 each chunk is an object.
    busy_timeout_seconds
        How long a write waits for another process; default 30.
    virtual_chunk_containers
        By URL prefix; see `VirtualChunkContainer`.
    store_signed_urls
        Whether references may be written whose URL carries a signature, such as a presigned one: everybody who has the
        catalog can use it until it expires. Holds for this process only; default False.
    strict_locking
        Refuse to write to a file on a network file system, instead of warning; default False.

    Raises
    ------
    InvalidInputError
        ``invalid-argument`` for a value out of range or of the wrong type.
    """

    def __init__(
        self,
        inline_chunk_threshold_bytes: int | None = None,
        busy_timeout_seconds: float | None = None,
        virtual_chunk_containers: Mapping[str, VirtualChunkContainer] | None = None,
        object_target_bytes: int | None = None,
        store_signed_urls: bool | None = None,
        strict_locking: bool | None = None,
    ) -> None:
        self._inline_chunk_threshold_bytes: int | None = None
        self._busy_timeout_seconds: float | None = None
        self._object_target_bytes: int | None = None
        self._strict_locking: bool | None = None
        self._containers: dict[str, VirtualChunkContainer] | None = None
        self._removed: frozenset[str] = frozenset()  # prefixes that are taken away from what this is laid over
        self._store_signed_urls: bool | None = None
        if store_signed_urls is not None:
            self.store_signed_urls = store_signed_urls
        if strict_locking is not None:
            self.strict_locking = strict_locking
        if inline_chunk_threshold_bytes is not None:
            self.inline_chunk_threshold_bytes = inline_chunk_threshold_bytes
        if busy_timeout_seconds is not None:
            self.busy_timeout_seconds = busy_timeout_seconds
        if object_target_bytes is not None:
            self.object_target_bytes = object_target_bytes
        for container in (virtual_chunk_containers or {}).values():
            self.set_virtual_chunk_container(container)

    @staticmethod
    def default() -> RepositoryConfig:
        """A configuration that sets nothing."""
        return RepositoryConfig()

    @property
    def inline_chunk_threshold_bytes(self) -> int:
        """Bytes up to which a chunk is kept in the catalog where objects are used."""
        return 512 if self._inline_chunk_threshold_bytes is None else self._inline_chunk_threshold_bytes

    @inline_chunk_threshold_bytes.setter
    def inline_chunk_threshold_bytes(self, value: int) -> None:
        if type(value) is not int or not 0 <= value < 2**31:
            raise _out_of_range("inline_chunk_threshold_bytes", value, "a number of bytes from 0 to 2**31 - 1")
        self._inline_chunk_threshold_bytes = value

    @property
    def object_target_bytes(self) -> int:
        """Bytes of the objects that smaller chunks share where objects are used."""
        return 8 << 20 if self._object_target_bytes is None else self._object_target_bytes

    @object_target_bytes.setter
    def object_target_bytes(self, value: int) -> None:
        if type(value) is not int or not 0 <= value < 2**31:
            raise _out_of_range("object_target_bytes", value, "a number of bytes from 0 to 2**31 - 1")
        self._object_target_bytes = value

    @property
    def busy_timeout_seconds(self) -> float:
        """Seconds that a write waits for another process."""
        return 30.0 if self._busy_timeout_seconds is None else self._busy_timeout_seconds

    @busy_timeout_seconds.setter
    def busy_timeout_seconds(self, value: float) -> None:
        if type(value) not in (int, float) or not (math.isfinite(value) and 0 <= value <= 86_400):
            raise _out_of_range("busy_timeout_seconds", value, "a number of seconds from 0 to 86,400")
        self._busy_timeout_seconds = float(value)

    @property
    def store_signed_urls(self) -> bool:
        """Whether references may be written whose URL carries a signature."""
        return bool(self._store_signed_urls)

    @store_signed_urls.setter
    def store_signed_urls(self, value: bool) -> None:
        if type(value) is not bool:
            raise _out_of_range("store_signed_urls", value, "True or False")
        self._store_signed_urls = value

    @property
    def strict_locking(self) -> bool:
        """Whether a file on a network file system is not written to."""
        return bool(self._strict_locking)

    @strict_locking.setter
    def strict_locking(self, value: bool) -> None:
        if type(value) is not bool:
            raise _out_of_range("strict_locking", value, "True or False")
        self._strict_locking = value

    @property
    def virtual_chunk_containers(self) -> dict[str, VirtualChunkContainer] | None:
        """A copy of the containers by prefix; None when none was ever set."""
        return None if self._containers is None else dict(self._containers)

    def set_virtual_chunk_container(self, cont: VirtualChunkContainer) -> None:
        """Add a container, or replace the one with the same prefix or name: then references through it follow."""
        if self._removed != _EVERY:  # what was cleared stays so, and this one comes anew
            self._removed = self._removed - {cont.url_prefix}
        others = {p: known for p, known in (self._containers or {}).items() if known.name != cont.name}
        self._containers = {**others, cont.url_prefix: cont}

    def get_virtual_chunk_container(self, url_prefix: str) -> VirtualChunkContainer | None:
        """The container with this prefix (final ``/`` or not), or None."""
        return (self._containers or {}).get(normalize_prefix(url_prefix))

    def remove_virtual_chunk_container(self, url_prefix: str) -> None:
        """Remove the container with this prefix, also from what it is laid over; nothing where there is none."""
        prefix = normalize_prefix(url_prefix)
        self._containers = {
            known: container for known, container in (self._containers or {}).items() if known != prefix
        }
        self._removed = self._removed | {prefix}

    def clear_virtual_chunk_containers(self) -> None:
        """Remove every container, also those of what it is laid over; `Repository.save_config` makes it last."""
        self._containers = {}
        self._removed = _EVERY

    def merge(self, other: RepositoryConfig) -> RepositoryConfig:
        """A new configuration: this one with what ``other`` sets laid over it, container by container."""
        merged = RepositoryConfig.from_dict({**self.to_dict(), **other.to_dict()})
        chosen = self if other._store_signed_urls is None else other
        merged._store_signed_urls = chosen._store_signed_urls
        if self._containers is not None or other._containers is not None:
            merged._containers = {p: c for p, c in (self._containers or {}).items() if not other._removes(p)}
            for container in (other._containers or {}).values():
                merged.set_virtual_chunk_container(container)
        merged._removed = _EVERY if _EVERY in (self._removed, other._removed) else self._removed | other._removed
        return merged

    def without_removals(self) -> RepositoryConfig:
        """A copy that takes no container away from what it is laid over."""
        copy = self.merge(RepositoryConfig())
        copy._removed = frozenset()
        return copy

    def _removes(self, prefix: str) -> bool:
        return self._removed == _EVERY or prefix in self._removed

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what was given, without containers (they have a table) and never a credential."""
        given = {
            "inline_chunk_threshold_bytes": self._inline_chunk_threshold_bytes,
            "busy_timeout_seconds": self._busy_timeout_seconds,
            "object_target_bytes": self._object_target_bytes,
            "strict_locking": self._strict_locking,
        }
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RepositoryConfig:
        """A configuration as `to_dict` wrote it; keys this release does not know are left out.

        Raises
        ------
        InvalidInputError
            ``invalid-argument`` for a value out of range or of the wrong type.
        """
        return cls(
            values.get("inline_chunk_threshold_bytes"),
            values.get("busy_timeout_seconds"),
            object_target_bytes=values.get("object_target_bytes"),
            strict_locking=values.get("strict_locking"),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RepositoryConfig):
            return NotImplemented
        one, two = ({**config.__dict__, "_removed": None} for config in (self, other))
        return one == two

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        values: dict[str, Any] = {**self.to_dict(), "virtual_chunk_containers": self._containers}
        return f"RepositoryConfig({', '.join(f'{n}={v!r}' for n, v in values.items() if v is not None)})"


def _out_of_range(name: str, value: object, wanted: str) -> InvalidInputError:
    return InvalidInputError(f"{name}={value!r} must be {wanted}", ErrorKind.INVALID_ARGUMENT)


@dataclass(frozen=True, slots=True)
class VirtualRefConfig:
    """One way to read every ``s3://`` virtual reference. Made by its class methods."""

    credentials: AnyS3Credential
    options: S3Options

    @classmethod
    def s3_from_config(
        cls,
        *,
        credentials: AnyS3Credential,
        endpoint_url: str | None = None,
        allow_http: bool | None = None,
        region: str | None = None,
    ) -> VirtualRefConfig:
        """With the given keys.

        Raises
        ------
        InvalidInputError
            ``invalid-credentials`` when they are not S3 credentials, ``storage-config`` for a bad endpoint.
        """
        if not isinstance(credentials, AnyS3Credential):
            raise InvalidInputError(
                f"credentials must be icelite.S3Credentials(...), not {type(credentials).__name__}",
                ErrorKind.INVALID_CREDENTIALS,
            )
        return cls(credentials, S3Options(region, endpoint_url, bool(allow_http)))

    @classmethod
    def s3_from_env(cls) -> VirtualRefConfig:
        """With what the environment offers."""
        return cls(S3Credentials.FromEnv(), S3Options())

    @classmethod
    def s3_anonymous(
        cls, *, endpoint_url: str | None = None, allow_http: bool | None = None, region: str | None = None
    ) -> VirtualRefConfig:
        """Unsigned: public buckets. Raises as `s3_from_config` for a bad endpoint."""
        return cls(S3Credentials.Anonymous(), S3Options(region, endpoint_url, bool(allow_http)))


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """The store-first API's configuration: it becomes a `RepositoryConfig` and an authorisation."""

    virtual_ref_config: VirtualRefConfig | None = None
    inline_chunk_threshold_bytes: int | None = None

    def repository_config(self) -> RepositoryConfig:
        """The same as a `RepositoryConfig`; raises as that does."""
        config = RepositoryConfig(self.inline_chunk_threshold_bytes)
        if self.virtual_ref_config is not None:
            store = ObjectStoreConfig.S3(self.virtual_ref_config.options)
            config.set_virtual_chunk_container(VirtualChunkContainer("s3://", store))
        return config

    def authorizations(self) -> dict[str, AnyCredential | None]:
        """For ``authorize_virtual_chunk_access``: every bucket, with the credentials given; empty without any."""
        return {} if self.virtual_ref_config is None else {"s3://": self.virtual_ref_config.credentials}
