"""What changed between two snapshots, one of which is behind the other.

It comes from the `change` table, which keeps a row for each node that a snapshot touched, also after the snapshot
itself has expired; so the cost follows the changes and not the size of the hierarchy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from icelite.catalog import nodes
from icelite.catalog.changes import list_changes_since
from icelite.catalog.database import Transaction
from icelite.errors import ErrorKind, InvalidInputError
from icelite.metadata import array_info
from icelite.types import Diff, Node, NodeChange, SnapshotInfo, View, chunk_position


@dataclass(slots=True)
class _Touched:
    """All that several snapshots did to one node."""

    updated: bool = False
    chunks: set[str] = field(default_factory=set)


def check_behind(before: View, after: View, names: tuple[SnapshotInfo, SnapshotInfo]) -> None:
    """Refuse two snapshots of which the first is not the second, nor an ancestor of it.

    Raises
    ------
    InvalidInputError
        ``bad-snapshot-chain-for-diff``.
    """
    if before.seq > after.bounds.get(before.seg, -1):
        older, newer = (info.id for info in names)
        is_reversed = after.seq <= before.bounds.get(after.seg, -1)
        hint = "swap the two" if is_reversed else "compare each with the last snapshot that both have"
        raise InvalidInputError(
            f"snapshot {older} is not in the history of {newer}, so nothing leads from it to there; {hint}",
            ErrorKind.BAD_SNAPSHOT_CHAIN_FOR_DIFF,
        )


def find_differences(txn: Transaction, before: View, after: View) -> Diff:
    """What leads from one snapshot to a later one.

    A node that was deleted and created again is in both sets; one that was created and deleted again in neither.
    Something written counts as changed, also if it is again what it was.
    """
    touched: dict[int, _Touched] = {}
    for _, change in list_changes_since(txn, after, before.seq):
        known = touched.setdefault(change.node_id, _Touched())
        known.updated |= change.node_change == NodeChange.updated
        known.chunks.update(change.chunks)
    diff = Diff()
    for node_id, known in sorted(touched.items()):
        old, new = (nodes.find_node_by_id(txn, view, node_id) for view in (before, after))
        _describe(diff, old, new, known)
    diff.moved_nodes.sort()
    return diff


def _describe(diff: Diff, old: Node | None, new: Node | None, touched: _Touched) -> None:
    if old is not None and new is None:
        (diff.deleted_arrays if _is_array(old) else diff.deleted_groups).add("/" + old.path)
    if new is None:
        return
    path, is_array = "/" + new.path, _is_array(new)
    if old is None:
        (diff.new_arrays if is_array else diff.new_groups).add(path)
    else:
        if old.path != new.path:
            diff.moved_nodes.append(("/" + old.path, path))
        if touched.updated or old.documents != new.documents:  # an amend notes only one change of a node
            (diff.updated_arrays if is_array else diff.updated_groups).add(path)
    if touched.chunks:
        diff.updated_chunks[path] = sorted(map(chunk_position, touched.chunks))


def _is_array(node: Node) -> bool:
    return array_info(node.path, node.documents) is not None
