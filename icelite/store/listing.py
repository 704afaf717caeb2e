"""Which keys a hierarchy has: the listings of the Zarr store contract, from SQL instead of from key names."""

from __future__ import annotations

from collections.abc import Iterator

from icelite.budget import MAX_KEY_CHARACTERS
from icelite.change_set import ChangeSet, Entry
from icelite.keys import ancestors, could_be_chunk, invalid_key, join
from icelite.metadata import ArrayInfo, array_info
from icelite.types import Node


def find_chunk_key(changes: ChangeSet, key: str) -> tuple[Entry, ArrayInfo, str] | None:
    """The array and grid position that a key names; None where no array is there to say.

    Raises
    ------
    InvalidInputError
        ``invalid-key`` when the key can belong to no chunk.
    """
    if len(key) > MAX_KEY_CHARACTERS:
        raise invalid_key(key, f"has {len(key)} characters, at most {MAX_KEY_CHARACTERS} are allowed")
    for path, rest in ancestors(key):
        entry = changes.nodes.find(path)
        info = None if entry is None else entry.info
        if entry is not None and info is not None:
            chunk = info.keys.decode(rest)
            if chunk is None:
                raise invalid_key(key, f"is not a chunk key of array /{path} with {info.keys.ndim} dimensions")
            changes.nodes.recent = join(path, ""), entry, info
            return entry, info, chunk
    if could_be_chunk(key):
        return None
    raise invalid_key(key, "names neither a metadata document nor a chunk")


def find_recent_key(changes: ChangeSet, key: str) -> tuple[Entry, ArrayInfo, str] | None:
    """As `find_chunk_key` if the key names a chunk of the array that the last one named; else None, and look there."""
    if changes.nodes.recent is None:
        return None
    head, entry, info = changes.nodes.recent
    if not key.startswith(head) or changes.nodes.find(entry.node.path) is not entry:  # it may have changed since
        return None
    chunk = info.keys.decode(key[len(head) :])
    return None if chunk is None else (entry, info, chunk)


def iter_keys(changes: ChangeSet, prefix: str) -> Iterator[str]:
    """Every key that begins with ``prefix``: nodes in order of creation, chunks in key order."""
    directory = prefix.rpartition("/")[0]
    for node in [*_enclosing_array(changes, directory), *changes.nodes.list_below(directory)]:
        names = (join(node.path, name) for name in node.documents)
        yield from (key for key in names if key.startswith(prefix))
        info = array_info(node.path, node.documents)
        if info is not None and _may_begin_with(join(node.path, info.keys.prefix), prefix):
            chunks = (join(node.path, info.keys.encode(chunk)) for chunk, _ in changes.chunks.sizes(node.node_id))
            yield from (key for key in chunks if key.startswith(prefix))


def _may_begin_with(head: str, prefix: str) -> bool:
    return head.startswith(prefix) or prefix.startswith(head)


def _enclosing_array(changes: ChangeSet, directory: str) -> list[Node]:
    """The array that a directory is strictly inside of, as a list of one or none."""
    for path, _ in ancestors(directory) if directory else ():
        entry = changes.nodes.find(path)
        if entry is not None and entry.info is not None:
            return [entry.node]
    return []


def child_names(changes: ChangeSet, directory: str) -> list[str]:
    """The first segment behind ``directory`` of each key below it, each once, in order of creation."""
    nodes = changes.nodes.list_below(directory)
    if not nodes or any(node.path == directory and array_info(directory, node.documents) for node in nodes):
        prefix = join(directory, "")
        return list(dict.fromkeys(key[len(prefix) :].partition("/")[0] for key in iter_keys(changes, prefix)))
    start = len(join(directory, ""))
    names: dict[str, None] = {}
    for node in nodes:
        if node.path == directory:
            names.update(dict.fromkeys(node.documents))
        else:
            names[node.path[start:].partition("/")[0]] = None
    return list(names)


def stored_bytes(changes: ChangeSet, directory: str) -> int:
    """Bytes of all values whose key is below ``directory``; virtual chunks count with their length."""
    total = 0
    for node in changes.nodes.list_below(directory):
        total += sum(len(text.encode()) for text in node.documents.values())
        if array_info(node.path, node.documents) is not None:
            total += changes.chunks.stored_bytes(node.node_id)
    for node in _enclosing_array(changes, directory):
        total += sum(size for _, size in _chunks_below(changes, node, directory))
    return total


def _chunks_below(changes: ChangeSet, node: Node, directory: str) -> Iterator[tuple[str, int]]:
    """Position and size of an array's chunks whose key is below ``directory``, which is inside the array."""
    info = array_info(node.path, node.documents)
    if info is not None:
        for chunk, size in changes.chunks.sizes(node.node_id):
            if join(node.path, info.keys.encode(chunk)).startswith(directory + "/"):
                yield chunk, size


def delete_below(changes: ChangeSet, directory: str) -> None:
    """Delete every key below ``directory``."""
    changes.nodes.delete_below(directory)
    for node in _enclosing_array(changes, directory):
        changes.chunks.delete(node.node_id, [chunk for chunk, _ in _chunks_below(changes, node, directory)])
