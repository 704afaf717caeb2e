"""`import_icechunk`: the whole history of an Icechunk repository as a new icelite catalog.

Snapshots keep their ids, times, messages and metadata. The catalog is written under another name beside its target,
and linked to its own when it is whole.

A snapshot whose parent is the first one is read whole: that is the same where nothing expired, and does not depend on
transaction logs where something did, since Icechunk makes the first snapshot the parent of those that lose theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import lt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.core.sync import sync

from icelite.catalog import refs, snapshots
from icelite.catalog.creation import drafted
from icelite.catalog.database import Catalog
from icelite.catalog.operations import log_operation, to_microseconds
from icelite.catalog.settings import check_online
from icelite.change_set import ChangeSet, Entry
from icelite.config import RepositoryConfig
from icelite.errors import ErrorKind, InvalidInputError, RepositoryNotFoundError, StorageError
from icelite.icechunk import library
from icelite.icechunk.files import Manifests, Reference
from icelite.icechunk.histories import History, collapse, read_history
from icelite.icechunk.library import from_icechunk, from_their_url, naming, read_key, translated
from icelite.repository import Repository
from icelite.repository.native import ObjectStorage
from icelite.session import OpenedSnapshot, Session
from icelite.storage import StorageConfig, as_storage
from icelite.types import ChunkType, Diff, Progress, SourceStamp, chunk_name

if TYPE_CHECKING:
    import icechunk

MAIN = "main"
REFS_AT_ONCE = 50_000
CHUNKS_AT_ONCE = 64
MOVING = ".icelite-moving"  # first part of paths that no node keeps


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
    if storage.address is not None:
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
            bases = {
                first.id: OpenedSnapshot(first.id, snapshots.view_snapshot(txn, snapshots.lookup_seq(txn, first.id)))
            }
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


# -- one snapshot: what it changed against its parent, and no more -----------------------------------------------------


@dataclass
class SnapshotReader:
    """Reads snapshots of one Icechunk repository into sessions, parents before children.

    Attributes
    ----------
    manifests
        Where it is in a local folder: its manifests, which say more than the API.
    chunks, dropped_checksums
        As in `ImportSummary`, so far.
    """

    source: icechunk.Repository
    manifests: Manifests | None
    chunks: int = 0
    dropped_checksums: int = 0
    _stamps: dict[tuple[str, str | None, int | None], tuple[str, SourceStamp]] = field(default_factory=dict)

    def read(self, snapshot_id: str, parent_id: str, *, whole: bool, target: Session) -> None:
        """Do in ``target``, which stands on the parent, what leads to a snapshot.

        Raises
        ------
        InvalidInputError, StorageError, FormatError
            What icelite cannot hold, such as a reference with a scheme it does not read; what Icechunk says.
        """
        session = self.source.readonly_session(snapshot_id=snapshot_id)
        details = _Details(self.source, snapshot_id)
        if whole:
            diff = Diff(new_arrays={"/" + path for path in details.nodes()})
        else:
            diff = self._changes(snapshot_id, parent_id)
        changes = target.changes
        for path in sorted({*diff.deleted_arrays, *diff.deleted_groups}):
            changes.nodes.delete(path.strip("/"))
        _move(changes, diff.moved_nodes)  # after an amend, of groups from which something was deleted
        fresh = {*diff.new_arrays, *diff.new_groups}
        changed = fresh | diff.updated_arrays | diff.updated_groups
        partly = {
            path: {chunk_name(at) for at in ats} for path, ats in diff.updated_chunks.items() if path not in fresh
        }
        for path in sorted(changed | partly.keys()):
            array = _Array(self, session, target, path.strip("/"), details)
            with naming(f"node {path}"):
                replaced = array.read_metadata() if path in changed else False
                array.read_chunks(None if replaced or path in fresh else partly.get(path, set()))

    def _changes(self, snapshot_id: str, parent_id: str) -> Diff:
        found = self.source.diff(from_snapshot_id=parent_id, to_snapshot_id=snapshot_id)
        return Diff(**{name: getattr(found, name) for name in Diff.__dataclass_fields__})

    def locate(self, reference: Reference) -> tuple[str, SourceStamp]:
        """URL and stamp of a virtual reference in icelite's words."""
        key = reference.url, reference.etag, reference.seconds
        found = self._stamps.get(key)
        if found is None:
            url, etag = from_their_url(reference.url), reference.etag
            if etag is not None and not url.startswith(("s3://", "vcc://")):
                etag = None
                self.dropped_checksums += 1
            modified_at = None if reference.seconds is None else reference.seconds * 1_000_000_000
            found = self._stamps[key] = url, SourceStamp(etag=etag, modified_at=modified_at)
        return found


def list_references(session: icechunk.Session, path: str, wanted: set[str] | None) -> Iterator[Reference]:
    """The references of an array, or those of some of its chunks."""
    batches = sync(_collect(session.store.array_chunk_iterator(path)))
    for rows in batches:
        yield from (row for row in rows if wanted is None or row.chunk in wanted)


async def _collect(batches: AsyncIterator[Any]) -> list[list[Reference]]:
    return [_rows(batch) async for batch in batches]


def _rows(batch: Any) -> list[Reference]:
    positions, kinds, urls, offsets, lengths, _ = batch
    columns = positions.tolist(), kinds.tolist(), urls, offsets.tolist(), lengths.tolist()
    return [
        Reference(chunk_name(at), ChunkType.virtual, url, offset, length)
        if kind == ChunkType.virtual
        else Reference(chunk_name(at), ChunkType.native)
        for at, kind, url, offset, length in zip(*columns, strict=True)
    ]


class _Details:
    """The answer of `inspect_snapshot` about the nodes of a snapshot, asked when it is first needed."""

    def __init__(self, source: icechunk.Repository, snapshot_id: str) -> None:
        self._source = source
        self._snapshot_id = snapshot_id
        self._nodes: dict[str, dict[str, object]] | None = None

    def nodes(self) -> dict[str, dict[str, object]]:
        """Path to what is told of it."""
        if self._nodes is None:
            listed = self._source.inspect_snapshot(self._snapshot_id)["nodes"]
            self._nodes = {node["path"].strip("/"): node for node in listed}
        return self._nodes


def _move(changes: ChangeSet, moved: Iterable[tuple[str, str]]) -> None:
    """Move nodes, by way of paths that nothing else has: paths may be exchanged."""
    moves = [(source.strip("/"), target.strip("/")) for source, target in collapse(moved)]
    by_depth = sorted(moves, key=lambda move: move[0].count("/"), reverse=True)
    for i, (source, _) in enumerate(by_depth):
        changes.nodes.move(source, f"{MOVING}/{i}")
    for i, (_, target) in sorted(enumerate(by_depth), key=lambda item: item[1][1].count("/")):
        changes.nodes.move(f"{MOVING}/{i}", target)


@dataclass
class _Array:
    """One group or array on its way out of an Icechunk snapshot."""

    reader: SnapshotReader
    source: icechunk.Session
    target: Session
    path: str
    details: _Details

    def _key(self, *parts: str) -> str:
        return "/".join(filter(None, (self.path, *parts)))

    def read_metadata(self) -> bool:
        """Take over its document; whether it is another node than before."""
        data = sync(read_key(self.source.store, self._key("zarr.json")))
        if data is None:  # it came and went between two snapshots that are left
            return False
        changes = self.target.changes
        before = changes.nodes.find(self.path)
        changes.nodes.set_document(self.path, "zarr.json", data.decode())
        after = changes.nodes.find(self.path)
        if before is None or after is None or before.node.node_id != after.node.node_id:
            return True
        self._forget_outside(before, after)
        return False

    def _forget_outside(self, before: Entry, after: Entry) -> None:
        """Delete the chunks that a smaller shape leaves outside, as Icechunk does: they do not come back there."""
        old, new = before.info, after.info
        if old is None or new is None or old.grid is None or new.grid is None:
            return
        if any(size < former for size, former in zip(new.grid, old.grid, strict=True)):
            node_id = after.node.node_id
            chunks = self.target.changes.chunks
            chunks.delete(node_id, [n for n, *_ in chunks.refs(node_id) if not _is_inside(n, new.keys.ndim, new.grid)])

    def read_chunks(self, wanted: set[str] | None) -> None:
        """Take over chunks: these, or all for None."""
        entry = self.target.changes.nodes.find(self.path)
        if entry is None or entry.info is None or wanted == set():
            return
        ndim, grid = entry.info.keys.ndim, entry.info.grid
        found: set[str] = set()
        references = (row for row in self._references(wanted) if _is_inside(row.chunk, ndim, grid))
        while batch := list(islice(references, REFS_AT_ONCE)):
            self._write_virtual(entry, [row for row in batch if row.kind == ChunkType.virtual])
            self._write_bytes(entry, [row.chunk for row in batch if row.kind != ChunkType.virtual])
            self.reader.chunks += len(batch)
            if wanted is not None:
                found.update(row.chunk for row in batch)
        if wanted is not None:
            self.target.changes.chunks.delete(entry.node.node_id, sorted(wanted - found))

    def _references(self, wanted: set[str] | None) -> Iterator[Reference]:
        if self.reader.manifests is not None:
            return self.reader.manifests.references(self.details.nodes()[self.path], wanted)
        return list_references(self.source, "/" + self.path, wanted)

    def _write_virtual(self, entry: Entry, rows: list[Reference]) -> None:
        if not rows:
            return
        changes, access = self.target.changes, self.target.access
        ids: dict[tuple[str, SourceStamp], int] = {}
        for source in {self.reader.locate(row) for row in rows}:
            ids[source] = changes.chunks.intern(access.locate(source[0], stamp=source[1], validate_container=False))
        with changes.catalog.stage() as txn:
            changes.chunks.set_refs(
                entry.node.node_id,
                [row.chunk for row in rows],
                [ids[self.reader.locate(row)] for row in rows],
                [row.offset for row in rows],
                [row.length for row in rows],
                txn,
            )

    def _write_bytes(self, entry: Entry, names: list[str]) -> None:
        for start in range(0, len(names), CHUNKS_AT_ONCE):
            some = names[start : start + CHUNKS_AT_ONCE]
            with translated(f"chunk {some[0]} and {len(some) - 1} more"):
                values = sync(self._fetch(some))
            for name, data in zip(some, values, strict=True):
                if data is None:
                    raise InvalidInputError(f"Icechunk lists chunk {name} and does not have it", ErrorKind.INVALID_KEY)
                self.target.changes.chunks.set_bytes(entry.node.node_id, name, data)

    async def _fetch(self, names: list[str]) -> list[bytes | None]:
        return await asyncio.gather(*(read_key(self.source.store, self._key("c", name)) for name in names))


def _is_inside(name: str, ndim: int, grid: tuple[int, ...] | None) -> bool:
    position = name.split("/") if name else []
    return len(position) == ndim and (grid is None or all(map(lt, map(int, position), grid)))
