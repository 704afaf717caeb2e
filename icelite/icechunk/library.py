"""The package icechunk: found or asked for by name, and its errors as icelite's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from icelite.errors import ErrorKind, IceliteError, InvalidInputError, StorageError

if TYPE_CHECKING:
    from types import ModuleType

    import icechunk
    from zarr.core.buffer import Buffer

KEPT_ID = "icelite_snapshot_id"  # keys of commit metadata, where Icechunk gave a snapshot an id and time of its own
KEPT_TIME = "icelite_written_at"
UNFINISHED = "icelite_export_unfinished"  # key of repository metadata while an export to a storage object runs


def load_icechunk() -> ModuleType:
    """The package icechunk.

    Raises
    ------
    InvalidInputError
        ``missing-package`` when it is not installed, or older than 2.
    """
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
        ``invalid-argument`` for what Icechunk refuses, ``bad-metadata`` for a document it cannot hold; ``io``.
    """
    import icechunk

    try:
        yield
    except icechunk.IcechunkError as error:
        if but is not None and isinstance(error, but):
            raise
        reason = f"{what}: Icechunk says {error.kind}: {error.message.partition(chr(10))[0]}"
        if isinstance(error, icechunk.StorageError):
            raise StorageError(reason, ErrorKind.IO) from error
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
