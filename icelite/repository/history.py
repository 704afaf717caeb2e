"""The history of a repository: who came from whom, what changed, and snapshots as plain values.

Differences come from the `change` table, which keeps a row for each node that a snapshot touched, also after the
snapshot itself has expired; so the cost follows the changes and not the size of the hierarchy. Long answers are read in
pages, each a transaction of its own. Nothing here writes; raises as the method of `Repository` that has its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from icelite.catalog import nodes, operations, refs, snapshots
from icelite.catalog.changes import list_changes_since
from icelite.catalog.database import Catalog, Transaction
from icelite.catalog.settings import find_setting, find_status, list_flags, load_config
from icelite.errors import ErrorKind, InvalidInputError
from icelite.metadata import array_info
from icelite.repository.names import lookup_named
from icelite.types import Diff, Node, NodeChange, SnapshotInfo, SpecVersion, View, chunk_position

if TYPE_CHECKING:
    from icelite.types import Update

AT_ONCE = 200  # snapshots or operations in one transaction
LATEST = 50  # operations that `inspect_repo_info` lists


def list_ancestors(catalog: Catalog, seq: int | None) -> Iterator[SnapshotInfo]:
    """The snapshots from one, given by its number, back to the first."""
    while seq is not None:
        with catalog.read() as txn:
            infos, seq = snapshots.list_ancestors(txn, seq, AT_ONCE)
        yield from infos


def list_updates(catalog: Catalog) -> Iterator[Update]:
    """Everything that was ever done to the repository, newest first."""
    before = operations.END
    while True:
        with catalog.read() as txn:
            updates, before = operations.list_operations(txn, before, AT_ONCE)
        if not updates:
            return
        yield from updates


# -- what changed -------------------------------------------------------------------------------------------------


def diff_snapshots(txn: Transaction, start: int | None, to: int) -> Diff:
    """What leads from one snapshot to another, both given by their numbers; from its parent by default."""
    info, parent = snapshots.lookup_info(txn, to)
    if start is None:
        start = to if parent is None else parent
    before, after = snapshots.view_snapshot(txn, start), snapshots.view_snapshot(txn, to)
    _check_behind(before, after, (snapshots.lookup_info(txn, start)[0], info))
    return find_differences(txn, before, after)


@dataclass(slots=True)
class _Touched:
    """All that several snapshots did to one node."""

    updated: bool = False
    chunks: set[str] = field(default_factory=set)


def _check_behind(before: View, after: View, names: tuple[SnapshotInfo, SnapshotInfo]) -> None:
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


# -- as plain values, JSON-able; what stands in them may grow from release to release -----------------------------


def inspect_snapshot(catalog: Catalog, snapshot_id: str) -> dict[str, Any]:
    """A snapshot and its nodes."""
    with catalog.read() as txn:
        seq, _ = lookup_named(txn, snapshot_id)
        info = snapshots.lookup_info(txn, seq)[0]
        view = snapshots.view_snapshot(txn, seq)
        listed = nodes.list_nodes(catalog, view, "")
    lineage = [{"segment": seg, "up_to": bound} for seg, bound in sorted(view.bounds.items(), reverse=True)]
    header = _header("snapshot") | {"seq": view.seq, "segment": view.seg, "lineage": lineage}
    return {
        "header": header,
        **_plain_info(info),
        "nodes": [_plain_node(node) for node in sorted(listed, key=_path)],
    }


def inspect_repo_info(catalog: Catalog) -> dict[str, Any]:
    """Names, snapshots, settings and the latest changes."""
    with catalog.read() as txn:
        branches = {name: refs.lookup_branch(txn, name) for name in refs.list_branches(txn)}
        tags = {name: refs.lookup_tag(txn, name) for name in refs.list_tags(txn)}
        config = load_config(txn)
        return {
            "header": _header("repository"),
            "spec_version": int(SpecVersion.current()),
            "branches": {name: snapshots.lookup_id(txn, seq) for name, seq in branches.items()},
            "tags": {name: snapshots.lookup_id(txn, seq) for name, seq in tags.items()},
            "deleted_tags": refs.list_deleted_tags(txn),
            "snapshots": [_plain_info(info) for info in snapshots.list_infos(txn)],
            "metadata": find_setting(txn, "metadata") or {},
            "status": find_status(txn).to_dict(),
            "feature_flags": {flag.name: flag.setting for flag in list_flags(txn)},
            "config": config.to_dict(),
            "virtual_chunk_containers": sorted(config.virtual_chunk_containers or {}),
            "latest_updates": [
                {"kind": repr(update.kind), "updated_at": update.updated_at.isoformat()}
                for update in operations.list_operations(txn, operations.END, LATEST)[0]
            ],
        }


def inspect_transaction_log(catalog: Catalog, snapshot_id: str) -> dict[str, Any]:
    """What a snapshot did to its parent."""
    with catalog.read() as txn:
        seq, _ = lookup_named(txn, snapshot_id)
        info, parent = snapshots.lookup_info(txn, seq)
        after = snapshots.view_snapshot(txn, seq)
        written_by = set()
        diff = Diff()
        if parent is not None:
            written_by = {number for number, _ in list_changes_since(txn, after, parent)}
            diff = find_differences(txn, snapshots.view_snapshot(txn, parent), after)
    sets = ("new_groups", "new_arrays", "deleted_groups", "deleted_arrays", "updated_groups", "updated_arrays")
    return {
        "header": _header("transaction-log"),
        "id": info.id,
        "parent_id": info.parent_id,
        **{name: sorted(getattr(diff, name)) for name in sets},
        "updated_chunks": [{"path": path, "chunks": chunks} for path, chunks in diff.updated_chunks.items()],
        "moved_nodes": [{"from": old, "to": new} for old, new in diff.moved_nodes],
        "synthetic_composite": bool(written_by - {seq}),
    }


def _header(what: str) -> dict[str, Any]:
    return {"format": "icelite", "spec_version": int(SpecVersion.current()), "type": what}


def _plain_info(info: SnapshotInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "parent_id": info.parent_id,
        "written_at": info.written_at.isoformat(),
        "message": info.message,
        "metadata": info.metadata,
    }


def _path(node: Node) -> str:
    return node.path


def _plain_node(node: Node) -> dict[str, Any]:
    info = array_info(node.path, node.documents)
    plain: dict[str, Any] = {"id": str(node.node_id), "path": "/" + node.path, "zarr_format": node.zarr_format}
    if info is None:
        return plain | {"node_type": "group"}
    return plain | {
        "node_type": "array",
        "shape": list(info.shape),
        "chunk_grid": None if info.grid is None else list(info.grid),
    }
