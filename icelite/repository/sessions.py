"""Sessions: the part of `Repository` that opens them, and `transaction`, which opens and commits one.

Every writable session has a connection of its own, because its change set is attached to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from icelite.catalog import refs, snapshots
from icelite.catalog.connections import Spares
from icelite.catalog.database import Catalog, Transaction
from icelite.catalog.operations import to_microseconds
from icelite.catalog.settings import check_feature, check_online
from icelite.config import RepositoryConfig
from icelite.conflicts import ConflictSolver
from icelite.errors import ErrorKind, InvalidInputError, SnapshotNotFoundError
from icelite.objects import NoObjects, Objects
from icelite.repository.names import resolve
from icelite.session import OpenedSnapshot, Session
from icelite.store import IceliteStore
from icelite.virtual import VirtualAccess


class Sessions:
    """What `Repository` opens."""

    _catalog: Catalog
    _spares: Spares | None  # None where the catalog is elsewhere
    _config: RepositoryConfig
    _access: VirtualAccess
    _objects: Objects | NoObjects
    _commit_metadata: dict[str, Any]

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
        self._catalog.refresh()
        with self._catalog.read() as txn:
            seq = resolve(txn, branch, tag, snapshot_id)
            if as_of is not None:
                seq = _at_time(txn, seq, branch, as_of)
            base = OpenedSnapshot(snapshots.lookup_id(txn, seq), snapshots.view_snapshot(txn, seq))
        return Session(
            self._catalog,
            base,
            config=self._config.merge(RepositoryConfig.default()),
            access=self._access,
            objects=self._objects,
            branch=None,
            writable=False,
        )

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

    def _open_writable(self, branch: str, *, rearrange: bool) -> Session:
        self._catalog.check_writable()
        if self._spares is None:  # so that a refusal comes before the catalog is fetched
            with self._catalog.read() as txn:
                _check_allowed(txn, rearrange)
        storage, timeout = self._catalog.storage, self._config.busy_timeout_seconds
        # A connection of its own, since the change set is attached to it.
        strict = self._config.strict_locking
        catalog = Catalog(storage, change_set=True, busy_timeout=timeout, spares=self._spares, strict_locking=strict)
        with catalog.read() as txn:
            _check_allowed(txn, rearrange)  # not only with the commit
            seq = refs.lookup_branch(txn, branch)
            base = OpenedSnapshot(snapshots.lookup_id(txn, seq), snapshots.view_snapshot(txn, seq))
        return Session(
            catalog,
            base,
            config=self._config.merge(RepositoryConfig.default()),
            access=self._access,
            objects=self._objects,
            branch=branch,
            writable=True,
            rearrange=rearrange,
            commit_metadata=self._commit_metadata,
        )

    @contextmanager
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


def _check_allowed(txn: Transaction, rearrange: bool) -> None:
    check_online(txn)
    if rearrange:
        check_feature(txn, "move_node")


def _at_time(txn: Transaction, seq: int, branch: str | None, as_of: datetime) -> int:
    if branch is None or getattr(as_of, "tzinfo", None) is None:
        raise InvalidInputError(
            f"as_of={as_of!r} goes with a branch, and needs a time zone: datetime(2024, 8, 1, tzinfo=UTC)",
            ErrorKind.INVALID_ARGUMENT,
        )
    found = snapshots.find_as_of(txn, seq, to_microseconds(as_of))
    if found is None:
        raise SnapshotNotFoundError(
            f"branch {branch!r} had no snapshot at {as_of.isoformat()} yet", ErrorKind.NO_SNAPSHOT_AT_TIME
        )
    return found
