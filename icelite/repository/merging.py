"""Merging one branch into another: a fast-forward where it can be one, else a three-way merge in one snapshot."""

from __future__ import annotations

from typing import Any

from icelite.catalog import refs, snapshots
from icelite.catalog.database import Catalog, Transaction
from icelite.conflicts import ConflictDetector, ConflictSolver
from icelite.errors import ErrorKind, SessionStateError
from icelite.repository.replay import apply_replay, plan_replay
from icelite.session import OpenedSnapshot, Session
from icelite.types import SnapshotInfo

MERGED = "icelite_merged"  # key in the metadata of a merge snapshot


class Merging:
    """The part of `Repository` that merges branches."""

    _catalog: Catalog

    def _open_writable(self, branch: str, *, rearrange: bool) -> Session:
        """A session at a branch's tip."""
        raise NotImplementedError

    def reset_branch(self, branch: str, snapshot_id: str, *, from_snapshot_id: str | None = None) -> None:
        """Point a branch at any snapshot."""
        raise NotImplementedError

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
        with self._catalog.read() as txn:
            ours, theirs = refs.lookup_branch(txn, from_branch), refs.lookup_branch(txn, into_branch)
            base_seq = _common_ancestor(txn, ours, theirs)
            infos = {seq: snapshots.lookup_info(txn, seq)[0] for seq in (ours, theirs, base_seq)}
            after, before = snapshots.view_snapshot(txn, ours), snapshots.view_snapshot(txn, base_seq)
            earlier = _find_merge(txn, theirs, base_seq, from_branch)
        if base_seq == ours or (earlier is not None and earlier.metadata[MERGED].get("snapshot_id") == infos[ours].id):
            return infos[theirs].id
        if base_seq == theirs:
            self.reset_branch(into_branch, infos[ours].id, from_snapshot_id=infos[theirs].id)
            return infos[ours].id
        if earlier is not None:  # what the first merge brought would be replayed again
            raise SessionStateError(
                f"branch {from_branch!r} was merged into {into_branch!r} before, and has gone on from where it was;"
                f" reset it to the merge, {earlier.id}, before working on it",
                ErrorKind.MERGE_FAILED,
            )
        session = self._open_writable(into_branch, rearrange=False)
        session.stand_on(OpenedSnapshot(infos[base_seq].id, before))
        apply_replay(session.changes, plan_replay(self._catalog, before, after))
        merged = {MERGED: {"branch": from_branch, "snapshot_id": infos[ours].id}}
        return session.commit(
            message or f"Merge {from_branch} into {into_branch}",
            {**(metadata or {}), **merged},
            rebase_with=solver or ConflictDetector(),
            allow_empty=True,
        )


def _common_ancestor(txn: Transaction, one: int, other: int) -> int:
    """The newest snapshot that both have; every history begins with the same one."""
    while one != other:  # a parent's number is always less: step back the greater
        greater, less = max(one, other), min(one, other)
        parent = snapshots.find_parent(txn, greater)
        one, other = (less if parent is None else parent), less
    return one


def _find_merge(txn: Transaction, seq: int, base_seq: int, branch: str) -> SnapshotInfo | None:
    """The newest snapshot after ``base_seq`` that merged a branch, or None."""
    current: int | None = seq
    while current is not None and current > base_seq:
        info, current = snapshots.lookup_info(txn, current)
        merged = info.metadata.get(MERGED)
        if isinstance(merged, dict) and merged.get("branch") == branch:
            return info
    return None
