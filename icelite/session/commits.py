"""How a session's changes become a snapshot: `Commit`.

The order is the durability argument. Bytes are in objects or in the payload table, or go into the latter in the same
transaction; then one write transaction compares the branch's tip, rebases where that was asked for, inserts the rows
and moves the branch. Until its COMMIT nobody sees anything; when it fails, the changes are as they were.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from icelite.catalog import refs, snapshots
from icelite.catalog.changes import copy_snapshot, copy_usage
from icelite.catalog.database import PATIENCE, Catalog, Transaction, repeat_write
from icelite.catalog.operations import log_operation, now, to_microseconds
from icelite.catalog.settings import check_feature, check_online, list_containers, save_container
from icelite.change_set import ChangeSet
from icelite.config import VirtualChunkContainer
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
from icelite.types import View, new_snapshot_id


@dataclass(frozen=True, slots=True)
class OpenedSnapshot:
    """The snapshot a session stands on."""

    id: str
    view: View


@dataclass(slots=True)
class Commit:
    """One snapshot to be, of the uncommitted changes on ``base``.

    Attributes
    ----------
    base
        The snapshot that the changes are on; another one once they were rebased.
    containers
        Those that references may need; the catalog keeps them.
    moves_nodes
        Whether that is all it does.
    written_at
        Microseconds since the epoch; by default now, or as soon after the parent as can be.
    """

    base: OpenedSnapshot
    changes: ChangeSet
    payloads: Payloads
    containers: Collection[VirtualChunkContainer]
    message: str
    metadata: Mapping[str, Any]
    moves_nodes: bool = False
    snapshot_id: str = field(default_factory=new_snapshot_id)
    written_at: int | None = None

    def commit(self, branch: str, solver: ConflictSolver | None, tries: int) -> OpenedSnapshot:
        """Make it the tip of a branch, rebased with ``solver`` where the tip has moved."""
        catalog, begun_at = self.changes.catalog, self.base
        self.changes.chunks.upload()
        for is_last in replace(PATIENCE, attempts=max(1, tries)).tries():
            restore = self.changes.checkpoint()
            try:
                with _naming(self.snapshot_id), catalog.write() as txn:
                    check_online(txn)
                    if solver is not None:
                        self.rebase(txn, branch, solver)
                    self._check_tip(txn, branch)
                    view = self.write(txn, "NewCommit", branch)
                    refs.move_branch(txn, branch, self.base.view.seq, view.seq)
                break
            except BaseException as error:
                restore()
                self.base = begun_at
                if solver is None or is_last or not self._lost_a_race(error):
                    raise
        return OpenedSnapshot(self.snapshot_id, view)

    def _lost_a_race(self, error: BaseException) -> bool:
        """Whether somebody else published the remote catalog between our last look and our write."""
        lost = isinstance(error, ConflictError) and not isinstance(error, RebaseFailedError)
        return lost and self.changes.catalog.storage.address is not None

    def amend(self, branch: str) -> OpenedSnapshot:
        """Make it the tip of a branch in place of the one there is, whose changes it takes over."""
        self.changes.chunks.upload()
        with _naming(self.snapshot_id), self.changes.catalog.write() as txn:
            check_online(txn)
            self._check_tip(txn, branch)
            tip, parent_seq = snapshots.lookup_info(txn, self.base.view.seq)
            if parent_seq is None:
                raise SessionStateError(
                    f"branch {branch!r} is at the initial snapshot, which cannot be amended; commit instead",
                    ErrorKind.NO_AMEND_FOR_INITIAL_COMMIT,
                )
            view = self.write(txn, "CommitAmended", branch, amended=tip.id)
            refs.move_branch(txn, branch, self.base.view.seq, view.seq)
        return OpenedSnapshot(self.snapshot_id, view)

    def detach(self, branch: str | None = None) -> OpenedSnapshot:
        """Make it a snapshot, and move no branch; ``branch`` is where the operation log says that it was committed."""
        self.changes.chunks.upload()
        with _naming(self.snapshot_id), self.changes.catalog.write() as txn:
            check_online(txn)
            view = self.write(txn, "NewDetachedSnapshot" if branch is None else "NewCommit", branch)
        return OpenedSnapshot(self.snapshot_id, view)

    def write_apart(self) -> OpenedSnapshot:
        """Make it a snapshot that no branch has, also while others publish a remote catalog; the changes stay."""

        def write(txn: Transaction) -> View:
            check_online(txn)
            return self.write(txn, "NewDetachedSnapshot", None)

        return OpenedSnapshot(self.snapshot_id, repeat_write(self.changes.catalog, write))

    # -- steps -------------------------------------------------------------------------------------------------

    def _check_tip(self, txn: Transaction, branch: str) -> None:
        tip = refs.lookup_branch(txn, branch)
        if tip != self.base.view.seq:
            actual = snapshots.lookup_id(txn, tip)
            raise ConflictError(
                f"branch {branch!r} moved to snapshot {actual} since this session began at {self.base.id};"
                " nothing was committed: pass rebase_with=ConflictDetector(), or open a new session and write again",
                ErrorKind.COMMIT_CONFLICT,
                expected_parent=self.base.id,
                actual_parent=actual,
            )

    def rebase(self, txn: Transaction, branch: str, solver: ConflictSolver) -> None:
        """Put the changes on a branch's tip."""
        tip = refs.lookup_branch(txn, branch)
        if tip != self.base.view.seq:
            plan = plan_rebase(txn, self.changes, tip, solver)
            plan.apply(txn, self.changes)
            self.base = OpenedSnapshot(snapshots.lookup_id(txn, tip), plan.view)
            self.payloads.forget()

    def write(self, txn: Transaction, kind: str, branch: str | None, *, amended: str | None = None) -> View:
        """Insert the snapshot with its rows; for an amend, those of the amended snapshot come first."""
        if self.moves_nodes:
            check_feature(txn, "move_node")
        base = self.base.view
        parent = base if amended is None else snapshots.view_before(txn, base)
        written_at = self.written_at
        if written_at is None:
            before = to_microseconds(snapshots.lookup_info(txn, base.seq)[0].written_at)
            written_at = max(now(), before + 1)  # a clock set back must not put a child before its parent
        detail = {"branch": branch, "previous_snap_id": amended, "new_snap_id": self.snapshot_id}
        detail = {name: value for name, value in detail.items() if value is not None}
        seq = log_operation(txn, kind, detail, written_at, with_snapshot=True)
        parent_seq = base.seq if amended is None else snapshots.find_parent(txn, base.seq)
        view = snapshots.insert_snapshot(
            txn, seq, parent, self.snapshot_id, written_at, self.message, dict(self.metadata), parent_seq=parent_seq
        )
        if amended is not None:
            copy_snapshot(txn, base.seq, view)
            copy_usage(txn, base.seq, view)
        self._save_containers(txn)
        self.changes.write_to(txn, view)
        return view

    def _save_containers(self, txn: Transaction) -> None:
        wanted = {container.url_prefix: container for container in self.containers}
        if wanted:
            stored = {container.url_prefix for container in list_containers(txn).values()}
            for prefix, container in wanted.items():
                if prefix not in stored:
                    save_container(txn, container)


def is_kept(catalog: Catalog, snapshot: OpenedSnapshot) -> bool:
    """Whether a snapshot is still there."""
    with catalog.read() as txn:
        return snapshots.find_seq(txn, snapshot.id) is not None


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
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"commit metadata is not JSON: {error}", ErrorKind.INVALID_ARGUMENT) from error
    if not text.startswith("{"):
        raise InvalidInputError(f"commit metadata {metadata!r} is not a dict", ErrorKind.INVALID_ARGUMENT)
