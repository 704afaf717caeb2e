"""The package icechunk in icelite's words: found or asked for by name, its errors, containers and locations.

Icechunk percent-decodes the path of a location when it reads, icelite takes it verbatim.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from icelite.config import VirtualChunkContainer, covers
from icelite.credentials import S3Options
from icelite.errors import ErrorKind, IceliteError, InvalidInputError, StorageError, check_open_files
from icelite.storage import AnyObjectStoreConfig, ObjectStoreConfig
from icelite.types import Location

if TYPE_CHECKING:
    from types import ModuleType

    import icechunk
    from zarr.core.buffer import Buffer

KEPT_ID = "icelite_snapshot_id"  # keys of commit metadata, where Icechunk gave a snapshot an id and time of its own
KEPT_TIME = "icelite_written_at"
UNFINISHED = "icelite_export_unfinished"  # key of repository metadata while an export to a storage object runs
_OPTIONS = ("region", "endpoint_url", "allow_http", "anonymous", "force_path_style", "network_stream_timeout_seconds")


def load_icechunk() -> ModuleType:
    """The package icechunk.

    Raises
    ------
    InvalidInputError
        ``missing-package`` when it is not installed, or older than 2.
    StorageError
        ``io`` where this process may not open the files that it needs.
    """
    if "icechunk" not in sys.modules:
        check_open_files("Icechunk cannot be loaded")
    try:
        import icechunk
    except ImportError as error:
        raise _missing("it is not installed") from error
    if int(icechunk.__version__.partition(".")[0]) < 2:
        raise _missing(f"this is {icechunk.__version__}")
    module: ModuleType = icechunk
    return module


def _missing(found: str) -> InvalidInputError:
    return InvalidInputError(
        f"Icechunk repositories need the package icechunk >= 2, and {found}; pip install 'icelite[icechunk]' on"
        " Python 3.12 or newer",
        ErrorKind.MISSING_PACKAGE,
    )


@contextmanager
def translated(what: str, but: type[Exception] | None = None) -> Iterator[None]:
    """Raise Icechunk's errors, those of a class left out, as icelite's; ``what`` names the snapshot or node at hand.

    Raises
    ------
    InvalidInputError, StorageError
        ``invalid-argument`` for what Icechunk refuses, ``bad-metadata`` for a document it cannot hold; ``io``,
        ``storage-full``.
    """
    import icechunk

    try:
        yield
    except icechunk.IcechunkError as error:
        if but is not None and isinstance(error, but):
            raise
        reason = f"{what}: Icechunk says {error.kind}: {error.message.partition(chr(10))[0]}"
        if isinstance(error, icechunk.StorageError):
            is_full = "No space left" in error.message
            raise StorageError(reason, ErrorKind.STORAGE_FULL if is_full else ErrorKind.IO) from error
        kind = ErrorKind.BAD_METADATA if error.kind == "bad-metadata" else ErrorKind.INVALID_ARGUMENT
        raise InvalidInputError(reason, kind) from error


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put the snapshot and node at hand before the message of an icelite error."""
    try:
        yield
    except IceliteError as error:
        error.message = f"{what}: {error.message}"
        raise


def buffer(data: bytes) -> Buffer:
    """Bytes as zarr's stores take them."""
    from zarr.core.buffer import cpu

    return cpu.Buffer.from_bytes(data)


async def read_key(store: icechunk.IcechunkStore, key: str) -> bytes | None:
    """The value of a key, or None."""
    from zarr.core.buffer import default_buffer_prototype

    found: Any = await store.get(key, default_buffer_prototype())
    return None if found is None else found.to_bytes()


# -- containers and locations ----------------------------------------------------------------------------------------


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
