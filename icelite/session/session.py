"""`Session`: one snapshot, open for reading or for preparing the next one.

A read-only session sees its snapshot for ever. A writable one starts at its branch's tip, sees its own changes,
and commits only if the tip is still there. After a commit it is read-only at the new snapshot, as in Icechunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from icelite.catalog.database import Catalog
from icelite.catalog.locations import has_remote_locations
from icelite.change_set import ChangeSet, Native
from icelite.config import RepositoryConfig
from icelite.conflicts import VersionSelection
from icelite.errors import ErrorKind, ReadOnlyError, SessionStateError
from icelite.objects import NoObjects, Objects
from icelite.payload import Payloads
from icelite.session.asynchronous import AsynchronousSession, in_thread
from icelite.session.commits import Base
from icelite.session.fork import Merged, fork_base, merge_forks, new_identity, root_of
from icelite.storage import StorageConfig
from icelite.store import IceliteStore
from icelite.types import Diff, SessionMode
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
        native = Native(self.objects, config.inline_chunk_threshold_bytes, config.object_target_bytes)
        self.changes = ChangeSet(self._catalog, self._base.view, native)
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
        return self._catalog.storage.place is not None

    def may_read_remote(self) -> bool:
        """Whether any chunk may have to come over a network."""
        if self._stored_remote is None:
            elsewhere = self.objects.is_remote or self.is_remote
            self._stored_remote = elsewhere or has_remote_locations(self._catalog)
        if self._stored_remote:
            return True
        locations = self.changes.locations()
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
