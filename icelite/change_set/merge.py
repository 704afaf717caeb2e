"""Taking over the changes of a fork: a change set that began from the same state and was written elsewhere.

Metadata is merged by three: what the fork began with, what it made of it, and what is here now. Chunks are not
compared: the fork merged last wins. But where both sides made one array longer, each wrote its own rows to the same
place: that is an error, unless the caller lets the fork's rows follow those that are here. Everything is checked before
anything is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from icelite.catalog import staging
from icelite.catalog.locations import INLINE
from icelite.change_set.change_set import ChangeSet
from icelite.conflicts import VersionSelection
from icelite.errors import ErrorKind, SessionStateError
from icelite.metadata import array_info, find_growth, with_growth
from icelite.types import Node, chunk_name, chunk_position

Documents = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Merge:
    """What a fork's changes come to here.

    Attributes
    ----------
    nodes
        Path to the documents that a node gets, None for a deletion.
    appends
        Path of the arrays whose chunks move behind those that are here.
    """

    nodes: dict[str, Documents | None]
    appends: dict[str, Append]


def absorb(
    ours: ChangeSet,
    fork: ChangeSet,
    *,
    shared: Set[str] = frozenset(),
    tangled: Set[str] = frozenset(),
    on_append: VersionSelection = VersionSelection.Fail,
) -> None:
    """Add a fork's changes to ours.

    Parameters
    ----------
    shared
        Paths of the arrays that became longer here by what the fork has too: a copy of it was merged before.
    tangled
        Those where only a part of what made them longer is the same: its rows would come twice.
    on_append
        `VersionSelection.UseOurs`: where both made an array longer, the fork's rows follow those that are here.

    Raises
    ------
    SessionStateError
        ``merge-failed`` when both changed the metadata of one node differently, one deleted what the other changed,
        or both made one array longer; nothing was taken over.
    """
    with ours.lock, fork.lock:
        fork.chunks.flush()
        merge = _plan(ours, fork, shared, tangled, on_append)
        paths = {node.node_id: node.path for node in fork.nodes.list_below("")}
        changed = {paths[node_id]: node_id for node_id in fork.chunks.changed_arrays() if node_id in paths}
        for path in changed:
            if merge.nodes.get(path, _documents(_node(ours, path))) is None:
                raise _failed(path, "the fork wrote chunks of an array that is deleted here")
        _take_nodes(ours, merge.nodes)
        for path, node_id in changed.items():
            _take_refs(ours, fork, path, node_id, merge.appends.get(path))


def longer(changes: ChangeSet) -> dict[str, tuple[int, ...]]:
    """The arrays that are longer than in the snapshot, along any dimension: path to their shape now."""
    found: dict[str, tuple[int, ...]] = {}
    for path, before, after in changes.nodes.edits():
        if _is_longer(before, after):
            found[path] = _shape(after) or ()
    return found


def _plan(ours: ChangeSet, fork: ChangeSet, shared: Set[str], tangled: Set[str], on_append: VersionSelection) -> _Merge:
    merge = _Merge({}, {})
    for path, before, after in fork.nodes.edits():
        here = _node(ours, path)
        if path not in shared and _is_longer(before, after) and _is_longer(before, here):
            may_follow = on_append == VersionSelection.UseOurs and path not in tangled
            append = _append(fork, before, here, after) if may_follow else None
            if append is None:
                raise _both_longer(path, on_append)
            merge.nodes[path], merge.appends[path] = append.documents, append
            continue
        if _documents(after) == _documents(here):
            continue
        if _documents(before) != _documents(here):
            raise _failed(path, "both sides changed its metadata, differently")
        if after is None and here is not None and here.node_id in ours.chunks.changed_arrays():
            raise _failed(path, "the fork deleted an array whose chunks were changed here")
        merge.nodes[path] = _documents(after)
    return merge


def _append(fork: ChangeSet, before: Node | None, here: Node | None, after: Node | None) -> Append | None:
    """The fork's append behind what is here; None where one side did something else."""
    if before is None or here is None or after is None:
        return None
    if not before.node_id == here.node_id == after.node_id:  # made anew
        return None
    return find_append(before, here, after, fork.chunks.changed_names(after.node_id), None)


def _take_nodes(ours: ChangeSet, wanted: Mapping[str, Documents | None]) -> None:
    for path, documents in wanted.items():
        if documents is None:
            ours.nodes.delete(path)
    for path, documents in wanted.items():
        for name, text in (documents or {}).items():
            ours.nodes.set_document(path, name, text)


def _take_refs(ours: ChangeSet, fork: ChangeSet, path: str, fork_id: int, append: Append | None) -> None:
    entry, _ = ours.nodes.lookup_array(path)
    with fork.catalog.read() as txn:
        rows = staging.list_refs(txn, fork_id)
    locations = fork.chunks.locations
    ids = {INLINE: INLINE}
    for _, location_id, _, _ in rows:
        if location_id is not None and location_id not in ids:
            ids[location_id] = ours.chunks.intern(locations[location_id - 2])
    kept = [(chunk, ids[i], offset, length) for chunk, i, offset, length in rows if i is not None]
    if kept:
        chunks, location_ids, offsets, lengths = zip(*kept, strict=True)
        with ours.catalog.stage() as txn:
            ours.chunks.set_refs(entry.node.node_id, _moved(chunks, append), location_ids, offsets, lengths, txn)
    ours.chunks.delete(entry.node.node_id, _moved([row[0] for row in rows if row[1] is None], append))


def _moved(chunks: Sequence[str], append: Append | None) -> Sequence[str]:
    if append is None:
        return chunks
    positions = [chunk_position(chunk) for chunk in chunks]
    for position in positions:
        position[append.axis] += append.chunks
    return list(map(chunk_name, positions))


def _node(changes: ChangeSet, path: str) -> Node | None:
    entry = changes.nodes.find(path)
    return None if entry is None else entry.node


def _documents(node: Node | None) -> Documents | None:
    return None if node is None else node.documents


def _shape(node: Node | None) -> tuple[int, ...] | None:
    info = None if node is None else array_info(node.path, node.documents)
    return None if info is None else tuple(info.shape)


def _is_longer(before: Node | None, after: Node | None) -> bool:
    old, new = _shape(before), _shape(after)
    return old is not None and new is not None and len(old) == len(new) and any(map(int.__lt__, old, new))


def _both_longer(path: str, on_append: VersionSelection) -> SessionStateError:
    if on_append == VersionSelection.UseOurs:
        why = (
            "an append can follow another only along the same dimension, by whole chunks, and with nothing else changed"
        )
        return _failed(path, f"both sides made it longer, but {why}: make it long enough before fork()")
    return _failed(
        path,
        "both sides made it longer, so one's rows would take the place of the other's: make it long enough before"
        " fork(), or let them follow each other with on_append=VersionSelection.UseOurs",
    )


def _failed(path: str, why: str) -> SessionStateError:
    return SessionStateError(
        f"the fork cannot be merged: /{path}: {why}; nothing was taken over from it", ErrorKind.MERGE_FAILED
    )


# -- appends that follow one another -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Append:
    """How our append follows those that were committed first.

    Attributes
    ----------
    axis, length
        The dimension, and by how much we made it longer.
    chunks
        By how many chunks ours move.
    documents
        The array's metadata with both appends.
    """

    axis: int
    length: int
    chunks: int
    documents: Mapping[str, str]


def find_append(before: Node, theirs: Node, ours: Node, our_chunks: Set[str], earlier: Append | None) -> Append | None:
    """Our append behind theirs; None where the two changes are something else.

    Parameters
    ----------
    before, theirs
        The array before and after their snapshot.
    ours
        The array as our session has it.
    earlier
        What this gave for the snapshot before theirs, if ours already follows that one.
    """
    growth = find_growth(before.documents, theirs.documents)
    mine = find_growth(before.documents, ours.documents) if earlier is None else (earlier.axis, earlier.length)
    info = array_info(before.path, before.documents)
    if growth is None or mine is None or growth[0] != mine[0] or info is None or info.chunks is None:
        return None
    axis, added = growth
    chunk, length = info.chunks[axis], info.shape[axis]
    if length % chunk or added % chunk:
        return None
    if earlier is None and any(chunk_position(name)[axis] < length // chunk for name in our_chunks):
        return None
    shift = added // chunk + (0 if earlier is None else earlier.chunks)
    return Append(axis, mine[1], shift, with_growth(theirs.documents, axis, mine[1]))
