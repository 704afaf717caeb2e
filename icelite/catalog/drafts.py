"""A catalog that is filled under another name beside its place, and gets its own when it is whole."""

from __future__ import annotations

from icelite.catalog import connections, known
from icelite.errors import ErrorKind, InternalError, RepositoryNotFoundError
from icelite.storage import StorageConfig


def check_free(storage: StorageConfig) -> None:
    """Refuse a place where there is something already, or no directory to put it into.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError, FormatError, StorageError
        ``repository-already-exists``; ``repository-not-found`` for the directory; ``unsafe-sidecar``; ``io``.
    """
    if storage.path is None:
        return
    if not storage.path.parent.is_dir():
        raise RepositoryNotFoundError(
            f"directory {storage.path.parent} does not exist, so {storage.path.name} cannot be created in it; make it"
            " first",
            ErrorKind.REPOSITORY_NOT_FOUND,
        )
    connections.check_free(storage.path)


def publish(draft: StorageConfig, storage: StorageConfig) -> None:
    """Give a finished catalog, which nobody has open, its name in the same directory; raises as `check_free`."""
    if draft.path is None or storage.path is None:
        raise InternalError(f"{draft.name} and {storage.name} are not both files")
    connections.publish(draft.path, storage.path)
    known.remember(storage.path)
