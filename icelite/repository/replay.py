"""Doing again, on top of one snapshot, what led from there to another: how branches are merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from icelite.catalog import nodes
from icelite.catalog.changes import list_changes_since
from icelite.catalog.chunks import find_chunk
from icelite.catalog.database import Catalog, Transaction
from icelite.change_set import ChangeSet
from icelite.errors import ErrorKind, SessionStateError
from icelite.types import Chunk, Node, NodeChange, View


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
    for path, refs in replay.chunks.items():
        if refs:
            node_id = changes.nodes.lookup_array(path)[0].node.node_id
            changes.chunks.set_many(node_id, {name: chunk for name, chunk in refs.items() if chunk is not None})
            changes.chunks.delete(node_id, [name for name, chunk in refs.items() if chunk is None])
