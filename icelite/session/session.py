"""`Session`: one snapshot, open for reading or for preparing the next one.

A read-only session sees its snapshot for ever. A writable one starts at its branch's tip, sees its own changes,
and commits only if the tip is still there. After a commit it is read-only at the new snapshot, as in Icechunk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from icelite import types
from icelite.catalog import staging
from icelite.catalog.database import Catalog
from icelite.catalog.operations import to_microseconds
from icelite.change_set import ChangeSet, ObjectWriter
from icelite.config import RepositoryConfig
from icelite.conflicts import ConflictSolver, VersionSelection
from icelite.errors import ErrorKind, InvalidInputError, NodeNotFoundError, ReadOnlyError, SessionStateError
from icelite.keys import check_path
from icelite.objects import NoObjects, Objects
from icelite.payload import Payloads
from icelite.session.asynchronous import call_off_loop, in_pages, in_thread, pages
from icelite.session.chunks import (
    ChunkBatch,
    Position,
    Reindex,
    as_batch,
    list_chunk_refs,
    reindex_chunks,
    shift_chunks,
)
from icelite.session.commits import Commit, OpenedSnapshot, check_message, is_kept
from icelite.session.forks import ForkOrigin, Merged, merge_forks, new_identity, root_of
from icelite.storage import StorageConfig
from icelite.store import IceliteStore
from icelite.types import ChunkType, Diff, SessionMode, SnapshotInfo, chunk_name, chunk_position
from icelite.virtual import VirtualAccess

T = TypeVar("T")

POSITIONS_AT_ONCE = 10_000  # between two turns of an event loop


class Session:
    """One snapshot, and for a writable session the changes on top of it.

    Sessions come from `Repository.readonly_session` and `Repository.writable_session`. Threads and event loops may
    share one. A read-only session pickles (its copy opens the file again); of a writable one `fork` does.
    """

    def __init__(
        self,
        catalog: Catalog,
        base: OpenedSnapshot,
        *,
        config: RepositoryConfig,
        access: VirtualAccess,
        branch: str | None,
        writable: bool,
        objects: Objects | NoObjects | None = None,
        rearrange: bool = False,
        commit_metadata: Mapping[str, Any] | None = None,
        fork_of: ForkOrigin | None = None,
    ) -> None:
        self._merged = Merged() if writable else None  # else made when it is asked for
        self._fork_of = fork_of
        self._forked: tuple[object, OpenedSnapshot] | None = None  # what forks stand on, and of which state
        self._rearrange = rearrange
        self.config = config
        self.access = access
        self.objects = objects or NoObjects()
        self._catalog = catalog
        self._base = base
        self._branch = branch
        self._writable = writable
        self._commit_metadata = dict(commit_metadata or {})
        self._reset()

    def _reset(self) -> None:
        config = self.config
        writer = ObjectWriter(self.objects, config.inline_chunk_threshold_bytes, config.object_target_bytes)
        self.changes = ChangeSet(self._catalog, self._base.view, writer)
        self.payloads = Payloads(self._catalog, self.access, self.objects)
        if self._merged is not None:
            self._merged.grown = {}

    # -- what it is --------------------------------------------------------------------------------------------

    @property
    def store(self) -> IceliteStore:
        """The session as a zarr store."""
        return IceliteStore(self)

    @property
    def snapshot_id(self) -> str:
        """Id of the snapshot it stands on."""
        return self._base.id

    @property
    def branch(self) -> str | None:
        """The branch it commits to; None for a read-only session."""
        return self._branch if self._writable else None

    @property
    def merged(self) -> Merged:
        """What it has taken over, and what tells it from others."""
        if self._merged is None:
            self._merged = Merged()
        return self._merged

    @property
    def origin(self) -> ForkOrigin:
        """Whose fork it is, or begins to be of."""
        if self._fork_of is None:
            self._fork_of = ForkOrigin(root_of(self._catalog), self._branch)
        return self._fork_of

    @property
    def read_only(self) -> bool:
        """Whether it refuses writes."""
        return not self._writable

    @property
    def mode(self) -> SessionMode:
        """What it may do."""
        if self._writable:
            return SessionMode.rearrange if self._rearrange else SessionMode.writable
        return SessionMode.readonly

    @property
    def has_uncommitted_changes(self) -> bool:
        """Whether there is something to commit."""
        return self._writable and not self.changes.is_empty()

    def status(self) -> Diff:
        """The uncommitted changes."""
        return self.changes.status() if self._writable else Diff()

    @property
    def is_remote(self) -> bool:
        """Whether the catalog is in a bucket or on a web server, so that asking it may wait for a network."""
        return self._catalog.storage.address is not None

    def may_read_remote(self) -> bool:
        """Whether any chunk may have to come over a network."""
        return self.payloads.may_be_remote(self.changes.chunks.locations)

    # -- what it does ------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Refuse where this session may not write.

        Raises
        ------
        ReadOnlyError, SessionStateError
            ``read-only-session``; ``rearrange-session-only``.
        """
        if not self._writable:
            raise ReadOnlyError(
                f"{self} is read-only; Repository.writable_session(branch) gives one that writes,"
                " and one commit ends it",
                ErrorKind.READ_ONLY_SESSION,
            )
        if self._rearrange:
            raise SessionStateError(
                f"{self} only moves nodes; Repository.writable_session(branch) gives one that writes",
                ErrorKind.REARRANGE_SESSION_ONLY,
            )

    def discard_changes(self) -> None:
        """Forget the uncommitted changes; `ReadOnlyError` ``read-only-session``."""
        if not self._rearrange:
            self.check_writable()
        self.changes.discard()
        self.merged.grown = {}

    def resume(self) -> None:
        """Become writable again on the snapshot that was just committed."""
        self._writable = self._branch is not None

    def stand_on(self, base: OpenedSnapshot) -> None:
        """Begin again on another snapshot of the branch, without the changes made so far."""
        self.changes.discard()
        self._base = base
        self._reset()

    # -- commits -----------------------------------------------------------------------------------------------

    def commit(
        self,
        message: str,
        metadata: dict[str, Any] | None = None,
        *,
        rebase_with: ConflictSolver | None = None,
        rebase_tries: int = 1000,
        allow_empty: bool = False,
    ) -> str:
        """Make the changes a snapshot of the branch, durably; then this session is read-only on it.

        Parameters
        ----------
        message
            What changed, for the history.
        metadata
            JSON-able facts to keep with the snapshot.
        rebase_with
            Where the branch has moved: replay the changes over what was committed since, if they do not conflict
            or the solver decides.
        rebase_tries
            How often to try, for at most two minutes, where the catalog is in a bucket and others publish first;
            elsewhere one try is enough, since nobody commits between rebase and commit.
        allow_empty
            Commit although nothing changed.

        Returns
        -------
        str
            Id of the new snapshot.

        Raises
        ------
        SessionStateError, ConflictError, RebaseFailedError, InvalidInputError, ReadOnlyError
            ``commit-not-allowed`` on a read-only session, ``no-changes-to-commit``; ``commit-conflict`` when the branch
            has moved since this session began; ``rebase-failed``, see its ``conflicts``; ``invalid-argument`` for
            metadata that is not JSON; ``read-only-repository``, ``read-only-storage``.
        StorageError
            ``busy``, ``storage-full``; nothing was committed, and the changes are still here. ``io``: the disk failed
            on the way, and the message names the snapshot to look for, since it may have been committed all the same.
        """
        branch = self._check_can_commit(message, metadata, allow_empty)
        with self.changes.lock:
            return self._continue_on(self._commit(message, metadata).commit(branch, rebase_with, rebase_tries))

    def amend(self, message: str, *, metadata: dict[str, Any] | None = None, allow_empty: bool = False) -> str:
        """Replace the branch's tip by a snapshot with its changes and these.

        Returns
        -------
        str
            Id of the new snapshot; its parent is the old tip's parent, and the old tip is on no branch any more.

        Raises
        ------
        SessionStateError
            ``no-amend-for-initial-commit``, and as `commit`.
        ConflictError, InvalidInputError, StorageError
            As `commit`.
        """
        branch = self._check_can_commit(message, metadata, allow_empty)
        with self.changes.lock:
            return self._continue_on(self._commit(message, metadata).amend(branch))

    def flush(self, message: str, *, metadata: dict[str, Any] | None = None) -> str:
        """Make the changes a snapshot that no branch has; then this session is read-only on it.

        Adopt it with `Repository.reset_branch`, ``create_branch`` or ``create_tag``; otherwise expiration removes it.
        Raises as `commit`.
        """
        self._check_can_commit(message, metadata, allow_empty=False)
        with self.changes.lock:
            return self._continue_on(self._commit(message, metadata).detach())

    def record(self, snapshot: SnapshotInfo, branch: str | None) -> OpenedSnapshot:
        """Make the changes a snapshot as another repository had it, and go on from there; no branch moves.

        Id, time, message and metadata of ``snapshot`` are kept, its parent is the one that this session stands on;
        ``branch`` is where the operation log says that it was committed.
        """
        commit = self._commit(snapshot.message, snapshot.metadata)
        commit.snapshot_id, commit.written_at = snapshot.id, to_microseconds(snapshot.written_at)
        with self.changes.lock:
            self._continue_on(commit.detach(branch))
        self._writable = True
        return self._base

    def rebase(self, solver: ConflictSolver) -> None:
        """Replay the changes over everything that was committed to the branch since this session began.

        Raises
        ------
        RebaseFailedError, ConflictError, SessionStateError
            ``rebase-failed``, and the session is as it was; ``commit-conflict``; ``commit-not-allowed``.
        """
        branch = self._check_branch()
        with self.changes.lock:
            commit, restore = self._commit("", None), self.changes.checkpoint()
            try:
                with self._catalog.stage() as txn:
                    commit.rebase(txn, branch, solver)
            except BaseException:
                restore()
                raise
            self._base = commit.base

    commit_async = in_thread(commit)
    amend_async = in_thread(amend)
    flush_async = in_thread(flush)
    rebase_async = in_thread(rebase)

    def _check_branch(self) -> str:
        if not self._writable or self._branch is None:
            raise SessionStateError(
                f"{self} cannot commit: it is read-only, or has committed before; open another with writable_session",
                ErrorKind.COMMIT_NOT_ALLOWED,
            )
        return self._branch

    def _check_can_commit(self, message: str, metadata: dict[str, Any] | None, allow_empty: bool) -> str:
        branch = self._check_branch()
        check_message(message, metadata)
        if not allow_empty and self.changes.is_empty():
            raise SessionStateError(
                f"nothing was changed on branch {branch!r}; pass allow_empty=True for a snapshot all the same",
                ErrorKind.NO_CHANGES_TO_COMMIT,
            )
        return branch

    def _commit(self, message: str, metadata: dict[str, Any] | None) -> Commit:
        configured = self.config.virtual_chunk_containers or {}
        containers = [*configured.values(), *self.access.new_containers.values()]
        metadata = {**self._commit_metadata, **(metadata or {})}
        moves = self._rearrange
        return Commit(self._base, self.changes, self.payloads, containers, message, metadata, moves_nodes=moves)

    def _continue_on(self, base: OpenedSnapshot) -> str:
        """Stand on the new snapshot, read-only; its id."""
        self._base = base
        self._writable = False
        with self._catalog.stage() as txn:
            staging.clear(txn)
        self._reset()
        return base.id

    # -- forks -------------------------------------------------------------------------------------------------

    def fork(self) -> ForkSession:
        """A copy that pickles, for a worker to write to and to be merged back.

        Raises
        ------
        SessionStateError
            ``cannot-fork-read-only-session``.
        """
        if not self._writable or self._rearrange:
            raise SessionStateError(
                f"{self} cannot fork: only a session that writes can; Repository.writable_session gives one",
                ErrorKind.CANNOT_FORK_READ_ONLY_SESSION,
            )
        return ForkSession(
            _own_catalog(self._catalog.storage, self.config),
            self._fork_base(),
            config=self.config,
            access=self.access,
            objects=self.objects,
            branch=None,
            writable=True,
            fork_of=self.origin.of(self.merged.identity, self.snapshot_id),
        )

    def merge(self, *forks: ForkSession, on_append: VersionSelection = VersionSelection.Fail) -> None:
        """Take over the changes of forks; of two that wrote the same chunk the later one wins.

        A fork of this session may come, a copy of it that was written elsewhere, and a fork of another session that
        began at the same snapshot of the same branch, also of a process that has ended.

        Parameters
        ----------
        on_append
            Where several made one array longer: by default an error; with `VersionSelection.UseOurs` each follows
            those merged before it, where all begin at the edge of a chunk.

        Raises
        ------
        SessionStateError, ReadOnlyError
            ``merge-not-allowed`` for a fork of another repository, branch or snapshot; ``merge-failed`` where both
            sides changed metadata differently or made one array longer, or for a fork merged before;
            ``read-only-session``.
        """
        self.check_writable()
        merge_forks(self, forks, on_append)

    merge_async = in_thread(merge)

    def _fork_base(self) -> OpenedSnapshot:
        """The snapshot that the forks stand on: that of the session, or one of its uncommitted changes."""
        if self.changes.is_empty():
            return self._base
        with self.changes.lock:
            state = self._base, self.changes.base.writes
            if self._forked is None or self._forked[0] != state or not is_kept(self._catalog, self._forked[1]):
                self.changes.chunks.flush()
                self._forked = state, self._commit("Base of forks", None).write_apart()
            return self._forked[1]

    # -- nodes and chunks --------------------------------------------------------------------------------------

    def move(self, from_path: str, to_path: str) -> None:
        """Rename or move a node, with everything below it.

        Parameters
        ----------
        from_path, to_path
            Such as ``/data/old`` and ``/archive/new``. The group above ``to_path`` must exist.

        Raises
        ------
        SessionStateError, NodeNotFoundError, AlreadyExistsError, InvalidInputError
            ``non-rearrange-session``, ``move-into-self-or-descendant``, ``move-destination-parent-missing``,
            ``move-destination-parent-not-group``; ``node-not-found``; ``move-wont-overwrite``; ``invalid-path``.
        """
        if not self._rearrange:
            raise SessionStateError(
                f"{self} cannot move nodes; Repository.rearrange_session(branch) gives a session that can",
                ErrorKind.NON_REARRANGE_SESSION,
            )
        source, target = check_path(from_path), check_path(to_path)
        self.changes.nodes.check_move(source, target)
        self.changes.nodes.move(source, target)

    def get_node_id(self, path: str) -> str:
        """What stays the same when a node is moved; provisional (negative) until the node is committed.

        `NodeNotFoundError` ``node-not-found``.
        """
        bare = check_path(path)
        entry = self.changes.nodes.find(bare)
        if entry is None:
            raise NodeNotFoundError(f"no node at /{bare}", ErrorKind.NODE_NOT_FOUND)
        return str(entry.node.node_id)

    def chunk_type(self, array_path: str, chunk_coordinates: Sequence[int]) -> ChunkType:
        """Where the bytes of a chunk are; `ChunkType.uninitialized` where there is none.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            ``node-not-found``; ``not-an-array``.
        """
        entry, _ = self.changes.nodes.lookup_array(check_path(array_path))
        found = self.changes.chunks.find(entry.node.node_id, chunk_name(chunk_coordinates))
        if found is None:
            return ChunkType.uninitialized
        if found.location is None:
            return ChunkType.native if self.changes.writer.takes(found.length) else ChunkType.inline
        return self.payloads.location(found).kind

    async def chunk_coordinates(self, array_path: str, batch_size: int = 1000) -> AsyncIterator[Position]:
        """The grid positions of all chunks that are there; raises as `chunk_type`."""
        entry, _ = await self.off_loop(self.changes.nodes.lookup_array, check_path(array_path))
        async for chunk, _ in in_pages(self.changes.chunks.sizes(entry.node.node_id), POSITIONS_AT_ONCE):
            yield tuple(chunk_position(chunk))

    async def array_chunk_iterator(self, array_path: str, batch_size: int = 100_000) -> AsyncIterator[ChunkBatch]:
        """All references of an array, in batches of aligned columns, as Icechunk gives them.

        Yields
        ------
        tuple
            Grid positions (n x dimensions; uint32, or uint64 beyond 2**32 chunks along one); kinds (uint8, numbers of
            `ChunkType`); URLs, ``""`` for inline chunks; offsets and lengths in bytes (uint64; the offset of an inline
            chunk is 0); and, by row of the batch, the bytes of inline chunks.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            ``node-not-found``; ``not-an-array``, ``invalid-argument``.
        """
        if not 1 <= batch_size < 2**63:
            raise InvalidInputError(f"batch_size={batch_size} must be at least 1", ErrorKind.INVALID_ARGUMENT)
        path = check_path(array_path)
        entry, _ = await self.off_loop(self.changes.nodes.lookup_array, path)
        async for rows in pages(self.changes.chunks.refs(entry.node.node_id), batch_size):
            yield await self.off_loop(as_batch, self.changes, self.payloads, path, rows)

    def chunk_refs(self, array_path: str) -> types.ChunkRefs:
        """Where all chunks of an array are, uncommitted ones included, as columns; raises as `chunk_type`."""
        return list_chunk_refs(self.changes, self.payloads, check_path(array_path))

    def all_virtual_chunk_locations(self) -> list[str]:
        """The URL of every virtual chunk, one entry for each chunk, ``vcc://`` and relative ones made absolute."""
        urls: list[str] = []
        for node in self.changes.nodes.list_below(""):
            urls.extend(self.access.url(location) for location in self.changes.chunks.virtual_locations(node.node_id))
        return urls

    def shift_array(self, array_path: str, chunk_offset: Iterable[int]) -> None:
        """Move every chunk of an array by whole chunks.

        Chunks that leave the grid are dropped; positions that nothing moves to read as fill values.

        Parameters
        ----------
        chunk_offset
            Chunks along each dimension, negative towards the origin.

        Raises
        ------
        NodeNotFoundError, InvalidInputError, ReadOnlyError
            ``node-not-found``; ``not-an-array``, ``invalid-chunk-index``; ``read-only-session``.
        """
        self.check_writable()
        shift_chunks(self.changes, check_path(array_path), list(chunk_offset))

    def reindex_array(self, array_path: str, forward: Reindex, backward: Reindex | None = None) -> None:
        """Move the existing chunks of an array by a function of their positions.

        Parameters
        ----------
        forward
            Grid position to the new one, or None to leave the chunk where it is.
        backward
            Its inverse: where a position's new chunk comes from. A position of an existing chunk for which it gives
            None, or a position without a chunk, is cleared; without ``backward`` it keeps what it has.

        Raises
        ------
        NodeNotFoundError, InvalidInputError, ReadOnlyError
            As `shift_array`; ``invalid-chunk-index`` also when ``forward`` leaves the grid.
        """
        self.check_writable()
        reindex_chunks(self.changes, check_path(array_path), forward, backward)

    move_async = in_thread(move)
    get_node_id_async = in_thread(get_node_id)
    chunk_type_async = in_thread(chunk_type)
    all_virtual_chunk_locations_async = in_thread(all_virtual_chunk_locations)

    async def off_loop(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call from an event loop what uses the catalog: there if it need not wait, else once more in a thread.

        A remote catalog may always wait, for a network.
        """
        return await call_off_loop(self._catalog, function, *arguments)

    # -- as a Python object ------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Session)
            and self.read_only
            and other.read_only
            and (self._catalog.storage, self.snapshot_id) == (other._catalog.storage, other.snapshot_id)
        )

    def __hash__(self) -> int:
        return hash(self._catalog.storage)

    def __repr__(self) -> str:
        name = self._catalog.storage.name
        return f"<icelite.Session {name!r} {self.mode} branch={self.branch!r} snapshot_id={self.snapshot_id!r}>"

    def __getstate__(self) -> dict[str, Any]:
        if self._writable:
            raise SessionStateError(
                f"{self} is writable and cannot be pickled: two copies could not both commit; commit it, or pickle"
                " a readonly_session",
                ErrorKind.NOT_PICKLABLE,
            )
        return self._kept()

    def _kept(self) -> dict[str, Any]:
        names = "config", "access", "objects"
        return {"storage": self._catalog.storage, "base": self._base, **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        storage, config = state.pop("storage"), state["config"]
        catalog = Catalog(storage, busy_timeout=config.busy_timeout_seconds)
        self.__init__(catalog, **state, branch=None, writable=False)  # type: ignore[misc]  # as any session begins


class ForkSession(Session):
    """A session that pickles while it is written to, and goes back into the session that it is a fork of.

    It has no branch and cannot commit: `Session.merge` takes its changes over. A fork may have forks.
    """

    def __getstate__(self) -> dict[str, Any]:
        with self.changes.lock:
            changes = self.changes.dump()
            self.merged.freeze(self.changes)
            merged = replace(self.merged, own=new_identity())
        return {**self._kept(), "fork_of": self._fork_of, "its_own": (merged, changes)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        merged, changes = state.pop("its_own")
        catalog = _own_catalog(state.pop("storage"), state["config"])
        self.__init__(catalog, **state, branch=None, writable=True)  # type: ignore[misc]
        self._merged = replace(merged, own=new_identity())
        self.changes.load(changes)


def _own_catalog(storage: StorageConfig, config: RepositoryConfig) -> Catalog:
    """The catalog with a change set, for a fork."""
    timeout, strict = config.busy_timeout_seconds, config.strict_locking
    return Catalog(storage, change_set=True, busy_timeout=timeout, strict_locking=strict)
