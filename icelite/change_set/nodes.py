"""Groups and arrays of a change set: what the snapshot has, overlaid with what the session wrote or deleted.

A new node has a negative id (-1 is the first) until the commit gives it one that lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from icelite.catalog import nodes as node_table
from icelite.catalog.database import Transaction
from icelite.change_set.base import BaseSnapshot
from icelite.change_set.chunks import ChunkChanges
from icelite.conflicts import Edits, NodeEdit
from icelite.errors import AlreadyExistsError, ErrorKind, InvalidInputError, NodeNotFoundError, SessionStateError
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


class NodeChanges:
    """The nodes of one snapshot plus uncommitted changes; the chunks of an array go with it."""

    def __init__(self, base: BaseSnapshot, chunks: ChunkChanges) -> None:
        self._base = base
        self._chunks = chunks
        self._forget_base()
        self._staged: dict[str, _Staged] = {}
        self._above: set[str] = set()  # every path above a staged node, and perhaps above one that went again
        self._last_id = 0
        self.recent: tuple[str, Entry, ArrayInfo] | None = None  # what a chunk key last began with, and its array

    def _forget_base(self) -> None:
        self._known: dict[str, Entry | None] = {}
        self._listed: dict[str, Node] = {}  # what the last listing found, and nobody has asked for yet

    def is_empty(self) -> bool:
        """Whether no node was changed."""
        return not self._staged

    def discard(self) -> None:
        """Forget every uncommitted change of a node."""
        self._staged = {}
        self._last_id = 0

    def checkpoint(self) -> Callable[[], None]:
        """How to return to the state as it is now."""
        view, staged = self._base.view, dict(self._staged)

        def restore() -> None:
            if self._base.view != view:
                self._forget_base()
            self._staged = staged

        return restore

    def dump(self) -> dict[str, Any]:
        """The uncommitted changes as values that pickle."""
        return {"nodes": self._staged, "last_id": self._last_id}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue with the changes that `dump` gave."""
        self._staged, self._last_id = state["nodes"], state["last_id"]
        self._above = {above for path in self._staged for above, _ in ancestors(path)}

    def find(self, path: str) -> Entry | None:
        """The group or array at a path, or None."""
        if self._staged:
            staged = self._staged.get(path)
            if staged is not None:
                return staged.entry
        try:
            return self._known[path]
        except KeyError:
            return self._find_base(path)

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

    def _find_base(self, path: str) -> Entry | None:
        try:
            return self._known[path]
        except KeyError:
            base = self._base
            node = self._listed.pop(path, None) or node_table.find_node(base.catalog, base.view, path)
            base.check_kept()
        if len(self._known) >= KNOWN_NODES:
            self._known.clear()
        entry = self._known[path] = None if node is None else Entry(node)
        return entry

    def list_below(self, path: str) -> list[Node]:
        """The nodes at and below a path, in order of creation."""
        below = join(path, "")
        stored = node_table.list_nodes(self._base.catalog, self._base.view, path)
        self._base.check_kept()
        self._listed = {node.path: node for node in stored[:KNOWN_NODES]}  # likely to be asked for next
        nodes = [node for node in stored if node.path not in self._staged]
        staged = [
            s.entry.node
            for p, s in (list(self._staged.items()) if path in self._staged or path in self._above else ())
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
        with self._base.lock:
            entry = self.find(path)
            if entry is None or entry.info is None:
                self._check_place(path, info)
            if entry is None:
                self._put_new(Node(path, 0, DOCUMENTS[name], {name: text}), info)
                return
            node = self._with_document(entry.node, name, text)
            if node is not entry.node:
                self._replace_node(entry, node)

    def set_documents(self, documents: Iterable[tuple[str, str, str]]) -> None:
        """Write many documents, each path, name and text, as `set_document` does one; the catalog is entered once."""
        with self._base.lock, self._base.catalog.read():
            for path, name, text in documents:
                self.set_document(path, name, text)

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
        below = [] if info is None else self.list_below(path)
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
        self._base.writes += 1
        staged = self._staged.get(node.path)
        if staged is None:
            found = self._find_base(node.path)
            base = None if found is None else found.node
        else:
            base = staged.base
        if base == node:  # changed back
            self._staged.pop(node.path, None)
        else:
            self._staged[node.path] = _Staged(Entry(node, *info), base)
            self._above.update(above for above, _ in ancestors(node.path))

    def delete_document(self, path: str, name: str) -> None:
        """Delete one metadata document; a node without any is gone, and chunks go with what makes it an array."""
        with self._base.lock:
            entry = self.find(path)
            if entry is None or name not in entry.node.documents:
                return
            documents = {key: text for key, text in entry.node.documents.items() if key != name}
            if documents:
                self._replace_node(entry, replace(entry.node, documents=documents))
            else:
                self._drop_node(entry.node)

    def delete(self, path: str) -> None:
        """Delete the node at a path, with its chunks; those below it stay."""
        with self._base.lock:
            entry = self.find(path)
            if entry is not None:
                self._drop_node(entry.node)

    def edits(self) -> Iterator[tuple[str, Node | None, Node | None]]:
        """Path, node in the snapshot and node now of everything changed, in order of creation."""
        for path, staged in sorted(self._staged.items(), key=_creation_order):
            yield path, staged.base, None if staged.entry is None else staged.entry.node

    def delete_below(self, path: str) -> None:
        """Delete the nodes at and below a path, with their chunks."""
        with self._base.lock:
            for node in self.list_below(path):
                self._drop_node(node)

    def _drop_node(self, node: Node) -> None:
        self._base.writes += 1
        self._chunks.forget(node.node_id)
        staged = self._staged.get(node.path)
        base = node if staged is None else staged.base
        if base is None:
            del self._staged[node.path]
        else:
            self._staged[node.path] = _Staged(None, base)

    def rebase(self) -> None:
        """Compare what the session wrote with what the new snapshot has; delete what appeared in deleted groups."""
        self._forget_base()
        for path, staged in list(self._staged.items()):
            base = self._find_base(path)
            if staged.entry is None and base is None:
                del self._staged[path]
            else:
                self._staged[path] = _Staged(staged.entry, None if base is None else base.node)
        for path in [path for path, staged in self._staged.items() if staged.entry is None]:
            for node in self.list_below(path):
                if node.path not in self._staged:
                    self._drop_node(node)

    def move(self, source: str, target: str) -> None:
        """Give the node at ``source``, with everything below it, the path ``target``; ids and chunks stay."""
        with self._base.lock:
            nodes = self.list_below(source)
            for node in nodes:
                staged = self._staged.pop(node.path, None)
                base = node if staged is None else staged.base
                if base is not None:
                    self._staged[node.path] = _Staged(None, base)
            for node in nodes:
                self._put_node(replace(node, path=target + node.path[len(source) :]))

    def check_move(self, source: str, target: str) -> None:
        """Refuse a move that has nothing to move, or nowhere to go.

        Raises
        ------
        SessionStateError, NodeNotFoundError, AlreadyExistsError
            ``move-into-self-or-descendant``, ``move-destination-parent-missing``,
            ``move-destination-parent-not-group``; ``node-not-found``; ``move-wont-overwrite``.
        """
        if source == target or source == "" or target.startswith(source + "/"):
            raise SessionStateError(
                f"/{source} cannot be moved to /{target}: a node does not go into itself",
                ErrorKind.MOVE_INTO_SELF_OR_DESCENDANT,
            )
        if self.find(source) is None:
            raise NodeNotFoundError(f"no node at /{source} to move", ErrorKind.NODE_NOT_FOUND)
        if self.list_below(target):
            raise AlreadyExistsError(
                f"/{target} already exists, and a move never overwrites; delete it in another commit first",
                ErrorKind.MOVE_WONT_OVERWRITE,
            )
        parent = target.rpartition("/")[0]
        entry = self.find(parent)
        if entry is None:
            raise SessionStateError(
                f"there is no group /{parent} to move into; create it in another commit first",
                ErrorKind.MOVE_DESTINATION_PARENT_MISSING,
            )
        if entry.info is not None:
            raise SessionStateError(
                f"/{parent} is an array; nodes live in groups", ErrorKind.MOVE_DESTINATION_PARENT_NOT_GROUP
            )

    def _moved(self) -> dict[int, tuple[str, str]]:
        """Ids of the moved nodes with the path they had and the one they have."""
        before = {staged.base.node_id: path for path, staged in self._staged.items() if staged.base is not None}
        return {
            staged.entry.node.node_id: (before[staged.entry.node.node_id], path)
            for path, staged in self._staged.items()
            if staged.entry is not None and before.get(staged.entry.node.node_id, path) != path
        }

    def status(self) -> Diff:
        """The uncommitted changes of nodes."""
        diff = Diff()
        moved = self._moved()
        diff.moved_nodes.extend(("/" + source, "/" + target) for source, target in moved.values())
        for path, staged in self._staged.items():
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

    def compared(self) -> Edits:
        """The uncommitted changes of nodes as `icelite.conflicts` compares them."""
        edits = Edits()
        for source, _ in self._moved().values():
            edits.moved = "/" + source
        for path, staged in self._staged.items():
            entry, base = staged.entry, staged.base
            if base is not None and (entry is None or entry.node.node_id != base.node_id):
                is_array = array_info(path, base.documents) is not None
                edits.nodes[base.node_id] = NodeEdit(path, is_array, NodeChange.deleted)
            if entry is not None and entry.node.node_id < 0:
                edits.created[path] = entry.info is not None
            elif entry is not None:
                edits.nodes[entry.node.node_id] = NodeEdit(path, entry.info is not None, NodeChange.updated)
        return edits

    def kinds(self) -> dict[int, NodeChange]:
        """What was done to each changed node, by its id."""
        changes: dict[int, NodeChange] = {}
        for staged in self._staged.values():
            node = None if staged.entry is None else staged.entry.node
            if staged.base is not None and (node is None or node.node_id != staged.base.node_id):
                changes[staged.base.node_id] = NodeChange.deleted
            if node is not None:
                changes[node.node_id] = NodeChange.created if node.node_id < 0 else NodeChange.updated
        return changes | dict.fromkeys(self._moved(), NodeChange.moved)

    def insert_into(self, txn: Transaction, view: View) -> dict[int, int]:
        """Insert the changed nodes in order of creation; staged to final ids of the new ones."""
        next_id = node_table.next_node_id(txn)
        ids: dict[int, int] = {}
        for path, staged in sorted(self._staged.items(), key=_creation_order):
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
