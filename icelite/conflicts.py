"""Which changes of two sessions exclude each other, and who decides. Pure: no catalog, no session.

The matrix is Icechunk's (docs/concurrency.md shows it). `theirs` is one snapshot that was committed first, `ours`
the uncommitted changes that are to follow it. Overlap counts, not equality: the same bytes written twice conflict.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum

from icelite.keys import ancestors
from icelite.types import NodeChange, chunk_position


class ConflictType(IntEnum):
    """Kinds of conflict; names and numbers are Icechunk's, but for the last, which it does not have."""

    NewNodeConflictsWithExistingNode = 1
    NewNodeInInvalidGroup = 2
    ZarrMetadataDoubleUpdate = 3
    ZarrMetadataUpdateOfDeletedArray = 4
    ZarrMetadataUpdateOfDeletedGroup = 5
    ChunkDoubleUpdate = 6
    ChunksUpdatedInDeletedArray = 7
    ChunksUpdatedInUpdatedArray = 8
    DeleteOfUpdatedArray = 9
    DeleteOfUpdatedGroup = 10
    MoveOperationCannotBeRebased = 11
    DimensionSizesDiffer = 12

    def __str__(self) -> str:
        words = re.sub(r"(?<!^)(?=[A-Z])", " ", self.name)
        return words.capitalize()


class VersionSelection(Enum):
    """Whose version of a chunk counts."""

    Fail = 0
    UseOurs = 1
    UseTheirs = 2


@dataclass(frozen=True, slots=True)
class Conflict:
    """One change of ours that a change of theirs excludes.

    Attributes
    ----------
    path
        The node, beginning with ``/``.
    conflicted_chunks
        Grid positions, for a conflict about chunks.
    detail
        What more there is to say, for a conflict about dimensions.
    """

    conflict_type: ConflictType
    path: str
    conflicted_chunks: list[list[int]] | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class NodeEdit:
    """What one side did to a node that both know."""

    path: str
    is_array: bool
    change: NodeChange = NodeChange.none
    chunks: frozenset[str] = frozenset()

    def without(self, chunks: Set[str]) -> NodeEdit:
        """The same with some chunks left alone."""
        return replace(self, chunks=self.chunks - chunks)


@dataclass(slots=True)
class Edits:
    """Everything one side did.

    Attributes
    ----------
    nodes
        Node id to what was done to it; nodes that the side created are not among them.
    created
        Path to whether it is an array.
    moved
        Whether nodes were moved: such a side cannot be rebased, nor be rebased over.
    """

    nodes: dict[int, NodeEdit] = field(default_factory=dict)
    created: dict[str, bool] = field(default_factory=dict)
    moved: str | None = None


@dataclass(frozen=True, slots=True)
class Resized:
    """An array whose metadata one side wrote: the lengths of its named dimensions.

    Attributes
    ----------
    before
        As the other side has it; empty where there was none.
    """

    path: str
    before: Mapping[str, int]
    after: Mapping[str, int]

    @property
    def group(self) -> str:
        """The path of the group it is in."""
        return self.path.rpartition("/")[0]

    @property
    def is_coordinate(self) -> bool:
        """Whether subgroups inherit it, as xarray's trees do: it is named like its only dimension."""
        return list(self.after) == [self.path.rpartition("/")[2]]


class ConflictSolver(ABC):
    """Decides about conflicts while changes are rebased.

    Attributes
    ----------
    on_append
        `VersionSelection.UseOurs`: where both appended to an array, ours moves behind theirs.
    """

    on_append: VersionSelection = VersionSelection.Fail

    @abstractmethod
    def selects(self, conflict: Conflict) -> VersionSelection:
        """Whose side counts; `VersionSelection.Fail` leaves the conflict unsolved."""


class ConflictDetector(ConflictSolver):
    """Solves nothing: any conflict makes the rebase fail, and names it."""

    def selects(self, conflict: Conflict) -> VersionSelection:
        """Always `VersionSelection.Fail`."""
        return VersionSelection.Fail

    def __repr__(self) -> str:
        return "ConflictDetector()"


class BasicConflictSolver(ConflictSolver):
    """Solves conflicts about chunks, deletions and dimensions by rule; everything else stays a conflict.

    Parameters
    ----------
    on_chunk_conflict
        Whose bytes count when both wrote the same chunk.
    fail_on_delete_of_updated_array, fail_on_delete_of_updated_group
        Whether our deletion of what they changed is a conflict; if not, it is deleted.
    on_append
        Addition to Icechunk: `VersionSelection.UseOurs` lets two sessions that both appended along the same
        dimension of the same array both have their rows, ours behind theirs. By default a conflict.
    fail_on_different_dimension_sizes
        Addition to Icechunk: whether it is a conflict that each side fits its group, but both together give one
        dimension two lengths, so that xarray cannot open it.
    """

    def __init__(
        self,
        *,
        on_chunk_conflict: VersionSelection = VersionSelection.UseOurs,
        fail_on_delete_of_updated_array: bool = False,
        fail_on_delete_of_updated_group: bool = False,
        on_append: VersionSelection = VersionSelection.Fail,
        fail_on_different_dimension_sizes: bool = True,
    ) -> None:
        self.on_chunk_conflict = on_chunk_conflict
        self.fail_on_delete_of_updated_array = fail_on_delete_of_updated_array
        self.fail_on_delete_of_updated_group = fail_on_delete_of_updated_group
        self.on_append = on_append
        self.fail_on_different_dimension_sizes = fail_on_different_dimension_sizes

    def selects(self, conflict: Conflict) -> VersionSelection:
        """See `ConflictSolver.selects`."""
        kind = conflict.conflict_type
        if kind == ConflictType.ChunkDoubleUpdate:
            return self.on_chunk_conflict
        fails = {
            ConflictType.DeleteOfUpdatedArray: self.fail_on_delete_of_updated_array,
            ConflictType.DeleteOfUpdatedGroup: self.fail_on_delete_of_updated_group,
            ConflictType.DimensionSizesDiffer: self.fail_on_different_dimension_sizes,
        }
        return VersionSelection.Fail if fails.get(kind, True) else VersionSelection.UseOurs

    def __repr__(self) -> str:
        return f"BasicConflictSolver({', '.join(f'{k}={v}' for k, v in self.__dict__.items())})"


def find_conflicts(theirs: Edits, ours: Edits) -> Iterator[Conflict]:
    """Every change of ours that a change of theirs excludes."""
    moved = theirs.moved or ours.moved
    if moved is not None:
        yield Conflict(ConflictType.MoveOperationCannotBeRebased, moved)
        return
    gone = {edit.path for edit in theirs.nodes.values() if edit.change == NodeChange.deleted} - theirs.created.keys()
    arrays = {path for path, is_array in theirs.created.items() if is_array}
    for path in ours.created:
        above = {parent for parent, _ in ancestors(path)} if path else set()
        if path in theirs.created:
            yield _conflict(ConflictType.NewNodeConflictsWithExistingNode, path)
        elif above & (gone | arrays):
            yield _conflict(ConflictType.NewNodeInInvalidGroup, path)
    for node_id, edit in ours.nodes.items():
        if edit.change == NodeChange.deleted:
            yield from _conflicts_of_deletion(edit, theirs.nodes.get(node_id), theirs)
        elif node_id in theirs.nodes:
            yield from _conflicts_of_update(edit, theirs.nodes[node_id])


def _conflicts_of_deletion(ours: NodeEdit, theirs: NodeEdit | None, all_theirs: Edits) -> Iterator[Conflict]:
    if theirs is not None and theirs.change == NodeChange.deleted:
        return
    filled = not ours.is_array and any(
        ours.path in {parent for parent, _ in ancestors(path)} for path in all_theirs.created if path
    )
    if theirs is not None or filled:
        kind = ConflictType.DeleteOfUpdatedArray if ours.is_array else ConflictType.DeleteOfUpdatedGroup
        yield _conflict(kind, ours.path)


def _conflicts_of_update(ours: NodeEdit, theirs: NodeEdit) -> Iterator[Conflict]:
    deleted, updated = theirs.change == NodeChange.deleted, theirs.change == NodeChange.updated
    path = theirs.path
    if ours.change == NodeChange.updated and updated:
        yield _conflict(ConflictType.ZarrMetadataDoubleUpdate, path)
    if ours.change == NodeChange.updated and deleted:
        kinds = ConflictType.ZarrMetadataUpdateOfDeletedGroup, ConflictType.ZarrMetadataUpdateOfDeletedArray
        yield _conflict(kinds[theirs.is_array], path)
    if ours.chunks and deleted:
        yield _conflict(ConflictType.ChunksUpdatedInDeletedArray, path, ours.chunks)
    if ours.chunks and updated:
        yield _conflict(ConflictType.ChunksUpdatedInUpdatedArray, path, ours.chunks)
    if both := ours.chunks & theirs.chunks:
        yield _conflict(ConflictType.ChunkDoubleUpdate, path, both)


def find_misfits(theirs: Iterable[Resized], ours: Iterable[Resized]) -> Iterator[Conflict]:
    """Arrays of ours and theirs that fit when each side is looked at alone, and not together.

    Dimensions are compared by name within a group, and with the coordinates of the groups above it, which subgroups
    inherit. What one side leaves misfitting by itself is its own affair.
    """
    known: dict[tuple[str, str], dict[tuple[int | None, int, bool], Resized]] = {}  # one of each kind is enough
    for array in theirs:
        for dimension, size in array.after.items():
            kind = array.before.get(dimension), size, array.is_coordinate
            known.setdefault((array.group, dimension), {})[kind] = array
    below = [array for arrays in known.values() for array in arrays.values() if array.group]
    for array in ours:
        for dimension, size in array.after.items():
            others = list(known.get((array.group, dimension), {}).values())
            above = {path for path, _ in ancestors(array.path)} - {array.group}
            for group in above:
                others += [o for o in known.get((group, dimension), {}).values() if o.is_coordinate]
            if array.is_coordinate:
                others += [o for o in below if dimension in o.after and _is_below(o.group, array.group)]
            misfit = next((o for o in others if o.path != array.path and _misfits(array, o, dimension)), None)
            if misfit is not None:
                detail = f"dimension {dimension!r} is {size} long, and {misfit.after[dimension]} in /{misfit.path}"
                yield Conflict(ConflictType.DimensionSizesDiffer, "/" + array.path, detail=detail)
                break


def _is_below(group: str, above: str) -> bool:
    return group != above and (above == "" or group.startswith(above + "/"))


def _misfits(ours: Resized, theirs: Resized, dimension: str) -> bool:
    """Whether two arrays agree about a dimension when one of them is as the other side has it, but not together."""
    size, other = ours.after[dimension], theirs.after[dimension]
    fits_theirs = theirs.before.get(dimension, size) == size
    fits_ours = ours.before.get(dimension, other) == other
    return size != other and fits_theirs and fits_ours


def _conflict(kind: ConflictType, path: str, chunks: frozenset[str] | None = None) -> Conflict:
    return Conflict(kind, "/" + path, None if chunks is None else sorted(map(chunk_position, chunks)))
