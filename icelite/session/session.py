"""`Session`: one snapshot, open for reading or for preparing the next one.

A read-only session sees its snapshot for ever. A writable one starts at its branch's tip, sees its own changes,
and commits only if the tip is still there. After a commit it is read-only at the new snapshot, as in Icechunk.

A fork travels to another process, is written there, and comes back to be merged. It begins at what its session sees at
that moment: what that has not committed yet becomes a snapshot that no branch has, which the forks stand on, and the
session goes on as before. A fork's bytes go where the repository's bytes go, so what is pickled is metadata and
references.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from icelite.catalog import operations, snapshots
from icelite.catalog.database import Catalog, Transaction, repeat_write
from icelite.catalog.locations import has_remote_locations
from icelite.catalog.settings import check_online
from icelite.change_set import ChangeSet, ObjectWriter, absorb, longer
from icelite.config import RepositoryConfig
from icelite.conflicts import VersionSelection
from icelite.errors import ErrorKind, ReadOnlyError, SessionStateError
from icelite.objects import NoObjects, Objects
from icelite.payload import Payloads
from icelite.session.asynchronous import AsynchronousSession, in_thread
from icelite.session.commits import Base
from icelite.storage import StorageConfig
from icelite.store import IceliteStore
from icelite.types import Diff, SessionMode, View, new_snapshot_id
from icelite.virtual import VirtualAccess


class Session(AsynchronousSession):
    """One snapshot, and for a writable session the changes on top of it.

    Sessions come from `Repository.readonly_session` and `Repository.writable_session`. Threads and event loops may
    share one. A read-only session pickles (its copy opens the file again); of a writable one `fork` does.
    """

    origins: Mapping[str, str] = MappingProxyType({})  # identities of the sessions that it is a fork of: snapshot then

    def __init__(
        self,
        catalog: Catalog,
        base: Base,
        *,
        config: RepositoryConfig,
        access: VirtualAccess,
        branch: str | None,
        writable: bool,
        objects: Objects | NoObjects | None = None,
        rearrange: bool = False,
        commit_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.identity = new_identity()
        self.merged = Merged()
        self.fork_base: tuple[Base, int, Base] | None = None  # of which base and state of the changes; for their forks
        self._root: tuple[str, str] | None = None
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
        self.merged.grown = {}
        self._stored_remote: bool | None = None
        self._local_locations = 0

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
    def root(self) -> tuple[str, str]:
        """What tells its repository from every other."""
        if self._root is None:
            self._root = root_of(self)
        return self._root

    @property
    def root_branch(self) -> str | None:
        """The branch that its changes are for, also by way of the sessions that it is a fork of."""
        return self._branch

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
        if self._stored_remote is None:
            elsewhere = self.objects.is_remote or self.is_remote
            self._stored_remote = elsewhere or has_remote_locations(self._catalog)
        if self._stored_remote:
            return True
        locations = self.changes.chunks.locations
        while self._local_locations < len(locations):  # each location is looked at once
            if not self.access.is_local(locations[self._local_locations]):
                return True
            self._local_locations += 1
        return False

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
        """Forget the uncommitted changes.

        Raises
        ------
        ReadOnlyError
            ``read-only-session``.
        """
        if not self._rearrange:
            self.check_writable()
        self.changes.discard()
        self.merged.grown = {}

    def resume(self) -> None:
        """Become writable again on the snapshot that was just committed."""
        self._writable = self._branch is not None

    def stand_on(self, base: Base) -> None:
        """Begin again on another snapshot of the branch, without the changes made so far."""
        self.changes.discard()
        self._base = base
        self._reset()

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
            Catalog(
                self._catalog.storage,
                change_set=True,
                busy_timeout=self.config.busy_timeout_seconds,
                strict_locking=self.config.strict_locking,
            ),
            fork_base(self),
            config=self.config,
            access=self.access,
            objects=self.objects,
            origins={**self.origins, self.identity: self.snapshot_id},
            root_branch=self.root_branch,
            root=self.root,
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
        return {
            "storage": self._catalog.storage,
            "base": self._base,
            "config": self.config,
            "access": self.access,
            "objects": self.objects,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        storage: StorageConfig = state["storage"]
        config: RepositoryConfig = state["config"]
        self.__init__(  # type: ignore[misc]  # a copy begins as any session does
            Catalog(storage, busy_timeout=config.busy_timeout_seconds),
            state["base"],
            config=config,
            access=state["access"],
            objects=state["objects"],
            branch=None,
            writable=False,
        )


class ForkSession(Session):
    """A session that pickles while it is written to, and goes back into the session that it is a fork of.

    It has no branch and cannot commit: `Session.merge` takes its changes over. A fork may have forks.
    """

    def __init__(
        self,
        catalog: Catalog,
        base: Base,
        *,
        config: RepositoryConfig,
        access: VirtualAccess,
        objects: Objects | NoObjects,
        origins: Mapping[str, str],
        root_branch: str | None,
        root: tuple[str, str],
    ) -> None:
        super().__init__(catalog, base, config=config, access=access, objects=objects, branch=None, writable=True)
        self.origins = dict(origins)
        self._root_branch = root_branch
        self._root = root

    @property
    def root_branch(self) -> str | None:
        """The branch of the session that it is a fork of."""
        return self._root_branch

    def __getstate__(self) -> dict[str, Any]:
        names = ("config", "access", "objects", "origins", "identity", "_root_branch", "_root")
        kept = {name: self.__dict__[name] for name in names}
        with self.changes.lock:
            changes = self.changes.dump()
            self.merged.freeze(self.changes)
            merged = replace(self.merged, own=new_identity())
        return {**kept, "merged": merged, "storage": self._catalog.storage, "base": self._base, "changes": changes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        config: RepositoryConfig = state["config"]
        timeout, strict = config.busy_timeout_seconds, config.strict_locking
        catalog = Catalog(state["storage"], change_set=True, busy_timeout=timeout, strict_locking=strict)
        self.__init__(  # type: ignore[misc]
            catalog,
            state["base"],
            config=config,
            access=state["access"],
            objects=state["objects"],
            origins=state["origins"],
            root_branch=state["_root_branch"],
            root=state["_root"],
        )
        self.identity, self.merged = state["identity"], replace(state["merged"], own=new_identity())
        self.changes.load(state["changes"])


# -- forks and what came of them -------------------------------------------------------------------------------


def new_identity() -> str:
    """What tells a session from every other one, in whatever process."""
    return secrets.token_hex(16)


def fork_base(session: Session) -> Base:
    """The snapshot that the forks of a session stand on: its own, or one of its uncommitted changes."""
    if session.changes.is_empty():
        return session._base
    snapshot_id = new_snapshot_id()
    with session.changes.lock:
        known = session.fork_base
        state = session._base, session.changes.base.writes
        if known is not None and known[:2] == state and _is_there(session, known[2]):
            return known[2]
        session.changes.chunks.flush()

        def write(txn: Transaction) -> View:
            check_online(txn)
            return session._write(txn, "NewDetachedSnapshot", None, snapshot_id, "Base of forks", {})

        view = repeat_write(session._catalog, write)
        session.fork_base = session._base, session.changes.base.writes, Base(snapshot_id, view)
    return Base(snapshot_id, view)


def _is_there(session: Session, base: Base) -> bool:
    with session._catalog.read() as txn:
        return snapshots.find_seq(txn, base.id) is not None


def root_of(session: Session) -> tuple[str, str]:
    """What tells a repository from every other: where it is, and when it was made, for another may be there later."""
    with session._catalog.read() as txn:
        first, _ = operations.list_operations(txn, 2, 1)
    return session._catalog.storage.name, "".join(update.updated_at.isoformat() for update in first)


Growth = tuple[frozenset[str], tuple[int, ...]]


@dataclass(slots=True)
class Merged:
    """What a session has taken over, and what tells the states of a fork apart.

    Copies of a fork that went to several workers come back one by one, each with changes of its own. A state is known
    by who wrote it last: an object, until it is pickled; a fork is given a mark for each merge, which its later
    copies have too.

    Attributes
    ----------
    states, marks
        States and marks of the forks taken over.
    inherited
        The state in which the changes came, if they came by a pickle.
    own
        What the state is called once something is written here.
    own_marks
        The merges that this session's changes went into.
    grown
        Path of the arrays made longer: the states that did it, and their shape then.
    """

    states: set[str] = field(default_factory=set)
    marks: set[str] = field(default_factory=set)
    inherited: str | None = None
    own: str = field(default_factory=new_identity)
    own_marks: set[str] = field(default_factory=set)
    grown: dict[str, Growth] = field(default_factory=dict)

    def state(self, changes: ChangeSet) -> str | None:
        """The name of the state; None where nothing was changed."""
        if changes.is_empty():
            return None
        return self.own if changes.base.writes or self.inherited is None else self.inherited

    def growth(self, changes: ChangeSet) -> dict[str, Growth]:
        """The arrays that are longer than in the snapshot: who made them so, and their shape."""
        found: dict[str, Growth] = {}
        for path, shape in longer(changes).items():
            states, known = self.grown.get(path, (frozenset(), None))
            found[path] = (states, shape) if known == shape else (states | {self.own}, shape)
        return found

    def freeze(self, changes: ChangeSet) -> None:
        """Give the state its name for ever, before a copy is made: what is written later is another."""
        self.grown = self.growth(changes)
        self.inherited, self.own, changes.base.writes = self.state(changes), new_identity(), 0


def _check_bases(session: Session, forks: tuple[Any, ...]) -> None:
    """Refuse forks whose snapshot was collected: what they wrote cannot be told apart from it any more."""
    with session._catalog.read() as txn:
        gone = [fork for fork in forks if snapshots.find_seq(txn, fork.snapshot_id) is None]
    if gone:
        raise SessionStateError(
            f"the snapshot {gone[0].snapshot_id} that {gone[0]!r} stands on has expired and was collected meanwhile;"
            " its changes cannot be merged: write them again, and collect only what is older than every fork",
            ErrorKind.MERGE_FAILED,
        )


def _check_belongs(session: Session, fork: Any) -> None:
    """Refuse what is neither a fork of the session nor one that began where it did: same file, branch and snapshot."""
    base = getattr(fork, "origins", {}).get(session.identity)
    if base == session.snapshot_id:
        return
    if base is not None:
        raise SessionStateError(
            f"{fork!r} was made when {session!r} stood on snapshot {base}; what it wrote was not compared with what was"
            " committed since: merge forks before rebase(), and write these changes again",
            ErrorKind.MERGE_NOT_ALLOWED,
        )
    if not getattr(fork, "origins", {}) or fork.root != session.root:
        found = "no fork of this repository"
    elif fork.root_branch != session.root_branch:
        found = f"of branch {fork.root_branch!r}, not {session.root_branch!r}"
    elif fork.snapshot_id != session.snapshot_id:
        found = f"from snapshot {fork.snapshot_id}, not {session.snapshot_id}"
    else:
        return
    raise SessionStateError(
        f"{fork!r} is {found}: {session!r} takes what fork() of it gave, or of another session of the same repository,"
        " branch and snapshot that had changed nothing yet",
        ErrorKind.MERGE_NOT_ALLOWED,
    )


def _check_new(session: Session, fork: Any) -> None:
    known, merged = fork.merged, session.merged
    if fork is session or known.own_marks & merged.marks or known.state(fork.changes) in merged.states:
        raise SessionStateError(f"{fork!r} was merged before; each fork is merged once", ErrorKind.MERGE_FAILED)


def merge_forks(session: Session, forks: tuple[Any, ...], on_append: VersionSelection) -> None:
    """Take over the changes of forks, in the order given.

    Raises
    ------
    SessionStateError
        ``merge-not-allowed`` for what did not begin where this session did; ``merge-failed``, also for a fork that was
        merged before.
    """
    for fork in forks:
        _check_belongs(session, fork)
        _check_new(session, fork)
    _check_bases(session, forks)
    for fork in forks:
        _check_new(session, fork)  # one may be given twice
        _take(session, fork, on_append)


def _take(session: Session, fork: Any, on_append: VersionSelection) -> None:
    merged, mark = session.merged, new_identity()
    theirs, ours = fork.merged.growth(fork.changes), merged.growth(session.changes)
    both = {path: (ours[path], growth) for path, growth in theirs.items() if path in ours}
    shared = {path for path, (here, there) in both.items() if here == there}
    tangled = {path for path, (here, there) in both.items() if here[0] & there[0]} - shared
    absorb(session.changes, fork.changes, shared=shared, tangled=tangled, on_append=on_append)
    session.access.join(fork.access)
    now = longer(session.changes)
    nobody: Growth = (frozenset(), ())
    merged.grown = {p: (ours.get(p, nobody)[0] | theirs.get(p, nobody)[0], shape) for p, shape in now.items()}
    state = fork.merged.state(fork.changes)
    merged.states |= fork.merged.states | ({state} if state is not None else set())
    merged.marks |= fork.merged.marks | {mark}
    fork.merged.own_marks.add(mark)
