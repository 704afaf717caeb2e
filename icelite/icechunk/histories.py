"""The history of a repository as both sides tell it: snapshots with parents before children, branches, tags, moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from icelite.errors import ErrorKind, FormatError
from icelite.types import SnapshotInfo

if TYPE_CHECKING:
    import icechunk

    from icelite.repository import Repository

COMMITS = ("NewCommit", "CommitAmended")  # updates that name the branch of a new snapshot


@dataclass(frozen=True, slots=True)
class History:
    """The snapshots, branches and tags to carry over.

    Attributes
    ----------
    snapshots
        All that branches and tags reach, each after its parent; the first one first.
    branches, tags
        Name to snapshot id.
    deleted_tags
        Names that can never be used again.
    branch_of
        Snapshot id to the branch that it was committed to, as far as the operation log tells.
    """

    snapshots: list[SnapshotInfo]
    branches: dict[str, str]
    tags: dict[str, str]
    deleted_tags: list[str]
    branch_of: dict[str, str]

    @property
    def first(self) -> SnapshotInfo:
        """The snapshot that every history begins with."""
        return self.snapshots[0]


def read_history(repository: Repository | icechunk.Repository, *, has_log: bool = True) -> History:
    """The history of either kind of repository; names first, so that what they reach is all there.

    Parameters
    ----------
    has_log
        False for a repository in Icechunk's format 1, which has no operation log and does not list deleted tags.

    Raises
    ------
    FormatError
        ``corrupt`` when the branches do not all begin with the same snapshot.
    """
    branches = {name: repository.lookup_branch(name) for name in sorted(repository.list_branches())}
    tags = {name: repository.lookup_tag(name) for name in sorted(repository.list_tags())}
    deleted = repository.inspect_repo_info()["deleted_tags"] if has_log else []
    found = _reach({*branches.values(), *tags.values()}, lambda tip: repository.ancestry(snapshot_id=tip))
    roots = [info.id for info in found if info.parent_id is None]
    if len(roots) != 1:
        raise FormatError(f"the history begins with {len(roots)} snapshots: {roots}", ErrorKind.CORRUPT)
    known = {info.id for info in found}
    updates = repository.ops_log() if has_log else ()
    branch_of = {snapshot_id: name for snapshot_id, name in _commits(updates) if snapshot_id in known}
    return History(found, branches, tags, list(deleted), branch_of)


def _reach(tips: Iterable[str], ancestry: Callable[[str], Iterator[Any]]) -> list[SnapshotInfo]:
    """The tips and all their ancestors, parents first, in the order of their times otherwise."""
    lines: list[list[SnapshotInfo]] = []
    known: set[str] = set()
    for tip in sorted(tips):
        line: list[SnapshotInfo] = []
        for info in ancestry(tip):
            if info.id in known:
                break
            known.add(info.id)
            line.append(SnapshotInfo(info.id, info.parent_id, info.written_at, info.message, dict(info.metadata)))
        lines.append(line[::-1])
    return _parents_first([info for line in lines for info in line])


def _parents_first(infos: list[SnapshotInfo]) -> list[SnapshotInfo]:
    """Sorted by time, but never a child before its parent, whatever the clocks said."""
    known = {info.id for info in infos}
    children: dict[str | None, list[SnapshotInfo]] = {}
    for info in sorted(infos, key=lambda info: (info.written_at, info.id), reverse=True):
        children.setdefault(info.parent_id if info.parent_id in known else None, []).append(info)
    ordered: list[SnapshotInfo] = []
    waiting = children.get(None, [])
    while waiting:
        info = waiting.pop()
        ordered.append(info)
        waiting += children.get(info.id, [])  # the oldest last: a line is followed before the next one begins
    return ordered


def _commits(updates: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for update in updates:
        if type(update.kind).__name__ in COMMITS:
            yield update.kind.new_snap_id, update.kind.branch


# -- moved nodes: every node of a moved subtree is listed, and the subtree is moved once -----------------------------

Move = tuple[str, str]


def collapse(moved: Iterable[Move]) -> list[Move]:
    """The moves that carry all others along, as (from, to); nodes below a moved one that went elsewhere are among them.

    Paths are as in a `Diff`, with or without a slash at the beginning.
    """
    targets = dict(moved)
    tops = [(source, target) for source, target in targets.items() if not _is_carried(source, target, targets)]
    return sorted(tops, key=lambda move: (move[1].count("/"), move[1]))


def _is_carried(source: str, target: str, targets: dict[str, str]) -> bool:
    """Whether a move of the group above takes the node where it went."""
    above, mark, name = source.rpartition("/")
    return bool(mark) and above in targets and target == f"{targets[above]}/{name}"


def are_independent(moves: Iterable[Move]) -> bool:
    """Whether the moves can be done one after the other: none touches a place that another one leaves."""
    moves = list(moves)
    sources = {source for source, _ in moves}
    return not any(
        _is_within(path, source) for move in moves for path in move for source in sources if source != move[0]
    ) and not any(_is_within(target, source) for source, target in moves)


def _is_within(path: str, top: str) -> bool:
    return path == top or path.startswith(top + "/")
