"""Virtual chunk containers and locations, in icelite's words and in Icechunk's.

Icechunk percent-decodes the path of a location when it reads, icelite takes it verbatim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from icelite.config import VirtualChunkContainer, covers
from icelite.storage import AnyObjectStoreConfig, ObjectStoreConfig, S3Options
from icelite.types import Location

if TYPE_CHECKING:
    import icechunk

_OPTIONS = ("region", "endpoint_url", "allow_http", "anonymous", "force_path_style", "network_stream_timeout_seconds")


def to_icechunk(container: VirtualChunkContainer) -> icechunk.VirtualChunkContainer:
    """A container in Icechunk's words; one without a store gets the defaults of its scheme."""
    import icechunk

    name = None if container.name == container.url_prefix else container.name
    return icechunk.VirtualChunkContainer(container.url_prefix, _their_store(container), name)


def _their_store(container: VirtualChunkContainer) -> Any:
    import icechunk

    store, scheme = container.store, container.url_prefix.partition("://")[0]
    if scheme == "file":
        return icechunk.local_filesystem_store(container.url_prefix.removeprefix("file://"))
    if isinstance(store, ObjectStoreConfig.S3 | ObjectStoreConfig.S3Compatible):
        given = {name: getattr(store.options, name) for name in _OPTIONS}
        kept = {name: value for name, value in given.items() if value is not None}
        return icechunk.s3_store(s3_compatible=isinstance(store, ObjectStoreConfig.S3Compatible), **kept)
    if scheme in ("gs", "gcs"):
        return icechunk.gcs_store()
    return icechunk.http_store() if scheme in ("http", "https") else icechunk.s3_store()


def from_icechunk(container: icechunk.VirtualChunkContainer) -> VirtualChunkContainer:
    """A container of Icechunk's in icelite's words.

    Raises
    ------
    InvalidInputError
        ``storage-config`` for a name or prefix that icelite cannot keep.
    """
    return VirtualChunkContainer(container.url_prefix, _our_store(container.store), container.name)


def _our_store(store: Any) -> AnyObjectStoreConfig | None:
    kind, value = type(store).__name__, getattr(store, "_0", None)
    if kind == "LocalFileSystem" and isinstance(value, str):
        return ObjectStoreConfig.LocalFileSystem(value)
    if kind in ("S3", "S3Compatible"):
        options = S3Options(**{name: getattr(value, name) for name in _OPTIONS})
        return ObjectStoreConfig.S3(options) if kind == "S3" else ObjectStoreConfig.S3Compatible(options)
    return None  # the defaults of its scheme


def to_their_url(url: str) -> str:
    """A location as Icechunk keeps it: what it would decode is encoded; spaces it encodes itself."""
    return url.replace("%", "%25").replace("?", "%3F").replace("#", "%23")


def from_their_url(url: str) -> str:
    """A location as icelite keeps it: verbatim."""
    return unquote(url) if "%" in url else url


def missing_prefixes(locations: set[str], containers: list[VirtualChunkContainer]) -> list[str]:
    """Directories of local files that no container covers, so that Icechunk would not read them."""
    found: list[str] = []
    for url in sorted(locations):
        known = [*(container.url_prefix for container in containers), *found]
        if url.startswith("file://") and not any(covers(prefix, url) for prefix in known):
            found.append(url.rpartition("/")[0] + "/")
    return found


def is_relative(location: Location) -> bool:
    """Whether a location is relative to the catalog's directory."""
    return location.container is None and "://" not in location.path
