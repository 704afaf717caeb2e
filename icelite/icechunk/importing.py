"""`import_icechunk`: the whole history of an Icechunk repository as a new icelite catalog.

Snapshots keep their ids, times, messages and metadata. The catalog is written under another name beside its target,
and linked to its own when it is whole.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from icelite.catalog import refs, snapshots
from icelite.catalog.database import Catalog
from icelite.catalog.drafts import drafted
from icelite.catalog.operations import log_operation, to_microseconds
from icelite.catalog.permissions import check_online
from icelite.config import RepositoryConfig
from icelite.errors import ErrorKind, RepositoryNotFoundError, StorageError
from icelite.icechunk import library
from icelite.icechunk.histories import History, read_history
from icelite.icechunk.library import from_icechunk, naming, translated
from icelite.icechunk.manifests import Manifests
from icelite.icechunk.reading import SnapshotReader
from icelite.repository import Repository
from icelite.repository.native import ObjectStorage
from icelite.session import Base
from icelite.storage import StorageConfig, as_storage
from icelite.types import Progress

if TYPE_CHECKING:
    import icechunk

MAIN = "main"


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """The outcome of `import_icechunk`.

    Attributes
    ----------
    snapshots, branches, tags
        How many; the snapshots have the ids they had.
    chunks
        References and bytes written, all snapshots together; each changed chunk once.
    has_checksums
        Whether the checksums of virtual chunks, and the containers that they name, could be read.
    dropped_checksums
        References to local files with an ETag as checksum: files have none, so that it could never be compared.
    """

    snapshots: int
    branches: int
    tags: int
    chunks: int
    has_checksums: bool
    dropped_checksums: int


def import_icechunk(
    source: str | os.PathLike[str] | icechunk.Repository,
    target: str | os.PathLike[str] | StorageConfig,
    *,
    objects: ObjectStorage | None = None,
    store_signed_urls: bool = False,
    progress: Progress | None = None,
) -> ImportSummary:
    """Write the whole history of an Icechunk repository into a new icelite repository.

    Every snapshot that a branch or tag reaches is read, with what it changed. Native and inline chunks become bytes of
    the catalog; virtual chunks stay references, and their sources are not read.

    Parameters
    ----------
    source
        A local folder, or an ``icechunk.Repository`` that was opened with its credentials. Icechunk's API does not
        tell the checksums of references nor the containers they name: only for a folder are these kept.
    target
        Path of the catalog to be, or a `StorageConfig` for a file or for memory. A file appears when it is whole.
    objects
        Where large chunks go, as in `Repository.create`; by default the catalog holds everything. Of an interrupted
        import objects are left that nothing refers to.
    store_signed_urls
        Take over references whose URL carries a signature; see `RepositoryConfig`.
    progress
        Called with the snapshots read and all there are.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError
        ``repository-already-exists``; ``repository-not-found`` for the source, or the folder around the target.
    InvalidInputError
        ``missing-package``; ``invalid-virtual-ref`` for references that icelite does not read, and other things that
        it cannot hold, each with the snapshot and node.
    StorageError, FormatError
        ``unsupported-storage`` for a target that is not on this machine; what reading the source or writing the
        target says.
    """
    library.load_icechunk()
    storage = as_storage(target)
    if storage.place is not None:
        raise StorageError(
            f"{storage.name} is not on this machine; import into a local file, and copy that there",
            ErrorKind.UNSUPPORTED_STORAGE,
        )
    folder, repository = _open(source)
    with translated("reading the history"):
        history = read_history(repository, has_log=_is_modern(repository))
        config = repository.config
    for kind, names in (("branch", history.branches), ("tag", {**history.tags, **dict.fromkeys(history.deleted_tags)})):
        for name in names:
            refs.check_name(name, kind)
    reader = SnapshotReader(repository, None if folder is None else Manifests(folder))
    with naming("configuration"):
        ours = _config(config, store_signed_urls)
    with drafted(storage) as draft:
        _Importer(reader, history, ours, draft, objects, progress).run()
    return ImportSummary(
        snapshots=len(history.snapshots),
        branches=len(history.branches),
        tags=len(history.tags),
        chunks=reader.chunks,
        has_checksums=folder is not None,
        dropped_checksums=reader.dropped_checksums,
    )


def _open(source: str | os.PathLike[str] | icechunk.Repository) -> tuple[Path | None, icechunk.Repository]:
    """The folder of a repository, if it was given as one, and the repository."""
    import icechunk

    if isinstance(source, icechunk.Repository):
        return None, source
    folder = Path(os.path.expanduser(os.fspath(source)))
    if not folder.is_dir():
        raise RepositoryNotFoundError(f"there is no folder {folder} to import", ErrorKind.REPOSITORY_NOT_FOUND)
    storage = icechunk.local_filesystem_storage(str(folder))
    try:
        with translated(f"{folder}", but=icechunk.RepositoryNotFoundError):
            return folder, icechunk.Repository.open(storage)
    except icechunk.RepositoryNotFoundError as error:
        raise RepositoryNotFoundError(
            f"there is no Icechunk repository in {folder}", ErrorKind.REPOSITORY_NOT_FOUND
        ) from error


def _is_modern(repository: icechunk.Repository) -> bool:
    """Whether it is in Icechunk's format 2 or a later one."""
    return int(repository.spec_version) >= 2


def _config(theirs: icechunk.RepositoryConfig, store_signed_urls: bool) -> RepositoryConfig:
    config = RepositoryConfig(theirs.inline_chunk_threshold_bytes, store_signed_urls=store_signed_urls)
    for container in (theirs.virtual_chunk_containers or {}).values():
        config.set_virtual_chunk_container(from_icechunk(container))
    return config


class _Importer:
    """One import under way."""

    def __init__(
        self,
        reader: SnapshotReader,
        history: History,
        config: RepositoryConfig,
        storage: StorageConfig,
        objects: ObjectStorage | None,
        progress: Progress | None,
    ) -> None:
        self._reader = reader
        self._history = history
        self._config = config
        self._storage = storage
        self._objects = objects
        self._progress = progress

    def run(self) -> None:
        """Write everything."""
        Repository.create(self._storage, self._config, objects=self._objects).close()
        # apart, since whoever has a catalog open takes another first snapshot for that of another catalog
        with contextlib.closing(Catalog(self._storage)) as catalog, catalog.write() as txn:
            snapshots.replace_first_snapshot(txn, self._history.first)
        repository = Repository.open(self._storage, self._config, objects=self._objects)
        with contextlib.closing(repository), contextlib.closing(Catalog(self._storage)) as catalog:
            self._write_snapshots(repository, catalog)
            self._write_names(catalog)
            with translated("metadata of the repository"):
                metadata = self._reader.source.get_metadata() if _is_modern(self._reader.source) else {}
            if metadata:
                repository.set_metadata(metadata)

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)

    def _write_snapshots(self, repository: Repository, catalog: Catalog) -> None:
        infos, first = self._history.snapshots, self._history.first
        with catalog.read() as txn:
            bases = {first.id: Base(first.id, snapshots.view_snapshot(txn, snapshots.lookup_seq(txn, first.id)))}
        self._report(1, len(infos))
        session = repository.writable_session(MAIN)
        with contextlib.closing(session.changes.catalog):  # a connection of its own
            for done, info in enumerate(infos[1:], start=2):
                parent = str(info.parent_id)
                with naming(f"snapshot {info.id}"), translated("reading it"):
                    session.stand_on(bases[parent])
                    self._reader.read(info.id, parent, whole=parent == first.id, target=session)
                    bases[info.id] = session.record(info, self._history.branch_of.get(info.id))
                self._report(done, len(infos))

    def _write_names(self, catalog: Catalog) -> None:
        history = self._history
        with catalog.write() as txn:
            check_online(txn)
            moment = max(to_microseconds(info.written_at) for info in history.snapshots)
            for name, snapshot_id in history.branches.items():
                seq = snapshots.lookup_seq(txn, snapshot_id)
                if name == MAIN:
                    refs.move_branch(txn, MAIN, refs.lookup_branch(txn, MAIN), seq)
                    continue
                refs.insert_branch(txn, name, seq)
                log_operation(txn, "BranchCreated", {"name": name, "snap_id": snapshot_id}, moment)
            for name, snapshot_id in history.tags.items():
                refs.insert_tag(txn, name, snapshots.lookup_seq(txn, snapshot_id))
                log_operation(txn, "TagCreated", {"name": name, "snap_id": snapshot_id}, moment)
            for name in history.deleted_tags:
                refs.insert_tag(txn, name, snapshots.lookup_seq(txn, history.first.id))
                refs.delete_tag(txn, name)
