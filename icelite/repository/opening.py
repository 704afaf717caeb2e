"""The repository that a call writes to: opened, or made and, if nothing comes of it, removed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from icelite.catalog.creation import remove_unused
from icelite.config import RepositoryConfig
from icelite.credentials import AnyCredential
from icelite.errors import AlreadyExistsError, RepositoryNotFoundError
from icelite.repository.repository import Repository
from icelite.storage import StorageConfig


@contextmanager
def open_or_make(
    storage: StorageConfig,
    config: RepositoryConfig | None = None,
    access: Mapping[str, AnyCredential | None] | None = None,
    *,
    create: bool = True,
) -> Iterator[Repository]:
    """The repository at a place, closed afterwards; one that was made for this goes after an error, if nobody used it.

    Parameters
    ----------
    create
        Whether to make it where there is none.

    Raises
    ------
    RepositoryNotFoundError, FormatError, StorageError
        As `Repository.open` and `Repository.create`.
    """
    made = False
    try:
        repository = Repository.open(storage, config, access)
    except RepositoryNotFoundError:
        if not create:
            raise
        try:
            repository, made = Repository.create(storage, config, access), True
        except AlreadyExistsError:  # another process was quicker
            repository = Repository.open(storage, config, access)
    try:
        yield repository
    except BaseException:
        repository.close()
        if made:
            remove_unused(storage)
        raise
    repository.close()
