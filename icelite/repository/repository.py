"""`Repository`: the door to one catalog; it opens sessions and keeps branches, tags and configuration."""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from copy import copy
from datetime import datetime
from typing import Any, Self

from icelite import types
from icelite.catalog import snapshots
from icelite.catalog.connections import Spares
from icelite.catalog.creation import create_catalog
from icelite.catalog.database import Catalog
from icelite.catalog.locations import list_locations
from icelite.catalog.locks import check_locks
from icelite.catalog.settings import find_setting, home_of, list_containers, list_flags, load_config
from icelite.change_set import ObjectWriter
from icelite.config import RepositoryConfig, normalize_prefix
from icelite.conflicts import ConflictSolver
from icelite.errors import AlreadyExistsError, RepositoryNotFoundError
from icelite.ops import bundle, export_zarr, gc, relocate, sources, space, verify
from icelite.payload import Payloads
from icelite.repository import administration, history, names, native
from icelite.repository.graph import AncestryGraph, draw_ancestry
from icelite.repository.merging import merge_branches
from icelite.repository.native import Access, ObjectStorage, Storage
from icelite.session import OpenedSnapshot, Session
from icelite.session.asynchronous import in_pages, in_thread
from icelite.storage import StorageConfig, as_storage
from icelite.store import IceliteStore
from icelite.types import Diff, FeatureFlag, RepoStatus, SnapshotInfo, SpecVersion


class Repository:
    """A version-controlled Zarr repository in one SQLite file.

    Made by `create`, `open` and `open_or_create`. Threads may share one; processes open the file each for itself.
    It pickles: the copy opens the file again.
    """

    def __init__(
        self,
        catalog: Catalog,
        config: RepositoryConfig | None,
        access: Access | None,
        objects: ObjectStorage | None = None,
    ) -> None:
        self._catalog = catalog
        self._given = (config, access, objects)
        with catalog.read() as txn:
            root = native.find_root(txn)
            self._stored = load_config(txn)
            containers = list_containers(txn)
            at_home = find_setting(txn, "home") == home_of(catalog.storage)
        self._config = self._stored if config is None else self._stored.merge(config)
        catalog.strict_locking = self._config.strict_locking
        is_local, timeout = catalog.storage.address is None, self._config.busy_timeout_seconds
        self._spares = Spares(catalog.storage, timeout) if is_local else None
        self._commit_metadata: dict[str, Any] = {}
        place = native.find_place(root, objects, catalog.storage)
        self._objects = native.open_objects(place, root)
        self._access = native.open_access(catalog.storage, containers, config, access, place, at_home, self._config)

    # -- coming into being -------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
        *,
        objects: ObjectStorage | None = None,
    ) -> Repository:
        """Make a repository with an empty branch ``main``.

        Parameters
        ----------
        storage
            Path of the file to be, such as ``"ocean.icelite"``, or a `StorageConfig`.
        config
            Kept in the file for whoever opens it.
        authorize_virtual_chunk_access
            URL prefix to credentials: what this object may read; see `open`.
        objects
            Where chunks larger than ``inline_chunk_threshold_bytes`` go, instead of into the catalog: a folder
            (relative to the catalog's), a URL such as ``s3://bucket/chunks``, or a `StorageConfig` in S3. By default
            the catalog holds everything. Each repository makes a folder of its own there.

        Raises
        ------
        AlreadyExistsError, RepositoryNotFoundError, StorageError
            ``repository-already-exists``; ``repository-not-found`` when the directory does not exist; ``io``.
        """
        place = as_storage(storage)
        objects = native.default_objects(place) if objects is None else objects
        folder = None if objects is None else native.own_folder(native.locate_objects(objects, place))
        if place.path is not None:
            check_locks(place.path, strict=config is not None and config.strict_locking)
        stored = config or RepositoryConfig.default()
        create_catalog(place, lambda txn: administration.initialize(txn, place, stored, folder))
        return cls.open(place, config, authorize_virtual_chunk_access, objects=objects)

    @classmethod
    def open(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
        *,
        check: str = "auto",
        objects: ObjectStorage | None = None,
    ) -> Repository:
        """Open a repository; no file is created. In a ``with`` statement it is closed at the end.

        Parameters
        ----------
        config
            Laid over the stored configuration, for this object only.
        authorize_virtual_chunk_access
            URL prefix to credentials, for virtual chunks outside the catalog's own directory; `required_access`
            lists what a repository needs.
        check
            ``auto``: let SQLite check the whole file when this machine has not met it; ``always``; ``never``.
        objects
            Where the objects are, as `create`; needed, for their credentials, when they are not under the catalog's
            directory, and to say where they are now.

        Raises
        ------
        RepositoryNotFoundError, FormatError, StorageError
            ``repository-not-found``; ``not-a-catalog``, ``empty-file``, ``not-a-file``, ``other-application``,
            ``truncated-file``, ``unsupported-spec-version``, ``unexpected-schema``, ``corrupt``; ``busy``, ``io``.
        """
        timeout = (config or RepositoryConfig.default()).busy_timeout_seconds
        catalog = Catalog(as_storage(storage), check=check, busy_timeout=timeout)
        return cls(catalog, config, authorize_virtual_chunk_access, objects)

    @classmethod
    def open_or_create(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Access | None = None,
        *,
        objects: ObjectStorage | None = None,
    ) -> Repository:
        """Open a repository, or make it where there is none; raises as `open` and `create`."""
        place = as_storage(storage)  # once: two memory storages are two repositories
        try:
            return cls.open(place, config, authorize_virtual_chunk_access, objects=objects)
        except RepositoryNotFoundError:
            try:
                return cls.create(place, config, authorize_virtual_chunk_access, objects=objects)
            except AlreadyExistsError:  # another process was quicker
                return cls.open(place, config, authorize_virtual_chunk_access, objects=objects)

    @staticmethod
    def exists(storage: Storage) -> bool:
        """Whether there is a repository that `open` would open.

        Raises
        ------
        FormatError
            As `open`, for a file that is there but is no usable catalog.
        """
        try:
            Catalog(as_storage(storage)).close()
        except RepositoryNotFoundError:
            return False
        return True

    @staticmethod
    def fetch_config(storage: Storage) -> RepositoryConfig | None:
        """The persisted configuration of a repository, with its containers; raises as `open`."""
        with contextlib.closing(Catalog(as_storage(storage))) as catalog, catalog.read() as txn:
            return load_config(txn)

    @staticmethod
    def fetch_spec_version(storage: Storage) -> SpecVersion | None:
        """Version of the format of a repository, or None where there is none; raises as `exists`."""
        return SpecVersion.current() if Repository.exists(storage) else None

    def reopen(
        self, config: RepositoryConfig | None = None, authorize_virtual_chunk_access: Access | None = None
    ) -> Repository:
        """The same repository in a new object, with another configuration or other credentials.

        Parameters
        ----------
        config, authorize_virtual_chunk_access
            As `open`; by default what this object was given.
        """
        old_config, old_access, objects = self._given
        access = old_access if authorize_virtual_chunk_access is None else authorize_virtual_chunk_access
        config = old_config if config is None else config
        return _reopen(type(self), self.storage, config, access, objects, self._commit_metadata)

    @property
    def storage(self) -> StorageConfig:
        """Where it is."""
        return self._catalog.storage

    def required_access(self) -> dict[str, str]:
        """What to pass as ``authorize_virtual_chunk_access`` to read every virtual chunk.

        Returns
        -------
        dict
            URL prefix to a Python expression; empty when all references are relative.
        """
        with self._catalog.read() as txn:
            return self._access.required(list_locations(txn))

    def close(self) -> None:
        """Release the file. Sessions opened for writing keep their own hold on it."""
        if self._spares is not None:
            self._spares.close()
        self._catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    create_async = classmethod(in_thread(create))
    open_async = classmethod(in_thread(open))
    open_or_create_async = classmethod(in_thread(open_or_create))
    exists_async = staticmethod(in_thread(exists))
    fetch_config_async = staticmethod(in_thread(fetch_config))
    fetch_spec_version_async = staticmethod(in_thread(fetch_spec_version))
    reopen_async = in_thread(reopen)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def readonly_session(
        self,
        branch: str | None = None,
        *,
        tag: str | None = None,
        snapshot_id: str | None = None,
        as_of: datetime | None = None,
    ) -> Session:
        """A session on a branch's tip, a tag or a snapshot, which it sees for ever.

        Parameters
        ----------
        branch, tag, snapshot_id
            Exactly one of them.
        as_of
            With ``branch``: the newest snapshot written at that time or before; with a time zone.

        Raises
        ------
        InvalidInputError, RefNotFoundError, SnapshotNotFoundError
            ``invalid-argument``, ``invalid-snapshot-id``; ``branch-not-found``, ``tag-not-found``;
            ``snapshot-not-found``, ``no-snapshot-at-time``.
        """
        base = names.open_snapshot(self._catalog, branch, tag, snapshot_id, as_of)
        return self._session(self._catalog, base, None)

    def writable_session(self, branch: str) -> Session:
        """A session at a branch's tip that can commit to it, once.

        Raises
        ------
        RefNotFoundError, ReadOnlyError, StorageError
            ``branch-not-found``; ``read-only-storage``, ``read-only-repository``; ``unsafe-storage`` on a network file
            system with ``strict_locking``.
        """
        return self._open_writable(branch, rearrange=False)

    def rearrange_session(self, branch: str) -> Session:
        """A session at a branch's tip that can do nothing but move nodes, and commit that.

        Raises
        ------
        RefNotFoundError, ReadOnlyError, SessionStateError
            ``branch-not-found``; ``read-only-storage``, ``read-only-repository``; ``feature-flag-disabled``.
        """
        return self._open_writable(branch, rearrange=True)

    @contextlib.contextmanager
    def transaction(
        self,
        branch: str,
        *,
        message: str,
        metadata: dict[str, Any] | None = None,
        rebase_with: ConflictSolver | None = None,
        rebase_tries: int = 1000,
    ) -> Iterator[IceliteStore]:
        """A store whose changes are committed when the block ends, or not at all when it raises.

        Parameters
        ----------
        message, metadata, rebase_with, rebase_tries
            As `Session.commit`.

        Raises
        ------
        RefNotFoundError, ReadOnlyError
            On entering; as `writable_session`.
        SessionStateError, ConflictError, RebaseFailedError, InvalidInputError, StorageError
            On leaving; as `Session.commit`, ``no-changes-to-commit`` included.
        """
        session = self.writable_session(branch)
        yield session.store
        session.commit(message, metadata, rebase_with=rebase_with, rebase_tries=rebase_tries)

    def _open_writable(self, branch: str, *, rearrange: bool = False) -> Session:
        self._catalog.check_writable()
        if self._spares is None:  # so that a refusal comes before the catalog is fetched
            names.check_session(self._catalog, rearrange)
        storage, timeout, strict = self.storage, self._config.busy_timeout_seconds, self._config.strict_locking
        catalog = Catalog(storage, change_set=True, busy_timeout=timeout, spares=self._spares, strict_locking=strict)
        return self._session(catalog, names.open_tip(catalog, branch, rearrange), branch, rearrange=rearrange)

    def _session(
        self, catalog: Catalog, base: OpenedSnapshot, branch: str | None, *, rearrange: bool = False
    ) -> Session:
        return Session(
            catalog,
            base,
            config=self.config,
            access=self._access,
            objects=self._objects,
            branch=branch,
            writable=branch is not None,
            rearrange=rearrange,
            commit_metadata=self._commit_metadata,
        )

    readonly_session_async = in_thread(readonly_session)
    writable_session_async = in_thread(writable_session)
    rearrange_session_async = in_thread(rearrange_session)

    # -- branches and tags -------------------------------------------------------------------------------------------

    def list_branches(self) -> set[str]:
        """Names of all branches."""
        return names.list_branches(self._catalog)

    def lookup_branch(self, branch: str) -> str:
        """Id of a branch's newest snapshot; `RefNotFoundError` ``branch-not-found``."""
        return names.lookup_branch(self._catalog, branch)

    def create_branch(self, branch: str, snapshot_id: str) -> None:
        """Give a snapshot a branch.

        Parameters
        ----------
        snapshot_id
            An id, the beginning of one that no other has, or the name of a branch or tag; so in every method.

        Raises
        ------
        InvalidInputError, AlreadyExistsError, SnapshotNotFoundError
            ``invalid-ref-name``, ``invalid-snapshot-id``; ``branch-already-exists``; ``snapshot-not-found``.
        """
        names.create_branch(self._catalog, branch, snapshot_id)

    def reset_branch(self, branch: str, snapshot_id: str, *, from_snapshot_id: str | None = None) -> None:
        """Point a branch at any snapshot.

        Parameters
        ----------
        snapshot_id
            As in `create_branch`.
        from_snapshot_id
            Only if the branch is still there.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError, InvalidInputError, ConflictError
            ``branch-not-found``; ``snapshot-not-found``; ``invalid-snapshot-id``; ``branch-update-conflict``.
        """
        names.reset_branch(self._catalog, branch, snapshot_id, from_snapshot_id)

    def delete_branch(self, branch: str) -> None:
        """Delete a branch; its snapshots stay.

        Raises
        ------
        SessionStateError, RefNotFoundError
            ``cannot-delete-main``; ``branch-not-found``.
        """
        names.delete_branch(self._catalog, branch)

    def merge(
        self,
        from_branch: str,
        into_branch: str,
        message: str | None = None,
        *,
        solver: ConflictSolver | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Bring what was committed to one branch since they parted into another one.

        Parameters
        ----------
        message
            Of the merge snapshot; a sentence with both names by default.
        solver
            Decides where both branches changed the same; by default every such conflict is an error. The branch
            that is merged is ``ours`` to the solver, the one it goes into ``theirs``.

        Returns
        -------
        str
            Id of the snapshot that ``into_branch`` has then: the merge, the other branch's tip after a fast-forward,
            or the one it had when there is nothing to merge.

        Raises
        ------
        RefNotFoundError, RebaseFailedError, SessionStateError
            ``branch-not-found``; ``rebase-failed`` with the conflicts; ``merge-failed`` when nodes were moved, or
            when this line was merged before and has gone on since.
        """
        return merge_branches(self._catalog, self._open_writable, from_branch, into_branch, message, solver, metadata)

    def list_tags(self) -> set[str]:
        """Names of all tags."""
        return names.list_tags(self._catalog)

    def lookup_tag(self, tag: str) -> str:
        """Id of a tag's snapshot; `RefNotFoundError` ``tag-not-found``."""
        return names.lookup_tag(self._catalog, tag)

    def create_tag(self, tag: str, snapshot_id: str) -> None:
        """Give a snapshot a name that never moves.

        Raises
        ------
        InvalidInputError, AlreadyExistsError, SnapshotNotFoundError, SessionStateError
            ``invalid-ref-name``, ``invalid-snapshot-id``; ``tag-already-exists``, ``tag-previously-deleted``;
            ``snapshot-not-found``; ``feature-flag-disabled``.
        """
        names.create_tag(self._catalog, tag, snapshot_id)

    def delete_tag(self, tag: str) -> None:
        """Delete a tag for ever: its name cannot be used again.

        Raises
        ------
        RefNotFoundError, SessionStateError
            ``tag-not-found``; ``feature-flag-disabled``.
        """
        names.delete_tag(self._catalog, tag)

    list_branches_async = in_thread(list_branches)
    lookup_branch_async = in_thread(lookup_branch)
    create_branch_async = in_thread(create_branch)
    reset_branch_async = in_thread(reset_branch)
    delete_branch_async = in_thread(delete_branch)
    merge_async = in_thread(merge)
    list_tags_async = in_thread(list_tags)
    lookup_tag_async = in_thread(lookup_tag)
    create_tag_async = in_thread(create_tag)
    delete_tag_async = in_thread(delete_tag)

    # -- history -----------------------------------------------------------------------------------------------------

    def lookup_snapshot(self, snapshot_id: str) -> SnapshotInfo:
        """A snapshot by its id, the beginning of it, or a branch or tag.

        Raises
        ------
        InvalidInputError, SnapshotNotFoundError
            ``invalid-snapshot-id``; ``snapshot-not-found``.
        """
        with self._catalog.read() as txn:
            return snapshots.lookup_info(txn, names.lookup_named(txn, snapshot_id)[0])[0]

    def ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> Iterator[SnapshotInfo]:
        """The snapshots from one back to the first, newest first.

        Raises
        ------
        InvalidInputError, RefNotFoundError, SnapshotNotFoundError
            ``invalid-argument`` unless exactly one is given, ``invalid-snapshot-id``; ``branch-not-found``,
            ``tag-not-found``; ``snapshot-not-found``.
        """
        return history.list_ancestors(self._catalog, names.resolve_now(self._catalog, branch, tag, snapshot_id))

    def ancestry_graph(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None, plain: bool = False
    ) -> AncestryGraph:
        """The history as a picture, in text or, in a notebook, as SVG.

        Parameters
        ----------
        branch, tag, snapshot_id
            At most one of them: its history alone; by default that of all branches.
        plain
            Text without colours.

        Raises
        ------
        InvalidInputError, RefNotFoundError, SnapshotNotFoundError
            As `ancestry`.
        """
        return draw_ancestry(self._catalog, branch, tag, snapshot_id, plain=plain)

    def diff(
        self,
        *,
        from_branch: str | None = None,
        from_tag: str | None = None,
        from_snapshot_id: str | None = None,
        to_branch: str | None = None,
        to_tag: str | None = None,
        to_snapshot_id: str | None = None,
    ) -> Diff:
        """What changed between two snapshots, chunk by chunk.

        Parameters
        ----------
        from_branch, from_tag, from_snapshot_id
            At most one: where to begin, the other end itself or an ancestor of it. By default its parent, so that
            ``diff(to_snapshot_id=...)`` is what that snapshot did.
        to_branch, to_tag, to_snapshot_id
            Exactly one: where to end.

        Raises
        ------
        InvalidInputError, RefNotFoundError, SnapshotNotFoundError
            ``bad-snapshot-chain-for-diff`` when the first is not in the history of the second, and as `ancestry`.
        """
        with self._catalog.read() as txn:
            to = names.resolve(txn, to_branch, to_tag, to_snapshot_id)
            start = None
            if not from_branch is from_tag is from_snapshot_id is None:
                start = names.resolve(txn, from_branch, from_tag, from_snapshot_id)
            return history.diff_snapshots(txn, start, to)

    def ops_log(self) -> Iterator[types.Update]:
        """Everything that was ever done to the repository, newest first."""
        return history.list_updates(self._catalog)

    def inspect_snapshot(self, snapshot_id: str) -> dict[str, Any]:
        """A snapshot and its nodes as plain, JSON-able values; raises as `lookup_snapshot`."""
        return history.inspect_snapshot(self._catalog, snapshot_id)

    def inspect_repo_info(self) -> dict[str, Any]:
        """Names, snapshots, settings and the latest changes as plain, JSON-able values."""
        return history.inspect_repo_info(self._catalog)

    def inspect_transaction_log(self, snapshot_id: str) -> dict[str, Any]:
        """What a snapshot did to its parent as plain, JSON-able values; raises as `lookup_snapshot`.

        ``synthetic_composite`` says that snapshots between the two have expired, and what they did is included.
        """
        return history.inspect_transaction_log(self._catalog, snapshot_id)

    async def async_ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> AsyncIterator[SnapshotInfo]:
        """See `ancestry`."""
        infos = await asyncio.to_thread(self.ancestry, branch=branch, tag=tag, snapshot_id=snapshot_id)
        async for info in in_pages(infos, history.AT_ONCE):
            yield info

    async def ops_log_async(self) -> AsyncIterator[types.Update]:
        """See `ops_log`."""
        async for update in in_pages(self.ops_log(), history.AT_ONCE):
            yield update

    lookup_snapshot_async = in_thread(lookup_snapshot)
    ancestry_graph_async = in_thread(ancestry_graph)
    diff_async = in_thread(diff)
    inspect_snapshot_async = in_thread(inspect_snapshot)
    inspect_repo_info_async = in_thread(inspect_repo_info)
    inspect_transaction_log_async = in_thread(inspect_transaction_log)

    # -- what it keeps about itself ----------------------------------------------------------------------------------

    def get_metadata(self) -> dict[str, Any]:
        """The metadata of the repository: a JSON object, empty until it is set."""
        return administration.load_metadata(self._catalog)

    @property
    def metadata(self) -> dict[str, Any]:
        """See `get_metadata`."""
        return self.get_metadata()

    def set_metadata(self, metadata: dict[str, Any]) -> None:
        """Replace the metadata of the repository.

        Raises
        ------
        InvalidInputError, ReadOnlyError
            ``invalid-argument`` for what is not a JSON object; ``read-only-repository``, ``read-only-storage``.
        """
        administration.set_metadata(self._catalog, metadata)

    def update_metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Set some keys of the metadata, and leave the others; the whole of it. Raises as `set_metadata`."""
        return administration.update_metadata(self._catalog, metadata)

    def default_commit_metadata(self) -> dict[str, Any]:
        """A copy of what commits of sessions from this object have as metadata, unless they say otherwise."""
        return dict(self._commit_metadata)

    def set_default_commit_metadata(self, metadata: dict[str, Any]) -> None:
        """Set what commits of sessions opened from now on have as metadata; what a commit itself is given wins.

        Raises
        ------
        InvalidInputError
            ``invalid-argument`` for what is not a JSON object.
        """
        administration.check_json_object(metadata, "commit metadata")
        self._commit_metadata = dict(metadata)

    def get_status(self) -> RepoStatus:
        """Whether the repository may be changed."""
        return administration.load_status(self._catalog)

    @property
    def status(self) -> RepoStatus:
        """See `get_status`."""
        return self.get_status()

    def set_status(self, status: RepoStatus) -> None:
        """Make the repository read-only, or writable again.

        While it is read-only every change is refused, in every process and from every session, also those opened
        before: `ReadOnlyError` ``read-only-repository``. Only this method works.
        """
        administration.set_status(self._catalog, status)

    def feature_flags(self) -> list[FeatureFlag]:
        """Every feature flag: ``move_node``, ``create_tag``, ``delete_tag``."""
        with self._catalog.read() as txn:
            return list_flags(txn)

    def enabled_feature_flags(self) -> list[FeatureFlag]:
        """The flags of what is allowed."""
        return [flag for flag in self.feature_flags() if flag.enabled]

    def disabled_feature_flags(self) -> list[FeatureFlag]:
        """The flags of what is forbidden: trying it is a `SessionStateError` ``feature-flag-disabled``."""
        return [flag for flag in self.feature_flags() if not flag.enabled]

    def set_feature_flag(self, name: str, setting: bool | None) -> None:
        """Allow something, forbid it, or (None) leave it to its default.

        Raises
        ------
        InvalidInputError, ReadOnlyError
            ``invalid-feature-flag``; ``read-only-repository``, ``read-only-storage``.
        """
        administration.set_feature_flag(self._catalog, name, setting)

    @property
    def config(self) -> RepositoryConfig:
        """A copy of the configuration in force: the persisted one, with what was passed laid over it."""
        return copy(self._config)

    def save_config(self) -> None:
        """Persist the configuration in force, for whoever opens the repository from now on.

        Containers that were taken out of it are removed, those that others have added meanwhile stay.

        Raises
        ------
        ConflictError, InvalidInputError, ReadOnlyError
            ``config-updated`` when somebody else has saved another one since this object read it; ``storage-config``
            when a removed container is needed by references, which are named; ``read-only-repository``,
            ``read-only-storage``. Nothing is saved then.
        """
        self._stored = administration.save_config(self._catalog, self._config, self._stored)
        given = self._given[0]
        if given is not None:  # what it took away is gone; reopen() must not take away what others add from now on
            self._given = (given.without_removals(), *self._given[1:])
        self._config = self._config.without_removals()

    @property
    def authorized_virtual_container_prefixes(self) -> set[str]:
        """The URL prefixes that were authorised for this object."""
        return {normalize_prefix(prefix) for prefix in self._given[1] or {}}

    @property
    def spec_version(self) -> SpecVersion:
        """Version of the catalog's format."""
        return SpecVersion.current()  # opening refuses every other

    get_metadata_async = in_thread(get_metadata)
    set_metadata_async = in_thread(set_metadata)
    update_metadata_async = in_thread(update_metadata)
    get_status_async = in_thread(get_status)
    set_status_async = in_thread(set_status)
    feature_flags_async = in_thread(feature_flags)
    enabled_feature_flags_async = in_thread(enabled_feature_flags)
    disabled_feature_flags_async = in_thread(disabled_feature_flags)
    set_feature_flag_async = in_thread(set_feature_flag)
    save_config_async = in_thread(save_config)

    # -- the files behind its references; where one of branch, tag and snapshot_id may be given, ``main`` is the default

    def sources(
        self,
        branch: str | None = None,
        *,
        tag: str | None = None,
        snapshot_id: str | None = None,
        check: bool = False,
        progress: types.Progress | None = None,
    ) -> types.Sources:
        """The files and objects that the virtual chunks of a snapshot are in, one row each; by default of ``main``.

        Parameters
        ----------
        check
            Look at each one: ``state`` is then ``ok``, ``changed``, ``missing``, ``unreadable`` or ``not authorised``,
            and ``problem`` says more. Nothing is read but sizes, times and ETags.
        progress
            Called with how many were looked at, and of how many.

        Raises
        ------
        InvalidInputError, RefNotFoundError, SnapshotNotFoundError
            ``invalid-argument``, ``invalid-snapshot-id``; ``branch-not-found``, ``tag-not-found``;
            ``snapshot-not-found``.
        """
        view = names.view_named(self._catalog, branch, tag, snapshot_id)
        return sources.list_sources(self._catalog, self._access, view, check=check, progress=progress)

    def verify_sources(
        self,
        branch: str | None = None,
        *,
        tag: str | None = None,
        snapshot_id: str | None = None,
        progress: types.Progress | None = None,
    ) -> list[types.Problem]:
        """Check that every source of a snapshot is there, is as it was referenced, and is long enough.

        A source that this object may not read is a problem too. Raises as `sources`.
        """
        found = self.sources(branch, tag=tag, snapshot_id=snapshot_id, check=True, progress=progress)
        return sources.find_problems(found)

    def file_history(
        self, url: str, branch: str | None = None, *, tag: str | None = None, snapshot_id: str | None = None
    ) -> list[types.FileChange]:
        """Which snapshots added, changed and dropped a file, newest first: one query, however long the history.

        Only what is behind the snapshot counts, as in `ancestry`. Released snapshots are told too, by the ids that they
        had; moved files are known by where they are now.

        Parameters
        ----------
        url
            An absolute URL, a path relative to the catalog, or ``vcc://name/path``.

        Raises
        ------
        NotFoundError, InvalidInputError, RefNotFoundError, SnapshotNotFoundError
            ``location-not-found`` when no reference ever was to the file; ``invalid-virtual-ref``; as `sources`.
        """
        return sources.list_file_history(self._catalog, names.view_named(self._catalog, branch, tag, snapshot_id), url)

    def relocate(
        self, old_prefix: str, new_prefix: str, *, dry_run: bool = False, check: bool = False
    ) -> types.Relocation:
        """Say that files and objects have moved: in every snapshot, references below one prefix go to another.

        One row is rewritten for each file, whatever the number of references, in one transaction. The files
        themselves are not touched.

        Parameters
        ----------
        old_prefix, new_prefix
            A directory, or a single file: relative to the catalog's folder, such as ``"oisst/"`` (``"./"`` is all of
            it); a URL, such as ``"file:///data/"`` or ``"s3://bucket/oisst/"``; an absolute path; or
            ``"vcc://name/"``. A whole container that moves to a URL keeps its name.
        dry_run
            Change nothing, only say what would be.
        check
            Look at every file in its new place first, with the authorisation of this object, and note its time or
            ETag there; one that is missing or has another size is an error, and nothing is changed.

        Notes
        -----
        The recorded size goes on being checked. A time is kept only where files move between local directories, and an
        ETag never: copies do not have them. A container for the new place is added where none covers it. Sessions that
        are open find the files in their new place; references that a session has not yet committed stay as they are.

        Raises
        ------
        InvalidInputError, NotFoundError, ReadOnlyError, StorageError
            ``invalid-virtual-ref``, ``no-container-for-virtual-chunk`` for a prefix that cannot be used;
            ``location-not-found`` when nothing is below ``old_prefix``; ``read-only-repository``,
            ``read-only-storage``; with ``check``, ``virtual-chunk-fetch``, ``virtual-chunk-modified``,
            ``unauthorized-virtual-chunk-container``.
        """
        done, moved = relocate.relocate(
            self._catalog, self._access, old_prefix, new_prefix, dry_run=dry_run, check=check
        )
        if not dry_run:
            self._take_over(moved)
        return done

    def bundle(self, target: str | os.PathLike[str], *, progress: types.Progress | None = None) -> types.Bundle:
        """Write a new catalog that needs no other file: the chunks of all history are in it.

        Snapshots, ids, branches, tags and the log are the same. Chunks that are one range of one file are copied once.
        The file appears under its name when it is complete.

        Parameters
        ----------
        target
            A path where nothing is yet, such as ``"shipped.icelite"``.
        progress
            Called with how many chunks were copied, and of how many.

        Raises
        ------
        AlreadyExistsError, RepositoryNotFoundError, StorageError, InvalidInputError
            ``repository-already-exists``; ``repository-not-found`` when the directory does not exist; ``io``,
            ``storage-full``; for a source that changed, is missing or may not be read, as when reading its chunks.
        """
        session = self.readonly_session(names.MAIN)
        return bundle.bundle(self._catalog, session.payloads, target, progress)

    def export_zarr(
        self,
        target: str | os.PathLike[str],
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        group: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        consolidated: bool = False,
        progress: types.Progress | None = None,
    ) -> types.ZarrExport:
        """Write a snapshot as a plain Zarr hierarchy, as it is stored: v3 or v2, its chunks byte for byte.

        Parameters
        ----------
        target
            A directory, a file ``.zip``, or a URL for fsspec such as ``"s3://bucket/ocean.zarr"``. A local one appears
            under its name when it is complete. Elsewhere metadata comes last, that of the root at the very end: until
            then nothing opens there.
        group
            Write only what is below this path, as the root.
        storage_options
            For fsspec: credentials, endpoint.
        overwrite
            Replace what is there.
        consolidated
            Add consolidated metadata.
        progress
            Called with how many values were written, and of how many.

        Raises
        ------
        AlreadyExistsError, NodeNotFoundError, InvalidInputError, StorageError
            ``target-already-exists``; ``node-not-found``; ``invalid-path``; ``io``, ``unsupported-storage``; as when
            reading chunks; and as `sources`.
        """
        branch = names.MAIN if branch is tag is snapshot_id is None else branch
        session = self.readonly_session(branch, tag=tag, snapshot_id=snapshot_id)
        return export_zarr.export_zarr(
            session,
            target,
            group=group or "",
            storage_options=storage_options,
            overwrite=overwrite,
            consolidated=consolidated,
            progress=progress,
        )

    def _take_over(self, moved: Mapping[str, str]) -> None:
        """Go on with the containers as they are in the catalog now; those that the caller declared have moved too."""
        with self._catalog.read() as txn:
            self._stored = load_config(txn)
            self._access.reload(list_containers(txn), moved)
        given = self._given[0]
        if given is not None:
            self._given = (given := administration.with_moved(given, moved), *self._given[1:])
        self._config = self._stored if given is None else self._stored.merge(given)

    sources_async = in_thread(sources)
    verify_sources_async = in_thread(verify_sources)
    relocate_async = in_thread(relocate)
    bundle_async = in_thread(bundle)
    export_zarr_async = in_thread(export_zarr)

    # -- maintenance; arguments of Icechunk's that bound memory or concurrency mean nothing here, where both are bounded

    def expire_snapshots(
        self,
        older_than: datetime,
        *,
        delete_expired_branches: bool = False,
        delete_expired_tags: bool = False,
        keep_last: int = 0,
        keep_daily: int = 0,
        keep_weekly: int = 0,
        keep_monthly: int = 0,
        keep_yearly: int = 0,
        dry_run: bool = False,
    ) -> set[str]:
        """Release old snapshots; `garbage_collect` then removes what only they saw.

        Released ids cannot be read from now on. What comes after a released snapshot gets the first one as parent, or
        with keep rules the nearest that stays. The first snapshot and the tip of ``main`` always stay.

        Parameters
        ----------
        older_than
            Snapshots written before this are released; with a time zone.
        delete_expired_branches, delete_expired_tags
            Delete the branches and tags whose snapshot is that old; without, those snapshots stay.
        keep_last
            Of the snapshots of each branch that are that old, so many of the newest stay.
        keep_daily, keep_weekly, keep_monthly, keep_yearly
            Of the snapshots of each branch that are that old, the newest one of each of the last so many days, ISO
            weeks, months and years stays, in UTC; those without a snapshot do not count.
        dry_run
            Change nothing, only say what would go.

        Returns
        -------
        set
            The released ids, those of snapshots on no branch included.

        Raises
        ------
        InvalidInputError, ReadOnlyError, StorageError
            ``invalid-argument``; ``read-only-storage``, ``read-only-repository``; ``busy``, ``storage-full``, ``io``.
        """
        return gc.expire_snapshots(
            self._catalog,
            older_than,
            gc.KeepRules(keep_last, keep_daily, keep_weekly, keep_monthly, keep_yearly),
            delete_expired_branches=delete_expired_branches,
            delete_expired_tags=delete_expired_tags,
            dry_run=dry_run,
        )

    def garbage_collect(
        self,
        delete_object_older_than: datetime,
        *,
        dry_run: bool = False,
        max_snapshots_in_memory: int = 50,
        max_compressed_manifest_mem_bytes: int = 512 << 20,
        max_decoded_manifest_mem_bytes: int = 4 << 30,
        max_concurrent_manifest_fetches: int = 500,
        max_concurrent_deletes: int = 10,
        max_consecutive_delete_failures: int = 50,
        max_concurrent_listings: int | None = None,
    ) -> types.GCSummary:
        """Remove the snapshots that no branch or tag reaches, and all rows and bytes that no snapshot sees.

        The file keeps its size, and later commits fill the space; `compact` gives it back. Objects are removed after
        the rows are, durably; if that fails on the way, running it again removes the rest.

        Parameters
        ----------
        delete_object_older_than
            Snapshots, and bytes of sessions that have not committed, are removed only if they were written before this;
            with a time zone. Choose it before the beginning of the oldest open session.
        dry_run
            Change nothing, only say what would go. It takes as long, and holds off other writers as long.

        Raises
        ------
        InvalidInputError, ReadOnlyError, StorageError
            As `expire_snapshots`.
        """
        return gc.garbage_collect(self._catalog, self._objects, delete_object_older_than, dry_run=dry_run)

    def compact(self, *, dry_run: bool = False) -> types.Compaction:
        """Give the space of removed rows back to the file system.

        Writes the file anew beside itself, in SQLite's temporary directory, so it needs that much space for a while.
        Nobody else can write meanwhile. When it fails, nothing has changed.

        Parameters
        ----------
        dry_run
            Change nothing; the size afterwards is then what is left without free pages, and it may become smaller.

        Raises
        ------
        ReadOnlyError, StorageError
            ``read-only-storage``, ``read-only-repository``; ``busy``, ``storage-full``, ``io``.
        """
        return space.compact(self._catalog, dry_run=dry_run)

    def repack(self, *, min_live: float = 0.5, progress: types.Progress | None = None) -> types.Repacking:
        """Write the needed part of mostly dead objects into new ones; `garbage_collect` then removes the old ones.

        Run it after `garbage_collect`, which tells what is needed. Reading goes on meanwhile.

        Parameters
        ----------
        min_live
            Objects of which less than this share is needed are rewritten.

        Raises
        ------
        InvalidInputError, ReadOnlyError, StorageError
            ``invalid-argument``, ``unauthorized-objects``; ``read-only-storage``, ``read-only-repository``; ``io``,
            ``virtual-chunk-fetch``, ``busy``.
        """
        writer = ObjectWriter(self._objects, -1, self._config.object_target_bytes)
        payloads = Payloads(self._catalog, self._access, self._objects)
        return space.repack(self._catalog, payloads, writer, min_live, progress)

    def verify(self, *, objects: str | None = None) -> types.Problems:
        """Check every rule of the file format; what is wrong, and nothing when all is well.

        It reads the whole file, and lets others write meanwhile. Virtual sources are not looked at
        (`verify_sources`).

        Parameters
        ----------
        objects
            ``"list"``: native objects are there and as long as they were. ``"read"``: besides, every chunk in them is
            read and has its checksum. By default they are not looked at.

        Returns
        -------
        Problems
            A list, empty when all is well, that also says which branches, tags and snapshots were looked at.

        Raises
        ------
        InvalidInputError
            ``invalid-argument``.
        """
        payloads = Payloads(self._catalog, self._access, self._objects)
        return verify.verify(self._catalog, objects, payloads, self._objects)

    def chunk_storage_stats(
        self,
        *,
        max_snapshots_in_memory: int = 50,
        max_compressed_manifest_mem_bytes: int = 512 << 20,
        max_decoded_manifest_mem_bytes: int = 4 << 30,
        max_concurrent_manifest_fetches: int = 500,
    ) -> types.ChunkStorageStats:
        """Bytes of the chunks of all snapshots, by where they are; what several share counts once.

        Until they are collected, chunks of released snapshots count too.
        """
        return space.chunk_storage_stats(self._catalog)

    def total_chunks_storage(
        self,
        *,
        max_snapshots_in_memory: int = 50,
        max_compressed_manifest_mem_bytes: int = 512 << 20,
        max_decoded_manifest_mem_bytes: int = 4 << 30,
        max_concurrent_manifest_fetches: int = 500,
    ) -> int:
        """Bytes in objects that icelite wrote; deprecated in favour of `chunk_storage_stats`."""
        warnings.warn(
            "total_chunks_storage counts native chunks only; use chunk_storage_stats", DeprecationWarning, stacklevel=2
        )
        return self.chunk_storage_stats().native_bytes

    expire_snapshots_async = in_thread(expire_snapshots)
    garbage_collect_async = in_thread(garbage_collect)
    compact_async = in_thread(compact)
    verify_async = in_thread(verify)
    chunk_storage_stats_async = in_thread(chunk_storage_stats)
    total_chunks_storage_async = in_thread(total_chunks_storage)

    # -- as a Python object ------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<icelite.Repository {self._catalog.storage.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.storage, *self._given, self._commit_metadata)


def _reopen(
    cls: type[Repository],
    storage: StorageConfig,
    config: RepositoryConfig | None,
    access: Access | None,
    objects: ObjectStorage | None,
    commit_metadata: dict[str, Any],
) -> Repository:
    repository = cls.open(storage, config, access, objects=objects)
    repository.set_default_commit_metadata(commit_metadata)
    return repository
