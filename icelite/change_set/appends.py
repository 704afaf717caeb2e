"""Two sessions that appended to one array along the same dimension: ours moves behind theirs.

Only for whole chunks: where an append begins inside a chunk, both sessions wrote that chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from icelite.metadata import array_info, find_growth, with_growth
from icelite.types import Node, chunk_position


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
