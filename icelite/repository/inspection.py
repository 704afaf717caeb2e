"""A close look at a repository: the part of `Repository` that says as plain values what the catalog holds.

For people and their tools. The values are JSON-able; what stands in them may grow from release to release.
"""

from __future__ import annotations

from typing import Any

from icelite.catalog import nodes, operations, refs, snapshots
from icelite.catalog.changes import list_changes_since
from icelite.catalog.database import Catalog
from icelite.catalog.settings import find_setting, find_status, list_flags, load_config
from icelite.metadata import array_info
from icelite.repository.differences import find_differences
from icelite.repository.names import lookup_named
from icelite.types import Diff, Node, SnapshotInfo, SpecVersion

LATEST = 50  # operations that inspect_repo_info lists


class SnapshotInspection:
    """What `Repository` tells about its catalog."""

    _catalog: Catalog

    def inspect_snapshot(self, snapshot_id: str) -> dict[str, Any]:
        """A snapshot and its nodes as plain, JSON-able values; raises as `lookup_snapshot`."""
        with self._catalog.read() as txn:
            seq, _ = lookup_named(txn, snapshot_id)
            info = snapshots.lookup_info(txn, seq)[0]
            view = snapshots.view_snapshot(txn, seq)
            listed = nodes.list_nodes(self._catalog, view, "")
        lineage = [{"segment": seg, "up_to": bound} for seg, bound in sorted(view.bounds.items(), reverse=True)]
        header = _header("snapshot") | {"seq": view.seq, "segment": view.seg, "lineage": lineage}
        return {
            "header": header,
            **_plain_info(info),
            "nodes": [_plain_node(node) for node in sorted(listed, key=_path)],
        }

    def inspect_repo_info(self) -> dict[str, Any]:
        """Names, snapshots, settings and the latest changes as plain, JSON-able values."""
        with self._catalog.read() as txn:
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

    def inspect_transaction_log(self, snapshot_id: str) -> dict[str, Any]:
        """What a snapshot did to its parent as plain, JSON-able values; raises as `lookup_snapshot`.

        ``synthetic_composite`` says that snapshots between the two have expired, and what they did is included.
        """
        with self._catalog.read() as txn:
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
