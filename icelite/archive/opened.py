"""The repository that a call writes to: `opened` opens it, or makes it and, if nothing comes of it, removes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from icelite.catalog.drafts import remove_unused
from icelite.config import RepositoryConfig, VirtualChunkContainer, longest_covering, normalize_prefix
from icelite.credentials import AnyCredential
from icelite.errors import AlreadyExistsError, RepositoryNotFoundError
from icelite.repository import Repository
from icelite.storage import StorageConfig

Access = Mapping[str, AnyCredential | None]


@contextmanager
def opened(
    place: StorageConfig, config: RepositoryConfig | None, access: Access | None, *, create: bool
) -> Iterator[Repository]:
    """The repository at a place, closed afterwards; one that was made for this is removed again after an error.

    Parameters
    ----------
    access
        Buckets and servers in it that ``config`` has no container for get one: who authorises them means to refer to
        them.
    create
        Whether to make it where there is none.

    Raises
    ------
    RepositoryNotFoundError, FormatError, StorageError
        As `Repository.open` and `Repository.create`.
    """
    config = _with_containers(config, access)
    made = False
    try:
        repository = Repository.open(place, config, access)
    except RepositoryNotFoundError:
        if not create:
            raise
        try:
            repository, made = Repository.create(place, config, access), True
        except AlreadyExistsError:  # another process was quicker
            repository = Repository.open(place, config, access)
    try:
        yield repository
    except BaseException:
        repository.close()
        if made:
            remove_unused(place)
        raise
    repository.close()


def _with_containers(config: RepositoryConfig | None, access: Access | None) -> RepositoryConfig | None:
    declared = (config.virtual_chunk_containers if config is not None else None) or {}
    prefixes = [normalize_prefix(prefix) for prefix in access or {} if not prefix.startswith("file://")]
    missing = [prefix for prefix in prefixes if longest_covering(declared, prefix) is None]
    if not missing:
        return config
    extended = RepositoryConfig(virtual_chunk_containers=declared)
    for prefix in missing:
        extended.set_virtual_chunk_container(VirtualChunkContainer(prefix))
    return extended if config is None else extended.merge(config)
