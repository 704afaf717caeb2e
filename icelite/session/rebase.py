"""Replaying a session's changes over snapshots that were committed since it began.

Conflicts are looked for snapshot by snapshot, oldest first, and all of it inside one transaction: nothing of the
session has changed when a conflict is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from icelite.catalog import nodes, snapshots
from icelite.catalog.changes import list_changes, list_seqs_since
from icelite.catalog.database import Transaction
from icelite.change_set import Append, ChangeSet, find_append
from icelite.conflicts import (
    Conflict,
    ConflictSolver,
    ConflictType,
    Edits,
    NodeEdit,
    Resized,
    VersionSelection,
    find_conflicts,
    find_misfits,
)
from icelite.errors import ConflictError, ErrorKind, RebaseFailedError
from icelite.metadata import array_info, dimension_sizes
from icelite.types import Node, NodeChange, View, chunk_name

SHOWN = 5  # conflicts that an error message lists


@dataclass(slots=True)
class RebasePlan:
    """What a rebase will do: on which snapshot it ends, which chunks of ours give way, which appends move."""

    view: View
    given_up: dict[int, set[str]] = field(default_factory=dict)
    appends: dict[int, Append] = field(default_factory=dict)

    def apply(self, txn: Transaction, changes: ChangeSet) -> None:
        """Carry it out."""
        for node_id, chunks in self.given_up.items():
            changes.chunks.give_up(txn, node_id, chunks)
        changes.rebase(self.view)
        for node_id, append in self.appends.items():
            changes.move_append(txn, node_id, append.axis, append.chunks, append.documents)


def plan_rebase(txn: Transaction, changes: ChangeSet, tip: int, solver: ConflictSolver) -> RebasePlan:
    """Compare uncommitted changes with every snapshot between theirs and ``tip``.

    Raises
    ------
    ConflictError, RebaseFailedError
        ``commit-conflict`` when the branch was reset to where it no longer holds the session's snapshot;
        ``rebase-failed`` with the conflicts that the solver left.
    """
    plan = RebasePlan(changes.view)
    for seq in _snapshots_since(txn, changes.view.seq, tip):
        before, plan.view = plan.view, snapshots.view_snapshot(txn, seq)
        theirs = edits_of_snapshot(txn, before, plan.view)
        ours = changes.edits(theirs.nodes)
        for node_id, chunks in plan.given_up.items():
            if node_id in ours.nodes:
                ours.nodes[node_id] = ours.nodes[node_id].without(chunks)
        if solver.on_append == VersionSelection.UseOurs:
            _resolve_appends(txn, changes, before, plan, ours)
        unsolved: list[Conflict] = []
        misfits = find_misfits(_resized_by_theirs(txn, theirs, before, plan.view), _resized_by_us(txn, changes, plan))
        for conflict in [*find_conflicts(theirs, ours), *misfits]:
            selection = solver.selects(conflict)
            if selection == VersionSelection.Fail:
                unsolved.append(conflict)
            elif selection == VersionSelection.UseTheirs and conflict.conflict_type == ConflictType.ChunkDoubleUpdate:
                node_id = next(i for i, edit in theirs.nodes.items() if "/" + edit.path == conflict.path)
                names = set(map(chunk_name, conflict.conflicted_chunks or ()))
                plan.given_up.setdefault(node_id, set()).update(names)
        if unsolved:
            raise _failed(snapshots.lookup_id(txn, seq), unsolved)
    return plan


def _resolve_appends(txn: Transaction, changes: ChangeSet, before: View, plan: RebasePlan, ours: Edits) -> None:
    """Take the appends that can follow theirs out of what is compared."""
    after = {node.node_id: node for _, _, node in changes.nodes.edits() if node is not None}
    for node_id, edit in list(ours.nodes.items()):
        states = [nodes.find_last_state(txn, view, node_id) for view in (before, plan.view)]
        if edit.change == NodeChange.updated and states[0] is not None and states[1] is not None:
            append = find_append(states[0], states[1], after[node_id], edit.chunks, plan.appends.get(node_id))
            if append is not None:
                plan.appends[node_id] = append
                del ours.nodes[node_id]


def _resized_by_theirs(txn: Transaction, theirs: Edits, before: View, after: View) -> list[Resized]:
    """The arrays whose metadata one of their snapshots wrote."""
    paths = [path for path, is_array in theirs.created.items() if is_array]
    paths += [edit.path for edit in theirs.nodes.values() if edit.is_array and edit.change == NodeChange.updated]
    return [_resized(path, *(nodes.find_node(txn, view, path) for view in (before, after))) for path in paths]


def _resized_by_us(txn: Transaction, changes: ChangeSet, plan: RebasePlan) -> Iterator[Resized]:
    """The arrays whose metadata the session wrote; an append that follows theirs as it will be then."""
    for path, base, node in changes.nodes.edits():
        if node is not None:
            append = plan.appends.get(node.node_id)
            if append is not None:
                base, node = nodes.find_node(txn, plan.view, path), replace(node, documents=append.documents)
            yield _resized(path, base, node)


def _resized(path: str, before: Node | None, after: Node | None) -> Resized:
    return Resized(path, *({} if node is None else dimension_sizes(node.documents) for node in (before, after)))


def _snapshots_since(txn: Transaction, base: int, tip: int) -> list[int]:
    """The numbers of the snapshots after ``base`` up to ``tip``, oldest first."""
    found: list[int] = []
    current: int | None = tip
    while current is not None and current > base:
        found.append(current)
        current = snapshots.find_parent(txn, current)
    if current != base:
        raise ConflictError(
            "the branch was reset: it no longer holds the snapshot this session began at, so its changes cannot be"
            " replayed; open a new session and write again",
            ErrorKind.COMMIT_CONFLICT,
        )
    if list_seqs_since(txn, snapshots.view_snapshot(txn, tip), base) - set(found):
        raise ConflictError(
            "snapshots committed since this session began have expired, so its changes cannot be compared with theirs"
            " and were not replayed; open a new session and write again",
            ErrorKind.COMMIT_CONFLICT,
        )
    return found[::-1]


def edits_of_snapshot(txn: Transaction, before: View, view: View) -> Edits:
    """What one snapshot did, for comparison with uncommitted changes."""
    edits = Edits()
    for change in list_changes(txn, view.seq):
        node = nodes.find_last_state(txn, view, change.node_id)
        if node is None:  # created and deleted again by an amend
            continue
        is_array = array_info(node.path, node.documents) is not None
        if change.node_change == NodeChange.moved:
            edits.moved = "/" + node.path
        elif change.node_change == NodeChange.created:
            edits.created[node.path] = is_array
        else:
            edits.nodes[change.node_id] = NodeEdit(node.path, is_array, change.node_change, frozenset(change.chunks))
    return edits


def _failed(snapshot_id: str, conflicts: list[Conflict]) -> RebaseFailedError:
    shown = "; ".join(map(_describe, conflicts[:SHOWN]))
    return RebaseFailedError(
        f"the changes conflict with snapshot {snapshot_id}, and were not rebased over it: {shown}"
        f" ({len(conflicts)} in all); discard them, or rebase with a solver that decides",
        ErrorKind.REBASE_FAILED,
        snapshot=snapshot_id,
        conflicts=conflicts,
    )


def _describe(conflict: Conflict) -> str:
    what = f"{conflict.conflict_type.name} at {conflict.path}"
    return what if conflict.detail is None else f"{what} ({conflict.detail})"
