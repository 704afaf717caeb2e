"""`ChangeSet`: one snapshot and what one session changed on top of it, seen as one hierarchy of nodes and chunks.

Nothing here is visible to anyone else until `write_to` copies it into the catalog inside one transaction.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from icelite.catalog import staging
from icelite.catalog.changes import count_array_refs, count_replaced_refs, insert_change, record_usage
from icelite.catalog.database import Catalog, Transaction
from icelite.change_set.base import BaseSnapshot
from icelite.change_set.chunks import ChunkChanges
from icelite.change_set.nodes import NodeChanges
from icelite.change_set.writer import ObjectWriter
from icelite.conflicts import Edits, NodeEdit
from icelite.types import ChunkType, Diff, NodeChange, View, chunk_position


class ChangeSet:
    """One snapshot plus uncommitted changes.

    Parameters
    ----------
    catalog
        Where the snapshot is; for a session that writes, a connection with a change set attached.
    view
        The snapshot.
    writer
        Which chunks go into objects; by default none.

    Attributes
    ----------
    base, nodes, chunks
        The snapshot, and the nodes and chunks as they are with the changes.
    """

    def __init__(self, catalog: Catalog, view: View, writer: ObjectWriter | None = None) -> None:
        self.writer = writer or ObjectWriter()
        self.base = BaseSnapshot(catalog, view)
        self.chunks = ChunkChanges(self.base, self.writer)
        self.nodes = NodeChanges(self.base, self.chunks)

    @property
    def catalog(self) -> Catalog:
        """The catalog of the snapshot."""
        return self.base.catalog

    @property
    def view(self) -> View:
        """The snapshot as queries see it."""
        return self.base.view

    @property
    def lock(self) -> threading.RLock:
        """See `BaseSnapshot.lock`."""
        return self.base.lock

    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return self.nodes.is_empty() and self.chunks.is_empty()

    def status(self) -> Diff:
        """The uncommitted changes."""
        diff = self.nodes.status()
        changed = self.chunks.changed_arrays()
        if changed:
            for node in self.nodes.list_below(""):
                if node.node_id in changed:
                    names = self.chunks.changed_names(node.node_id)
                    diff.updated_chunks["/" + node.path] = sorted(map(chunk_position, names))
        return diff

    def discard(self) -> None:
        """Forget every uncommitted change."""
        with self.lock:
            self.base.writes += 1
            self.chunks.discard()
            self.nodes.discard()

    def edits(self, node_ids: Container[int]) -> Edits:
        """The uncommitted changes as `icelite.conflicts` compares them; chunks only of the arrays in ``node_ids``."""
        edits = self.nodes.compared()
        for node_id in self.chunks.changed_arrays():
            if node_id in node_ids:
                known = edits.nodes.get(node_id) or NodeEdit("", True)  # the other side knows its path
                edits.nodes[node_id] = replace(known, chunks=frozenset(self.chunks.changed_names(node_id)))
        return edits

    def checkpoint(self) -> Callable[[], None]:
        """How to return to the state as it is now, after a transaction that was rolled back."""
        view, restore_nodes, restore_chunks = self.view, self.nodes.checkpoint(), self.chunks.checkpoint()

        def restore() -> None:
            restore_nodes()
            restore_chunks()
            if self.view != view:
                self.base.stand_on(view)

        return restore

    def rebase(self, view: View) -> None:
        """Put the uncommitted changes on top of another snapshot; whoever calls has looked for conflicts."""
        with self.lock:
            self.base.stand_on(view)
            self.nodes.rebase()

    def move_append(self, txn: Transaction, node_id: int, axis: int, by: int, documents: Mapping[str, str]) -> None:
        """Put what was appended to an array behind what others appended: ``by`` chunks further along ``axis``."""
        self.chunks.shift(txn, node_id, axis, by)
        path = next(path for path, _, node in self.nodes.edits() if node is not None and node.node_id == node_id)
        for name, text in documents.items():
            self.nodes.set_document(path, name, text)

    def dump(self) -> dict[str, Any]:
        """The uncommitted changes as values that pickle; bytes that wait in memory go to the catalog first."""
        with self.lock:
            return {**self.chunks.dump(), **self.nodes.dump()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue with the changes that `dump` gave."""
        self.nodes.load(state)
        self.chunks.load(state)
        self.base.writes = 0

    def write_to(self, txn: Transaction, view: View) -> None:
        """Copy everything into the catalog as changes of the new snapshot ``view``.

        Whoever calls holds `lock`, commits ``txn`` and then throws this change set away.
        """
        with_refs, location_ids = self.chunks.stage_all(txn)
        ids = self.nodes.insert_into(txn, view)
        changes = self.nodes.kinds()
        counts = np.zeros(len(location_ids), np.int64)
        removed = self._count_removed(txn, with_refs, changes)
        for node_id in sorted(with_refs):
            staging.copy_refs(txn, node_id, ids.get(node_id, node_id), view)
            change = changes.pop(node_id, NodeChange.none)
            packed, rows = staging.pack_chunks(txn, node_id)
            tally = self.chunks.tally(txn, node_id, rows)
            tally.count_into(counts)
            insert_change(txn, view, ids.get(node_id, node_id), change, packed, tally.refs_sum(location_ids))
        for node_id, change in changes.items():
            insert_change(txn, view, ids.get(node_id, node_id), change, None, 0)
        record_usage(txn, view, self._count_added(location_ids.tolist(), counts.tolist()), removed)

    def _count_added(self, location_ids: list[int], counts: list[int]) -> dict[int, int]:
        """How many of the staged references lead to each file, by location id."""
        columns = zip(self.chunks.locations, location_ids[2:], counts[2:], strict=True)
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
