"""How a session's changes become a snapshot: `commit`, `amend`, `flush`, and `rebase` before them.

The order is the durability argument. Bytes are in objects or in the payload table, or go into the latter in the same
transaction; then one write transaction compares the branch's tip, rebases where that was asked for, inserts the rows
and moves the branch. Until its COMMIT nobody sees anything; when it fails, the session is as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from icelite.catalog import refs, snapshots, staging
from icelite.catalog.changes import copy_snapshot, copy_usage
from icelite.catalog.database import PATIENCE, Catalog, Transaction
from icelite.catalog.operations import log_operation, now, to_microseconds
from icelite.catalog.settings import check_feature, check_online, list_containers, save_container
from icelite.change_set import ChangeSet
from icelite.config import RepositoryConfig
from icelite.conflicts import ConflictSolver
from icelite.errors import (
    ConflictError,
    ErrorKind,
    InvalidInputError,
    RebaseFailedError,
    SessionStateError,
    StorageError,
)
from icelite.payload import Payloads
from icelite.session.rebase import plan_rebase
from icelite.types import SnapshotInfo, View, new_snapshot_id
from icelite.virtual import VirtualAccess


@dataclass(frozen=True, slots=True)
class Base:
    """The snapshot a session stands on."""

    id: str
    view: View


class Commits:
    """The part of `Session` that writes snapshots."""

    config: RepositoryConfig
    access: VirtualAccess
    changes: ChangeSet
    payloads: Payloads
    _catalog: Catalog
    _base: Base
    _branch: str | None
    _writable: bool
    _rearrange: bool
    _commit_metadata: dict[str, Any]  # of every commit, unless it says otherwise

    def _reset(self) -> None:
        """Begin anew on `_base`."""
        raise NotImplementedError

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
        SessionStateError
            ``commit-not-allowed`` on a read-only session; ``no-changes-to-commit``.
        ConflictError
            ``commit-conflict`` when the branch has moved since this session began.
        RebaseFailedError
            ``rebase-failed``; see its ``conflicts``.
        InvalidInputError
            ``invalid-argument`` for metadata that is not JSON.
        ReadOnlyError
            ``read-only-repository``, ``read-only-storage``.
        StorageError
            ``busy``, ``storage-full``; nothing was committed, and the changes are still here. ``io``: the disk failed
            on the way, and the message names the snapshot to look for, since it may have been committed all the same.
        """
        branch = self._check_can_commit(message, metadata, allow_empty)
        snapshot_id = new_snapshot_id()
        with self.changes.lock:
            self.changes.chunks.upload()
            for is_last in replace(PATIENCE, attempts=max(1, rebase_tries)).tries():
                restore = self._checkpoint()
                try:
                    with _naming(snapshot_id), self._catalog.write() as txn:
                        check_online(txn)
                        if rebase_with is not None:
                            self._rebase_to_tip(txn, branch, rebase_with)
                        self._check_tip(txn, branch)
                        view = self._write(txn, "NewCommit", branch, snapshot_id, message, metadata)
                        refs.move_branch(txn, branch, self._base.view.seq, view.seq)
                    break
                except BaseException as error:
                    restore()
                    if rebase_with is None or is_last or not self._lost_a_race(error):
                        raise
            self._continue_on(Base(snapshot_id, view))
        return snapshot_id

    def _lost_a_race(self, error: BaseException) -> bool:
        """Whether somebody else published the remote catalog between our last look and our write."""
        lost = isinstance(error, ConflictError) and not isinstance(error, RebaseFailedError)
        return lost and self._catalog.storage.address is not None

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
        snapshot_id = new_snapshot_id()
        with self.changes.lock:
            self.changes.chunks.upload()
            with _naming(snapshot_id), self._catalog.write() as txn:
                check_online(txn)
                self._check_tip(txn, branch)
                tip, parent_seq = snapshots.lookup_info(txn, self._base.view.seq)
                if parent_seq is None:
                    raise SessionStateError(
                        f"branch {branch!r} is at the initial snapshot, which cannot be amended; commit instead",
                        ErrorKind.NO_AMEND_FOR_INITIAL_COMMIT,
                    )
                parent = snapshots.view_before(txn, self._base.view)
                view = self._write(
                    txn, "CommitAmended", branch, snapshot_id, message, metadata, amended=tip.id, parent=parent
                )
                refs.move_branch(txn, branch, self._base.view.seq, view.seq)
            self._continue_on(Base(snapshot_id, view))
        return snapshot_id

    def flush(self, message: str, *, metadata: dict[str, Any] | None = None) -> str:
        """Make the changes a snapshot that no branch has; then this session is read-only on it.

        Adopt it with `Repository.reset_branch`, ``create_branch`` or ``create_tag``; otherwise expiration removes it.

        Raises
        ------
        SessionStateError, InvalidInputError, StorageError
            As `commit`.
        """
        self._check_can_commit(message, metadata, allow_empty=False)
        snapshot_id = new_snapshot_id()
        with self.changes.lock:
            self.changes.chunks.upload()
            with _naming(snapshot_id), self._catalog.write() as txn:
                check_online(txn)
                view = self._write(txn, "NewDetachedSnapshot", None, snapshot_id, message, metadata)
            self._continue_on(Base(snapshot_id, view))
        return snapshot_id

    def record(self, snapshot: SnapshotInfo, branch: str | None) -> Base:
        """Make the changes a snapshot as another repository had it, and go on from there; no branch moves.

        Parameters
        ----------
        snapshot
            Its id, time, message and metadata are kept; its parent is the snapshot that this session stands on.
        branch
            For the operation log: where it was committed, if that is known.
        """
        kind = "NewDetachedSnapshot" if branch is None else "NewCommit"
        with self.changes.lock:
            self.changes.chunks.upload()
            with _naming(snapshot.id), self._catalog.write() as txn:
                check_online(txn)
                written_at = to_microseconds(snapshot.written_at)
                view = self._write(
                    txn, kind, branch, snapshot.id, snapshot.message, snapshot.metadata, written_at=written_at
                )
            self._continue_on(Base(snapshot.id, view))
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
            restore = self._checkpoint()
            try:
                with self._catalog.stage() as txn:
                    self._rebase_to_tip(txn, branch, solver)
            except BaseException:
                restore()
                raise

    # -- steps -------------------------------------------------------------------------------------------------

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

    def _check_tip(self, txn: Transaction, branch: str) -> None:
        tip = refs.lookup_branch(txn, branch)
        if tip != self._base.view.seq:
            actual = snapshots.lookup_id(txn, tip)
            raise ConflictError(
                f"branch {branch!r} moved to snapshot {actual} since this session began at {self._base.id};"
                " nothing was committed: pass rebase_with=ConflictDetector(), or open a new session and write again",
                ErrorKind.COMMIT_CONFLICT,
                expected_parent=self._base.id,
                actual_parent=actual,
            )

    def _rebase_to_tip(self, txn: Transaction, branch: str, solver: ConflictSolver) -> None:
        tip = refs.lookup_branch(txn, branch)
        if tip == self._base.view.seq:
            return
        plan = plan_rebase(txn, self.changes, tip, solver)
        plan.apply(txn, self.changes)
        self._base = Base(snapshots.lookup_id(txn, tip), plan.view)
        self.payloads.forget()

    def _checkpoint(self) -> Callable[[], None]:
        """How to undo in memory what a rolled-back transaction undoes in the catalog."""
        base, restore_changes = self._base, self.changes.checkpoint()

        def restore() -> None:
            self._base = base
            restore_changes()

        return restore

    def _write(
        self,
        txn: Transaction,
        kind: str,
        branch: str | None,
        snapshot_id: str,
        message: str,
        metadata: dict[str, Any] | None,
        *,
        parent: View | None = None,
        amended: str | None = None,
        written_at: int | None = None,
    ) -> View:
        """Insert the snapshot with its rows; for an amend, those of the amended snapshot come first."""
        if self._rearrange:
            check_feature(txn, "move_node")
        base = self._base.view
        parent = parent or base
        if written_at is None:
            before = to_microseconds(snapshots.lookup_info(txn, base.seq)[0].written_at)
            written_at = max(now(), before + 1)  # a clock set back must not put a child before its parent
        detail = {"branch": branch, "previous_snap_id": amended, "new_snap_id": snapshot_id}
        detail = {name: value for name, value in detail.items() if value is not None}
        seq = log_operation(txn, kind, detail, written_at, with_snapshot=True)
        metadata = {**self._commit_metadata, **(metadata or {})}
        parent_seq = base.seq if amended is None else snapshots.find_parent(txn, base.seq)
        view = snapshots.insert_snapshot(
            txn, seq, parent, snapshot_id, written_at, message, metadata, parent_seq=parent_seq
        )
        if amended is not None:
            copy_snapshot(txn, base.seq, view)
            copy_usage(txn, base.seq, view)
        self._save_containers(txn)
        self.changes.write_to(txn, view)
        return view

    def _save_containers(self, txn: Transaction) -> None:
        """Persist the containers that references may need: those configured, and those made for local folders."""
        configured = self.config.virtual_chunk_containers or {}
        wanted = {c.url_prefix: c for c in [*configured.values(), *self.access.new_containers.values()]}
        if wanted:
            stored = {c.url_prefix for c in list_containers(txn).values()}
            for prefix, container in wanted.items():
                if prefix not in stored:
                    save_container(txn, container)

    def _continue_on(self, base: Base) -> None:
        """Stand on the new snapshot, read-only."""
        self._base = base
        self._writable = False
        with self._catalog.stage() as txn:
            staging.clear(txn)
        self._reset()


@contextmanager
def _naming(snapshot_id: str) -> Iterator[None]:
    """Let an I/O error name the snapshot: the last sync of a COMMIT may fail after it took effect."""
    try:
        yield
    except StorageError as error:
        if error.kind == ErrorKind.IO:
            error.message += f"; lookup_snapshot({snapshot_id!r}) tells whether it was committed all the same"
        raise


def check_message(message: object, metadata: dict[str, Any] | None) -> None:
    """Refuse a message or metadata that cannot be kept.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``.
    """
    if not isinstance(message, str):
        raise InvalidInputError(f"commit message {message!r} is not a str", ErrorKind.INVALID_ARGUMENT)
    try:
        text = json.dumps(metadata or {})
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"commit metadata is not JSON: {error}", ErrorKind.INVALID_ARGUMENT) from error
    if not text.startswith("{"):
        raise InvalidInputError(f"commit metadata {metadata!r} is not a dict", ErrorKind.INVALID_ARGUMENT)
