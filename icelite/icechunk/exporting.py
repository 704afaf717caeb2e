"""`export_icechunk`: the whole history of an icelite repository as a new Icechunk repository.

A local repository is written beside its target under another name, and renamed when it is whole. Icechunk gives every
commit an id and a time of its own; in a local repository those of icelite are then put in their place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icelite import drafts
from icelite.catalog.operations import to_microseconds
from icelite.config import VirtualChunkContainer, covers
from icelite.errors import (
    AlreadyExistsError,
    ErrorKind,
    IceliteError,
    InternalError,
    RepositoryNotFoundError,
    StorageError,
    disk_kind,
)
from icelite.icechunk import library
from icelite.icechunk.files import UPDATES, MetadataFile, decode_id, encode, encode_id
from icelite.icechunk.histories import History, read_history
from icelite.icechunk.library import KEPT_ID, KEPT_TIME, UNFINISHED, missing_prefixes, naming, to_icechunk, translated
from icelite.icechunk.writing import SnapshotWriter
from icelite.repository import Repository
from icelite.types import Diff, Progress, SnapshotInfo

if TYPE_CHECKING:
    import icechunk

MAIN = "main"
UPDATES_KEPT = 1000  # as many as Icechunk keeps in one file

_NUMBERS = {name: number for number, name in UPDATES.items()}


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """The outcome of `export_icechunk`.

    Attributes
    ----------
    ids
        Id of every snapshot here to its id in the Icechunk repository; equal wherever the id could be kept.
    branches, tags
        How many.
    chunks
        References and bytes written, all snapshots together; each changed chunk once.
    copied_moves
        Nodes that moved in a snapshot which Icechunk cannot hold as a move, and were deleted and created instead.
    rewritten
        Documents with a bare ``NaN`` or ``Infinity``, which is no JSON: it became the text ``"NaN"`` or ``"Infinity"``.
    container_prefixes
        What a reader passes as ``authorize_virtual_chunk_access`` to read all virtual chunks.
    """

    ids: Mapping[str, str]
    branches: int
    tags: int
    chunks: int
    copied_moves: int
    rewritten: int
    container_prefixes: tuple[str, ...]

    @property
    def snapshots(self) -> int:
        """The number of snapshots written, the first one included."""
        return len(self.ids)


def export_icechunk(
    repository: Repository | str | os.PathLike[str],
    target: str | os.PathLike[str] | icechunk.Storage,
    *,
    progress: Progress | None = None,
) -> ExportSummary:
    """Write the whole history of a repository into a new Icechunk repository.

    Every snapshot that a branch or tag reaches is written, with what it changed. Virtual chunks stay references, and
    their sources are not read; a reference relative to the catalog becomes absolute.

    Parameters
    ----------
    repository
        The repository, or its path.
    target
        Where there is nothing yet: a local folder to be, which appears when it is whole, with the ids and times of
        the snapshots as they are here; or an ``icechunk.Storage``, where Icechunk's own ids and times stand and
        those of icelite are in the metadata of each commit (``icelite_snapshot_id``, ``icelite_written_at``).
    progress
        Called with the snapshots written and all there are.

    Raises
    ------
    AlreadyExistsError, RepositoryNotFoundError
        ``repository-already-exists``; ``repository-not-found`` for the source, or the folder around the target.
    InvalidInputError
        ``missing-package``; ``invalid-argument`` or ``bad-metadata`` for a node that Icechunk cannot hold: Zarr v2,
        other chunk keys than ``c/0/0``, metadata that its JSON has no form for.
    StorageError
        What reading the source or writing the target says.
    """
    library.load_icechunk()
    import icechunk

    source = repository if isinstance(repository, Repository) else Repository.open(repository)
    if isinstance(target, icechunk.Storage):
        return _export_to_storage(source, target, progress)
    folder = Path(os.path.abspath(os.path.expanduser(os.fspath(target))))
    try:
        with drafts.draft(folder, partial(_check_free, folder)) as draft:
            storage = icechunk.local_filesystem_storage(str(draft))
            exporter = _Exporter(source, storage, keep_identities=True, progress=progress)
            with naming(f"export to {folder}"):
                exporter.run()
            restore_identities(draft, exporter.identities())
            return exporter.summary()
    except IceliteError:  # some are OSErrors too
        raise
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}", disk_kind(error)) from error


def _export_to_storage(source: Repository, storage: icechunk.Storage, progress: Progress | None) -> ExportSummary:
    exporter = _Exporter(source, storage, keep_identities=False, progress=progress)
    exporter.run()
    return exporter.summary()


def _check_free(folder: Path) -> None:
    if os.path.lexists(folder):
        raise AlreadyExistsError(
            f"{folder} already exists, and an export never overwrites; choose another name or remove it",
            ErrorKind.REPOSITORY_ALREADY_EXISTS,
        )
    if not folder.parent.is_dir():
        raise RepositoryNotFoundError(
            f"directory {folder.parent} does not exist, so {folder.name} cannot be created in it; make it first",
            ErrorKind.REPOSITORY_NOT_FOUND,
        )


class _Exporter:
    """One export under way."""

    def __init__(
        self, source: Repository, storage: icechunk.Storage, *, keep_identities: bool, progress: Progress | None
    ) -> None:
        self.source = source
        self.history: History = read_history(source)
        self.ids: dict[str, str] = {}
        self._keep = keep_identities
        self._progress = progress
        self.writer = SnapshotWriter(_home(source))
        with naming("configuration"), translated("the target"):
            self.target = self._create(storage)

    def _create(self, storage: icechunk.Storage) -> icechunk.Repository:
        import icechunk

        config = icechunk.RepositoryConfig.default()
        config.inline_chunk_threshold_bytes = self.source.config.inline_chunk_threshold_bytes
        for container in (self.source.config.virtual_chunk_containers or {}).values():
            config.set_virtual_chunk_container(to_icechunk(container))
        try:
            return icechunk.Repository.create(storage, config)
        except icechunk.InvalidInputError as error:
            if error.kind != "parent-directory-not-clean":
                raise  # translated by the caller
            raise AlreadyExistsError(
                "there is something at the target's storage already, and an export never overwrites; choose another"
                " prefix",
                ErrorKind.REPOSITORY_ALREADY_EXISTS,
            ) from error

    def run(self) -> None:
        """Write everything."""
        if not self._keep:  # a local one is not there until it is whole
            self.target.set_metadata({UNFINISHED: True})
        total = len(self.history.snapshots)
        self.ids[self.history.first.id] = self.target.lookup_branch(MAIN)
        self._report(1, total)
        for done, info in enumerate(self.history.snapshots[1:], start=2):
            with naming(f"snapshot {info.id}"), translated(f"snapshot {info.id}"):
                self.ids[info.id] = self._write_snapshot(info)
            self._report(done, total)
        with translated("branches and tags"):
            self._write_names()
            self._write_containers()
            metadata = self.source.get_metadata()
            if metadata or not self._keep:
                self.target.set_metadata(metadata)

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)

    def _write_snapshot(self, info: SnapshotInfo) -> str:
        parent_id = str(info.parent_id)
        diff = self.source.diff(from_snapshot_id=parent_id, to_snapshot_id=info.id)
        if self.target.lookup_branch(MAIN) != self.ids[parent_id]:
            self.target.reset_branch(MAIN, self.ids[parent_id])
        metadata = self._metadata(info)
        if diff.moved_nodes and _is_only_moves(diff):
            session = self.target.rearrange_session(MAIN)
            if self.writer.as_moves(diff, session):
                return str(session.commit(info.message, metadata))
        session = self.target.writable_session(MAIN)
        before = self.source.readonly_session(snapshot_id=parent_id)
        self.writer.write(diff, before, self.source.readonly_session(snapshot_id=info.id), session)
        return str(session.commit(info.message, metadata, allow_empty=True))

    def _metadata(self, info: SnapshotInfo) -> dict[str, Any]:
        if self._keep and can_keep(info.id):
            return dict(info.metadata)
        return {**info.metadata, KEPT_ID: info.id, KEPT_TIME: info.written_at.isoformat()}

    def _write_names(self) -> None:
        for name in self.history.deleted_tags:
            self.target.create_tag(name, self.ids[self.history.first.id])
            self.target.delete_tag(name)
        for name, snapshot_id in self.history.tags.items():
            self.target.create_tag(name, self.ids[snapshot_id])
        for name, snapshot_id in self.history.branches.items():
            if name == MAIN:
                self.target.reset_branch(MAIN, self.ids[snapshot_id])
            else:
                self.target.create_branch(name, self.ids[snapshot_id])

    def _write_containers(self) -> None:
        """Declare the folders of relative references, and of local files that nothing covers."""
        home = self.writer.home
        known = list((self.source.config.virtual_chunk_containers or {}).values())
        added = []
        if home is not None and self.writer.has_relative and not any(covers(c.url_prefix, home) for c in known):
            added = [home]
        known += [VirtualChunkContainer(prefix) for prefix in added]
        added += missing_prefixes(self.writer.local_urls, known)
        if added:
            config = self.target.config
            for prefix in added:
                config.set_virtual_chunk_container(to_icechunk(VirtualChunkContainer(prefix)))
            self.target = self.target.reopen(config)
            self.target.save_config()

    def identities(self) -> dict[str, Identity]:
        """Icechunk's id of every snapshot to the id and time it is to have."""
        branch_of = self.history.branch_of
        wanted = {info.id: info.id if can_keep(info.id) else self.ids[info.id] for info in self.history.snapshots}
        return {
            self.ids[info.id]: Identity(wanted[info.id], info.written_at, branch_of.get(info.id))
            for info in self.history.snapshots
        }

    def summary(self) -> ExportSummary:
        """The outcome."""
        ids = self.ids
        if self._keep:
            ids = {ours: ours if can_keep(ours) else theirs for ours, theirs in ids.items()}
        return ExportSummary(
            ids=ids,
            branches=len(self.history.branches),
            tags=len(self.history.tags),
            chunks=self.writer.chunks,
            copied_moves=self.writer.copied_moves,
            rewritten=self.writer.rewritten,
            container_prefixes=tuple(sorted(self.target.config.virtual_chunk_containers or {})),
        )


def _home(source: Repository) -> str | None:
    """The URL prefix from which relative references start; None in memory."""
    home = source.storage.home
    if home is None or "://" in home:
        return home
    return f"file://{home.rstrip('/')}/"


def _is_only_moves(diff: Diff) -> bool:
    names = [name for name in diff.__dataclass_fields__ if name != "moved_nodes"]
    return not any(getattr(diff, name) for name in names)


# -- ids and times of snapshots, put into a repository that nobody uses yet --------------------------------------------
# Icechunk gives every commit a new id and the time of day, and its API has no way to say otherwise. Its files however
# are specified: an id is the name of a snapshot's two files and a field of fixed size in both, a time is another field;
# the file ``repo`` lists all snapshots in the order of their ids. So nothing but these fields and that list is written
# here, and Icechunk reads the result back before anybody else does.


@dataclass(frozen=True, slots=True)
class Identity:
    """The id and time that a snapshot is to have.

    Attributes
    ----------
    branch
        The branch it was committed to, for the operation log; None when not known.
    """

    id: str
    written_at: datetime
    branch: str | None

    @property
    def moment(self) -> int:
        """The time in microseconds."""
        return to_microseconds(self.written_at)


def can_keep(snapshot_id: str) -> bool:
    """Whether Icechunk, whose ids have 96 bits, can hold a snapshot id: its last character must be 0 or G."""
    return decode_id(snapshot_id) is not None


def restore_identities(directory: Path, identities: Mapping[str, Identity]) -> None:
    """Give the snapshots of a local Icechunk repository other ids and times; others than those named are removed.

    Parameters
    ----------
    identities
        By the id that a snapshot has now.

    Raises
    ------
    FormatError, InternalError
        ``corrupt`` for a file that is not as specified; ``unknown`` when the result does not read as intended.
    """
    for old, new in identities.items():
        for folder, table in (("snapshots", "Snapshot"), ("transactions", "TransactionLog")):
            file = MetadataFile(directory / folder / old)
            file.put(table, "id", _bytes(new.id))
            if table == "Snapshot":
                file.put(table, "flushed_at", new.moment)
            file.path.unlink()
            file.write(directory / folder / f"{new.id}.new")
    for folder in ("snapshots", "transactions"):
        for path in (directory / folder).iterdir():
            if path.suffix == ".new":
                path.rename(path.with_suffix(""))
            else:
                path.unlink()
    repo = MetadataFile(directory / "repo")
    repo.write(repo.path, encode("Repo", _renumbered(repo.decode("Repo"), identities)))
    shutil.rmtree(directory / "overwritten", ignore_errors=True)  # earlier states of that file, with the old ids
    _check(directory, identities)


def _bytes(snapshot_id: str) -> bytes:
    data = decode_id(snapshot_id)
    if data is None:
        raise InternalError(f"Icechunk cannot hold the snapshot id {snapshot_id}")
    return data


def _renumbered(repo: dict[str, Any], identities: Mapping[str, Identity]) -> dict[str, Any]:
    """The content of the file ``repo`` with other ids and times, in the order it asks for."""
    old = repo["snapshots"]
    kept = {i: identities[encode_id(info["id"])] for i, info in enumerate(old) if encode_id(info["id"]) in identities}
    order = sorted(kept, key=lambda i: _bytes(kept[i].id))
    index = {i: new for new, i in enumerate(order)} | {-1: -1}
    snapshots = [
        {
            **old[i],
            "id": _bytes(kept[i].id),
            "flushed_at": kept[i].moment,
            "parent_offset": index[old[i].get("parent_offset", 0)],
        }
        for i in order
    ]
    named = {
        kind: [{"name": ref["name"], "snapshot_index": index[ref.get("snapshot_index", 0)]} for ref in repo[kind]]
        for kind in ("branches", "tags")
    }
    return {
        **repo,
        **named,
        "snapshots": snapshots,
        "latest_updates": _updates(list(kept.values()), snapshots),
        "repo_before_updates": None,
    }


def _updates(identities: list[Identity], snapshots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The operation log: each commit at its time, newest first."""
    first = {info["id"] for info in snapshots if info["parent_offset"] == -1}
    updates = []
    for identity in sorted(identities, key=lambda identity: identity.moment, reverse=True):
        kind, detail = "NewDetachedSnapshotUpdate", {"new_snap_id": _bytes(identity.id)}
        if detail["new_snap_id"] in first:
            kind, detail = "RepoInitializedUpdate", {}
        elif identity.branch is not None:
            kind, detail = "NewCommitUpdate", {**detail, "branch": identity.branch}  # type: ignore[dict-item]
        updates.append({"update_type_type": _NUMBERS[kind], "update_type": detail, "updated_at": identity.moment})
    return updates[:UPDATES_KEPT]


def _check(directory: Path, identities: Mapping[str, Identity]) -> None:
    """Let Icechunk read the repository, and compare."""
    import icechunk

    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(directory)))
    wanted = {new.id: new.written_at for new in identities.values()}
    found: dict[str, datetime] = {}
    tips = [repository.lookup_branch(name) for name in repository.list_branches()]
    tips += [repository.lookup_tag(name) for name in repository.list_tags()]
    for tip in tips:
        for info in repository.ancestry(snapshot_id=tip):
            if info.id in found:
                break
            found[info.id] = info.written_at
    if found != wanted:
        raise InternalError(
            f"Icechunk {icechunk.__version__} does not read the ids and times that were written for it; please report"
            " it",
            ErrorKind.UNKNOWN,
        )
