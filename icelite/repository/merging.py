"""Merging one branch into another: a fast-forward where it can be one, else a three-way merge in one snapshot.

The three-way merge does again, on top of the other branch, what led from the common ancestor to the branch's tip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from icelite.catalog import nodes, refs, snapshots
from icelite.catalog.changes import list_changes_since
from icelite.catalog.chunks import find_chunk
from icelite.catalog.database import Catalog, Transaction
from icelite.change_set import ChangeSet
from icelite.conflicts import ConflictDetector, ConflictSolver
from icelite.errors import ErrorKind, SessionStateError
from icelite.repository.names import reset_branch
from icelite.session import OpenedSnapshot, Session
from icelite.types import Chunk, Node, NodeChange, SnapshotInfo, View

MERGED = "icelite_merged"  # key in the metadata of a merge snapshot


def merge_branches(
    catalog: Catalog,
    open_session: Callable[[str], Session],
    from_branch: str,
    into_branch: str,
    message: str | None,
    solver: ConflictSolver | None,
    metadata: dict[str, Any] | None,
) -> str:
    """See `Repository.merge`."""
    with catalog.read() as txn:
        ours, theirs = refs.lookup_branch(txn, from_branch), refs.lookup_branch(txn, into_branch)
        base_seq = _common_ancestor(txn, ours, theirs)
        infos = {seq: snapshots.lookup_info(txn, seq)[0] for seq in (ours, theirs, base_seq)}
        after, before = snapshots.view_snapshot(txn, ours), snapshots.view_snapshot(txn, base_seq)
        earlier = _find_merge(txn, theirs, base_seq, from_branch)
    if base_seq == ours or (earlier is not None and earlier.metadata[MERGED].get("snapshot_id") == infos[ours].id):
        return infos[theirs].id
    if base_seq == theirs:
        reset_branch(catalog, into_branch, infos[ours].id, infos[theirs].id)
        return infos[ours].id
    if earlier is not None:  # what the first merge brought would be replayed again
        raise SessionStateError(
            f"branch {from_branch!r} was merged into {into_branch!r} before, and has gone on from where it was;"
            f" reset it to the merge, {earlier.id}, before working on it",
            ErrorKind.MERGE_FAILED,
        )
    session = open_session(into_branch)
    session.stand_on(OpenedSnapshot(infos[base_seq].id, before))
    apply_replay(session.changes, plan_replay(catalog, before, after))
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


@dataclass(slots=True)
class Replay:
    """What to do: nodes to delete, documents to write, and each changed chunk with where it is now."""

    deleted: list[str] = field(default_factory=list)
    documents: dict[str, Mapping[str, str]] = field(default_factory=dict)
    chunks: dict[str, dict[str, Chunk | None]] = field(default_factory=dict)


def plan_replay(catalog: Catalog, before: View, after: View) -> Replay:
    """What led from one snapshot to a later one of the same line.

    Raises
    ------
    SessionStateError
        ``merge-failed`` when nodes were moved on the way.
    """
    replay = Replay()
    with catalog.read() as txn:
        chunks: dict[int, set[str]] = {}
        for _, change in list_changes_since(txn, after, before.seq):
            if change.node_change == NodeChange.moved:
                raise SessionStateError(
                    "nodes were moved on the branch, which cannot be merged; move them on the other branch instead",
                    ErrorKind.MERGE_FAILED,
                )
            chunks.setdefault(change.node_id, set()).update(change.chunks)
        for node_id in sorted(chunks):
            old, new = (_find_alive(txn, view, node_id) for view in (before, after))
            if old is not None and new is None:
                replay.deleted.append(old.path)
            elif new is not None:
                if old is None or dict(old.documents) != dict(new.documents):
                    replay.documents[new.path] = new.documents
                replay.chunks[new.path] = {c: find_chunk(catalog, after, node_id, c) for c in sorted(chunks[node_id])}
    return replay


def _find_alive(txn: Transaction, view: View, node_id: int) -> Node | None:
    """The node with an id if ``view`` still has it, else None."""
    last = nodes.find_last_state(txn, view, node_id)
    here = None if last is None else nodes.find_node(txn, view, last.path)
    return here if here is not None and here.node_id == node_id else None


def apply_replay(changes: ChangeSet, replay: Replay) -> None:
    """Do it, as uncommitted changes."""
    for path in reversed(replay.deleted):
        changes.nodes.delete(path)
    for path, documents in replay.documents.items():
        entry = changes.nodes.find(path)
        for name in [] if entry is None else sorted(entry.node.documents.keys() - documents.keys()):
            changes.nodes.delete_document(path, name)
        for name, text in documents.items():
            changes.nodes.set_document(path, name, text)
    for path, chunks in replay.chunks.items():
        if chunks:
            node_id = changes.nodes.lookup_array(path)[0].node.node_id
            changes.chunks.set_many(node_id, {name: chunk for name, chunk in chunks.items() if chunk is not None})
            changes.chunks.delete(node_id, [name for name, chunk in chunks.items() if chunk is None])
