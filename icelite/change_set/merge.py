"""Taking over the changes of a fork: a change set that began from the same state and was written elsewhere.

Metadata is merged by three: what the fork began with, what it made of it, and what is here now. Chunks are not
compared: the fork merged last wins. Everything is checked before anything is changed.
"""

from __future__ import annotations

from collections.abc import Mapping

from icelite.catalog import staging
from icelite.catalog.locations import INLINE
from icelite.change_set.change_set import ChangeSet
from icelite.errors import ErrorKind, SessionStateError
from icelite.types import Node

Documents = Mapping[str, str]


def absorb(ours: ChangeSet, fork: ChangeSet) -> None:
    """Add a fork's changes to ours.

    Raises
    ------
    SessionStateError
        ``merge-failed`` when both changed the metadata of one node differently, or one deleted what the other
        changed; nothing was taken over.
    """
    with ours.lock, fork.lock:
        fork.flush_payloads()
        wanted = _wanted_nodes(ours, fork)
        paths = {node.node_id: node.path for node in fork.list_nodes("")}
        changed = {paths[node_id]: node_id for node_id in fork.changed_nodes() if node_id in paths}
        for path in changed:
            if wanted.get(path, _documents(_node(ours, path))) is None:
                raise _failed(path, "the fork wrote chunks of an array that is deleted here")
        _take_nodes(ours, wanted)
        for path, node_id in changed.items():
            _take_refs(ours, fork, path, node_id)


def _wanted_nodes(ours: ChangeSet, fork: ChangeSet) -> dict[str, Documents | None]:
    """The nodes that have to change here: path to their documents, None for a deletion."""
    wanted: dict[str, Documents | None] = {}
    for path, before, after in fork.node_edits():
        here = _node(ours, path)
        if _documents(after) == _documents(here):
            continue
        if _documents(before) != _documents(here):
            raise _failed(path, "both sides changed its metadata, differently")
        if after is None and here is not None and here.node_id in ours.changed_nodes():
            raise _failed(path, "the fork deleted an array whose chunks were changed here")
        wanted[path] = _documents(after)
    return wanted


def _take_nodes(ours: ChangeSet, wanted: Mapping[str, Documents | None]) -> None:
    for path, documents in wanted.items():
        if documents is None:
            ours.delete_node(path)
    for path, documents in wanted.items():
        for name, text in (documents or {}).items():
            ours.set_document(path, name, text)


def _take_refs(ours: ChangeSet, fork: ChangeSet, path: str, fork_id: int) -> None:
    entry, _ = ours.lookup_array(path)
    with fork.catalog.read() as txn:
        rows = staging.list_refs(txn, fork_id)
    locations = fork.locations()
    ids = {INLINE: INLINE}
    for _, location_id, _, _ in rows:
        if location_id is not None and location_id not in ids:
            ids[location_id] = ours.intern(locations[location_id - 2])
    kept = [(chunk, ids[i], offset, length) for chunk, i, offset, length in rows if i is not None]
    if kept:
        chunks, location_ids, offsets, lengths = zip(*kept, strict=True)
        with ours.catalog.stage() as txn:
            ours.set_refs(entry.node.node_id, chunks, location_ids, offsets, lengths, txn)
    ours.delete_chunks(entry.node.node_id, [row[0] for row in rows if row[1] is None])


def _node(changes: ChangeSet, path: str) -> Node | None:
    entry = changes.find(path)
    return None if entry is None else entry.node


def _documents(node: Node | None) -> Documents | None:
    return None if node is None else node.documents


def _failed(path: str, why: str) -> SessionStateError:
    return SessionStateError(
        f"the fork cannot be merged: /{path}: {why}; nothing was taken over from it", ErrorKind.MERGE_FAILED
    )
