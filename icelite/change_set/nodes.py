"""Groups and arrays of a change set: what the snapshot has, overlaid with what the session wrote or deleted.

A new node has a negative id (-1 is the first) until the commit gives it one that lasts.
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

from icelite.catalog import nodes as node_table
from icelite.catalog import snapshots
from icelite.catalog.database import Catalog, Transaction
from icelite.errors import (
    AlreadyExistsError,
    ErrorKind,
    InvalidInputError,
    NodeNotFoundError,
    SnapshotNotFoundError,
    StorageError,
)
from icelite.expansion import Expansion, find_expansion
from icelite.keys import DOCUMENTS, ancestors, join
from icelite.metadata import ArrayInfo, array_info, check_document, same_document
from icelite.types import Diff, Node, NodeChange, View

KNOWN_NODES = 100_000  # answers of the base snapshot kept in memory; they cannot change


class Entry:
    """A node with the part of its metadata that decides about chunks; read when it is first asked for."""

    __slots__ = ("_expansion", "_info", "node")

    def __init__(self, node: Node, *info: ArrayInfo | None) -> None:
        self.node = node
        if info:
            self._info: ArrayInfo | None = info[0]

    @property
    def info(self) -> ArrayInfo | None:
        """What decides about its chunks; None for a group."""
        try:
            return self._info
        except AttributeError:
            self._info = array_info(self.node.path, self.node.documents)
            return self._info

    @property
    def expansion(self) -> Expansion | None:
        """What its chunks may unpack to; None where nothing is compressed."""
        try:
            return self._expansion
        except AttributeError:
            self._expansion: Expansion | None = find_expansion(self.node.documents)
            return self._expansion


@dataclass(frozen=True, slots=True)
class _Staged:
    entry: Entry | None  # None: deleted
    base: Node | None  # what the snapshot has at this path


_alive: weakref.WeakSet[NodeChanges] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a child of os.fork(): other threads of the parent may have held them, and are not here to let go."""
    for changes in _alive:
        changes.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class NodeChanges(ABC):
    """The nodes of one snapshot plus uncommitted changes."""

    writes: int

    def __init__(self, catalog: Catalog, view: View) -> None:
        self.catalog = catalog
        self.view = view
        self.lock = threading.RLock()
        _alive.add(self)
        self._forget_base()
        self._seen_version = -1
        self._known_id = -1, ""  # the number of the snapshot when it was last looked for, and its id
        self._nodes: dict[str, _Staged] = {}
        self._above: set[str] = set()  # every path above a staged node, and perhaps above one that went again
        self._last_id = 0
        self.recent: tuple[str, Entry, ArrayInfo] | None = None  # what a chunk key last began with, and its array

    @abstractmethod
    def _forget_chunks(self, node_id: int) -> None:
        """Forget the uncommitted chunks of an array that is deleted."""

    def _forget_base(self) -> None:
        self._base: dict[str, Entry | None] = {}
        self._listed: dict[str, Node] = {}  # what the last listing found, and nobody has asked for yet

    def _discard_nodes(self) -> None:
        self._nodes = {}
        self._last_id = 0

    def find(self, path: str) -> Entry | None:
        """The group or array at a path, or None."""
        staged = self._nodes.get(path)
        return self._find_base(path) if staged is None else staged.entry

    def lookup_array(self, path: str) -> tuple[Entry, ArrayInfo]:
        """The array at a path.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            ``node-not-found``; ``not-an-array``.
        """
        entry = self.find(path)
        if entry is None:
            raise NodeNotFoundError(f"no array at /{path}; create it before its chunks", ErrorKind.NODE_NOT_FOUND)
        if entry.info is None:
            raise InvalidInputError(f"/{path} is a group, not an array", ErrorKind.NOT_AN_ARRAY)
        return entry, entry.info

    def _check_kept(self) -> None:
        """Refuse what was just read, if the snapshot was released meanwhile: its rows may have been collected."""
        version = self.catalog.version
        if version == self._seen_version:
            return
        with self.catalog.read() as txn:
            found = snapshots.find_id(txn, self.view.seq)
        if found is None:
            raise SnapshotNotFoundError(
                "the snapshot that this session reads has expired since it was opened; open another session",
                ErrorKind.SNAPSHOT_NOT_FOUND,
            )
        seq, known = self._known_id
        if seq == self.view.seq and known != found:
            raise StorageError(
                f"{self.catalog.storage.name} was overwritten with another history while it was open: snapshot {known}"
                " is not in it; open it again",
                ErrorKind.CATALOG_REPLACED,
            )
        self._known_id = self.view.seq, found
        self._seen_version = version

    def _find_base(self, path: str) -> Entry | None:
        try:
            return self._base[path]
        except KeyError:
            node = self._listed.pop(path, None) or node_table.find_node(self.catalog, self.view, path)
            self._check_kept()
        if len(self._base) >= KNOWN_NODES:
            self._base.clear()
        entry = self._base[path] = None if node is None else Entry(node)
        return entry

    def list_nodes(self, path: str) -> list[Node]:
        """The nodes at and below a path, in order of creation."""
        below = join(path, "")
        stored = node_table.list_nodes(self.catalog, self.view, path)
        self._check_kept()
        self._listed = {
            node.path: node for node in stored[:KNOWN_NODES]
        }  # whoever lists is likely to ask for them next
        nodes = [node for node in stored if node.path not in self._nodes]
        staged = [
            s.entry.node
            for p, s in (list(self._nodes.items()) if path in self._nodes or path in self._above else ())
            if s.entry is not None and (p == path or p.startswith(below))
        ]
        old = [node for node in staged if node.node_id > 0]
        new = [node for node in staged if node.node_id < 0]  # -1 is older than -2
        return sorted([*nodes, *old], key=_node_id) + sorted(new, key=_node_id, reverse=True)

    def set_document(self, path: str, name: str, text: str) -> None:
        """Write one metadata document; equal JSON over what is there is no change.

        Raises
        ------
        InvalidInputError, AlreadyExistsError
            ``bad-metadata``; ``node-already-exists`` where it would turn one kind of node into another.
        """
        info = check_document(path, name, text)
        with self.lock:
            entry = self.find(path)
            if entry is None or entry.info is None:
                self._check_place(path, info)
            if entry is None:
                self._put_new(Node(path, 0, DOCUMENTS[name], {name: text}), info)
                return
            node = self._with_document(entry.node, name, text)
            if node is not entry.node:
                self._replace_node(entry, node)

    def _put_new(self, node: Node, *info: ArrayInfo | None) -> None:
        self._last_id -= 1
        self._put_node(replace(node, node_id=self._last_id), *info)

    def _replace_node(self, entry: Entry, node: Node) -> None:
        """Put other documents in a node's place; chunks that they do not name as before are gone."""
        info = array_info(node.path, node.documents)
        if entry.info is None or (info is not None and info.keys.same_names(entry.info.keys)):
            self._put_node(node)
        else:
            self._drop_node(entry.node)
            self._put_new(node)

    def _check_place(self, path: str, info: ArrayInfo | None) -> None:
        """Refuse a node inside an array, and an array around nodes: their keys could not be told apart."""
        for above, _ in ancestors(path) if path else ():
            entry = self.find(above)
            if entry is not None and entry.info is not None:
                raise InvalidInputError(
                    f"/{path} is inside the array /{above}; an array has no nodes below it", ErrorKind.INVALID_PATH
                )
        below = [] if info is None else self.list_nodes(path)
        if inside := [node.path for node in below if node.path != path]:
            raise AlreadyExistsError(
                f"array /{path} cannot be created around existing nodes such as /{inside[0]}; delete them first",
                ErrorKind.NODE_ALREADY_EXISTS,
            )

    def _with_document(self, node: Node, name: str, text: str) -> Node:
        if node.zarr_format != DOCUMENTS[name]:
            raise _taken(node.path, f"Zarr v{node.zarr_format} metadata", name)
        if name in node.documents and same_document(node.documents[name], text):
            return node
        changed = replace(node, documents={**node.documents, name: text})
        before, after = (array_info(n.path, n.documents) for n in (node, changed))
        was_typed = before is not None or "zarr.json" in node.documents or ".zgroup" in node.documents
        if ".zgroup" in changed.documents and ".zarray" in changed.documents:
            raise _taken(node.path, "the other kind of Zarr v2 node", name)
        if was_typed and (before is None) != (after is None):
            raise _taken(node.path, "a group" if before is None else "an array", name)
        return changed

    def _put_node(self, node: Node, *info: ArrayInfo | None) -> None:
        self.writes += 1
        staged = self._nodes.get(node.path)
        if staged is None:
            found = self._find_base(node.path)
            base = None if found is None else found.node
        else:
            base = staged.base
        if base == node:  # changed back
            self._nodes.pop(node.path, None)
        else:
            self._nodes[node.path] = _Staged(Entry(node, *info), base)
            self._above.update(above for above, _ in ancestors(node.path))

    def delete_document(self, path: str, name: str) -> None:
        """Delete one metadata document; a node without any is gone, and chunks go with what makes it an array."""
        with self.lock:
            entry = self.find(path)
            if entry is None or name not in entry.node.documents:
                return
            documents = {key: text for key, text in entry.node.documents.items() if key != name}
            if documents:
                self._replace_node(entry, replace(entry.node, documents=documents))
            else:
                self._drop_node(entry.node)

    def delete_node(self, path: str) -> None:
        """Delete the node at a path, with its chunks; those below it stay."""
        with self.lock:
            entry = self.find(path)
            if entry is not None:
                self._drop_node(entry.node)

    def node_edits(self) -> Iterator[tuple[str, Node | None, Node | None]]:
        """Path, node in the snapshot and node now of everything changed, in order of creation."""
        for path, staged in sorted(self._nodes.items(), key=_creation_order):
            yield path, staged.base, None if staged.entry is None else staged.entry.node

    def delete_nodes(self, path: str) -> None:
        """Delete the nodes at and below a path, with their chunks."""
        with self.lock:
            for node in self.list_nodes(path):
                self._drop_node(node)

    def _drop_node(self, node: Node) -> None:
        self.writes += 1
        self._forget_chunks(node.node_id)
        staged = self._nodes.get(node.path)
        base = node if staged is None else staged.base
        if base is None:
            del self._nodes[node.path]
        else:
            self._nodes[node.path] = _Staged(None, base)

    def _rebase_nodes(self) -> None:
        """Compare what the session wrote with what the new snapshot has; delete what appeared in deleted groups."""
        self._forget_base()
        self._seen_version = -1
        self._known_id = -1, ""  # the number of the snapshot when it was last looked for, and its id
        for path, staged in list(self._nodes.items()):
            base = self._find_base(path)
            if staged.entry is None and base is None:
                del self._nodes[path]
            else:
                self._nodes[path] = _Staged(staged.entry, None if base is None else base.node)
        for path in [path for path, staged in self._nodes.items() if staged.entry is None]:
            for node in self.list_nodes(path):
                if node.path not in self._nodes:
                    self._drop_node(node)

    def move_nodes(self, source: str, target: str) -> None:
        """Give the node at ``source``, with everything below it, the path ``target``; ids and chunks stay."""
        with self.lock:
            nodes = self.list_nodes(source)
            for node in nodes:
                staged = self._nodes.pop(node.path, None)
                base = node if staged is None else staged.base
                if base is not None:
                    self._nodes[node.path] = _Staged(None, base)
            for node in nodes:
                self._put_node(replace(node, path=target + node.path[len(source) :]))

    def _moved(self) -> dict[int, tuple[str, str]]:
        """Ids of the moved nodes with the path they had and the one they have."""
        before = {staged.base.node_id: path for path, staged in self._nodes.items() if staged.base is not None}
        return {
            staged.entry.node.node_id: (before[staged.entry.node.node_id], path)
            for path, staged in self._nodes.items()
            if staged.entry is not None and before.get(staged.entry.node.node_id, path) != path
        }

    def _node_status(self) -> Diff:
        diff = Diff()
        moved = self._moved()
        diff.moved_nodes.extend(("/" + source, "/" + target) for source, target in moved.values())
        for path, staged in self._nodes.items():
            entry, base = staged.entry, staged.base
            if entry is not None and entry.node.node_id in moved:
                entry = None
            if base is not None and base.node_id in moved:
                base = None
            if base is not None and (entry is None or entry.node.node_id != base.node_id):
                is_array = array_info(path, base.documents) is not None
                (diff.deleted_arrays if is_array else diff.deleted_groups).add("/" + path)
            if entry is not None and (base is None or entry.node.node_id != base.node_id):
                (diff.new_groups if entry.info is None else diff.new_arrays).add("/" + path)
            elif entry is not None:
                (diff.updated_groups if entry.info is None else diff.updated_arrays).add("/" + path)
        return diff

    def _node_changes(self) -> dict[int, NodeChange]:
        changes: dict[int, NodeChange] = {}
        for staged in self._nodes.values():
            node = None if staged.entry is None else staged.entry.node
            if staged.base is not None and (node is None or node.node_id != staged.base.node_id):
                changes[staged.base.node_id] = NodeChange.deleted
            if node is not None:
                changes[node.node_id] = NodeChange.created if node.node_id < 0 else NodeChange.updated
        return changes | dict.fromkeys(self._moved(), NodeChange.moved)

    def _insert_nodes(self, txn: Transaction, view: View) -> dict[int, int]:
        """Insert the changed nodes in order of creation; staged to final ids of the new ones."""
        next_id = node_table.next_node_id(txn)
        ids: dict[int, int] = {}
        for path, staged in sorted(self._nodes.items(), key=_creation_order):
            if staged.entry is None:
                base = staged.base
                assert base is not None  # _drop_node keeps no deletion of what the snapshot does not have
                node_table.insert_node(txn, view, path, base.node_id, base.zarr_format, None)
                continue
            node = staged.entry.node
            if node.node_id < 0:
                ids[node.node_id] = next_id + len(ids)
            node_id = ids.get(node.node_id, node.node_id)
            node_table.insert_node(txn, view, path, node_id, node.zarr_format, node.documents)
        return ids


def _node_id(node: Node) -> int:
    return node.node_id


def _creation_order(item: tuple[str, _Staged]) -> int:
    entry = item[1].entry
    return 0 if entry is None else -entry.node.node_id


def _taken(path: str, what: str, name: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"/{path} already holds {what}, so {name!r} cannot be written there; delete it first",
        ErrorKind.NODE_ALREADY_EXISTS,
    )
