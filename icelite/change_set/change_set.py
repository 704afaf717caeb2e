"""`ChangeSet`: one snapshot and what one session changed on top of it, seen as one hierarchy of nodes and chunks.

Nothing here is visible to anyone else until `write_to` copies it into the catalog inside one transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from icelite.catalog import staging
from icelite.catalog.changes import count_array_refs, count_replaced_refs, insert_change, record_usage
from icelite.catalog.database import Catalog, Transaction
from icelite.change_set.chunks import ChunkChanges
from icelite.change_set.native import Native
from icelite.change_set.nodes import NodeChanges
from icelite.conflicts import Edits, NodeEdit
from icelite.keys import ancestors
from icelite.metadata import array_info
from icelite.types import ChunkType, Diff, NodeChange, View


class ChangeSet(ChunkChanges, NodeChanges):
    """One snapshot plus uncommitted changes.

    Parameters
    ----------
    catalog
        Where the snapshot is; for a session that writes, a connection with a change set attached.
    view
        The snapshot.
    native
        Which chunks go into objects; by default none.

    Attributes
    ----------
    lock
        Held while the change set changes; whoever also opens a door of the catalog takes this lock first.
    """

    def __init__(self, catalog: Catalog, view: View, native: Native | None = None) -> None:
        NodeChanges.__init__(self, catalog, view)
        ChunkChanges.__init__(self, native or Native())

    _check_kept = NodeChanges._check_kept

    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self._nodes or self._pending or self._changed_nodes())

    def status(self) -> Diff:
        """The uncommitted changes."""
        diff = self._node_status()
        changed = self.changed_nodes()
        if changed:
            for node in self.list_nodes(""):
                if node.node_id in changed:
                    diff.updated_chunks["/" + node.path] = self._changed_chunks(node.node_id)
        return diff

    def discard(self) -> None:
        """Forget every uncommitted change."""
        with self.lock:
            self.writes += 1
            self._discard_chunks()
            self._discard_nodes()

    def edits(self, node_ids: Container[int]) -> Edits:
        """The uncommitted changes as `icelite.conflicts` compares them; chunks only of the arrays in ``node_ids``."""
        edits = Edits()
        for source, _ in self._moved().values():
            edits.moved = "/" + source
        for path, staged in self._nodes.items():
            entry, base = staged.entry, staged.base
            if base is not None and (entry is None or entry.node.node_id != base.node_id):
                is_array = array_info(path, base.documents) is not None
                edits.nodes[base.node_id] = NodeEdit(path, is_array, NodeChange.deleted)
            if entry is not None and entry.node.node_id < 0:
                edits.created[path] = entry.info is not None
            elif entry is not None:
                edits.nodes[entry.node.node_id] = NodeEdit(path, entry.info is not None, NodeChange.updated)
        for node_id in self.changed_nodes():
            if node_id in node_ids:
                known = edits.nodes.get(node_id) or NodeEdit("", True)  # the other side knows its path
                edits.nodes[node_id] = replace(known, chunks=frozenset(self.changed_names(node_id)))
        return edits

    def checkpoint(self) -> Callable[[], None]:
        """How to return to the state as it is now, after a transaction that was rolled back."""
        view, nodes, pending, pending_bytes = self.view, dict(self._nodes), dict(self._pending), self._pending_bytes
        with_refs = set(self._with_refs)

        def restore() -> None:
            if self.view != view:
                self._forget_base()
            self.view, self._nodes, self._pending, self._pending_bytes = view, nodes, pending, pending_bytes
            self._with_refs = with_refs

        return restore

    def rebase(self, view: View) -> None:
        """Put the uncommitted changes on top of another snapshot; whoever calls has looked for conflicts."""
        with self.lock:
            self.view = view
            self._rebase_nodes()

    def move_append(self, txn: Transaction, node_id: int, axis: int, by: int, documents: Mapping[str, str]) -> None:
        """Put what was appended to an array behind what others appended: ``by`` chunks further along ``axis``."""
        self.shift_changes(txn, node_id, axis, by)
        path = next(path for path, _, node in self.node_edits() if node is not None and node.node_id == node_id)
        for name, text in documents.items():
            self.set_document(path, name, text)

    def dump(self) -> dict[str, Any]:
        """The uncommitted changes as values that pickle; bytes that wait in memory go to the catalog first."""
        with self.lock:
            self.flush_payloads()
            with self.catalog.read() as txn:
                refs = {node_id: staging.list_refs(txn, node_id) for node_id in staging.list_changed_nodes(txn)}
            return {"nodes": self._nodes, "last_id": self._last_id, "locations": self._locations, "refs": refs}

    def load(self, state: dict[str, Any]) -> None:
        """Continue with the changes that `dump` gave."""
        self._nodes, self._last_id = state["nodes"], state["last_id"]
        self._above = {above for path in self._nodes for above, _ in ancestors(path)}
        for location in state["locations"]:
            self.intern(location)
        with self.catalog.stage() as txn:
            for node_id, rows in state["refs"].items():
                chunks, location_ids, offsets, lengths = zip(*rows, strict=True)
                self.set_refs(node_id, chunks, location_ids, offsets, lengths, txn)
        self.writes = 0

    def write_to(self, txn: Transaction, view: View) -> None:
        """Copy everything into the catalog as changes of the new snapshot ``view``.

        Whoever calls holds `lock`, commits ``txn`` and then throws this change set away.
        """
        with_refs, location_ids = self._write_refs(txn)
        ids = self._insert_nodes(txn, view)
        changes = self._node_changes()
        counts = np.zeros(len(location_ids), np.int64)
        removed = self._count_removed(txn, with_refs, changes)
        for node_id in sorted(with_refs):
            staging.copy_refs(txn, node_id, ids.get(node_id, node_id), view)
            change = changes.pop(node_id, NodeChange.none)
            packed, rows = staging.pack_chunks(txn, node_id)
            tally = self._tally(txn, node_id, rows)
            tally.count_into(counts)
            insert_change(txn, view, ids.get(node_id, node_id), change, packed, tally.refs_sum(location_ids))
        for node_id, change in changes.items():
            insert_change(txn, view, ids.get(node_id, node_id), change, None, 0)
        record_usage(txn, view, self._count_added(location_ids.tolist(), counts.tolist()), removed)

    def _count_added(self, location_ids: list[int], counts: list[int]) -> dict[int, int]:
        """How many of the staged references lead to each file, by location id."""
        columns = zip(self._locations, location_ids[2:], counts[2:], strict=True)
        return {number: count for location, number, count in columns if count and location.kind == ChunkType.virtual}

    def _count_removed(
        self, txn: Transaction, with_refs: Iterable[int], changes: Mapping[int, NodeChange]
    ) -> Counter[int]:
        """How many references of the snapshot to each file go, by location id."""
        removed: Counter[int] = Counter()
        for node_id in with_refs:
            if node_id > 0:
                removed.update(count_replaced_refs(txn, self.view, node_id))
        for node_id, change in changes.items():
            if change == NodeChange.deleted:
                removed.update(count_array_refs(txn, self.view, node_id))
        return removed
