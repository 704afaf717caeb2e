"""The history of a repository: the part of `Repository` that answers what was done, when, and to what.

Nothing here writes. Long answers are read in pages, each a transaction of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from icelite.catalog import operations, refs, snapshots
from icelite.catalog.database import Catalog, Transaction
from icelite.repository.differences import check_behind, find_differences
from icelite.repository.graph import AncestryGraph
from icelite.repository.names import MAIN, lookup_named, resolve
from icelite.types import Diff, SnapshotInfo

if TYPE_CHECKING:
    from icelite.types import Update

AT_ONCE = 200  # snapshots or operations in one transaction


class SnapshotHistory:
    """What `Repository` knows about the past."""

    _catalog: Catalog

    def lookup_snapshot(self, snapshot_id: str) -> SnapshotInfo:
        """A snapshot by its id, the beginning of it, or a branch or tag.

        Raises
        ------
        InvalidInputError, SnapshotNotFoundError
            ``invalid-snapshot-id``; ``snapshot-not-found``.
        """
        with self._catalog.read() as txn:
            return snapshots.lookup_info(txn, lookup_named(txn, snapshot_id)[0])[0]

    def ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> Iterator[SnapshotInfo]:
        """The snapshots from one back to the first, newest first.

        Raises
        ------
        InvalidInputError, RefNotFoundError, SnapshotNotFoundError
            ``invalid-argument`` unless exactly one is given, ``invalid-snapshot-id``; ``branch-not-found``,
            ``tag-not-found``; ``snapshot-not-found``.
        """
        self._catalog.refresh()
        with self._catalog.read() as txn:
            seq = resolve(txn, branch, tag, snapshot_id)
        return self._ancestors(seq)

    def _ancestors(self, seq: int | None) -> Iterator[SnapshotInfo]:
        while seq is not None:
            with self._catalog.read() as txn:
                infos, seq = snapshots.list_ancestors(txn, seq, AT_ONCE)
            yield from infos

    def ancestry_graph(
        self,
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        plain: bool = False,
    ) -> AncestryGraph:
        """The history as a picture, in text or, in a notebook, as SVG.

        Parameters
        ----------
        branch, tag, snapshot_id
            At most one of them: its history alone; by default that of all branches.
        plain
            Text without colours.

        Raises
        ------
        InvalidInputError, RefNotFoundError, SnapshotNotFoundError
            As `ancestry`.
        """
        with self._catalog.read() as txn:
            branches = {name: refs.lookup_branch(txn, name) for name in refs.list_branches(txn)}
            tags = {name: refs.lookup_tag(txn, name) for name in refs.list_tags(txn)}
            if branch is tag is snapshot_id is None:
                tips = set(branches.values())
            else:
                tips = {resolve(txn, branch, tag, snapshot_id)}
            infos = _reachable(txn, tips)
        names: dict[str, list[str]] = {}
        labels = [*branches.items(), *((f"tag {name}", seq) for name, seq in tags.items())]
        for name, seq in labels:
            if seq in infos:
                names.setdefault(infos[seq].id, []).append(name)
        return AncestryGraph(list(infos.values()), names, _line(infos, branches.get(MAIN)), plain=plain)

    def diff(
        self,
        *,
        from_branch: str | None = None,
        from_tag: str | None = None,
        from_snapshot_id: str | None = None,
        to_branch: str | None = None,
        to_tag: str | None = None,
        to_snapshot_id: str | None = None,
    ) -> Diff:
        """What changed between two snapshots, chunk by chunk.

        Parameters
        ----------
        from_branch, from_tag, from_snapshot_id
            At most one: where to begin, the other end itself or an ancestor of it. By default its parent, so that
            ``diff(to_snapshot_id=...)`` is what that snapshot did.
        to_branch, to_tag, to_snapshot_id
            Exactly one: where to end.

        Raises
        ------
        InvalidInputError, RefNotFoundError, SnapshotNotFoundError
            ``bad-snapshot-chain-for-diff`` when the first is not in the history of the second, and as `ancestry`.
        """
        with self._catalog.read() as txn:
            to = resolve(txn, to_branch, to_tag, to_snapshot_id)
            info, parent = snapshots.lookup_info(txn, to)
            if from_branch is from_tag is from_snapshot_id is None:
                start = to if parent is None else parent
            else:
                start = resolve(txn, from_branch, from_tag, from_snapshot_id)
            before, after = snapshots.view_snapshot(txn, start), snapshots.view_snapshot(txn, to)
            check_behind(before, after, (snapshots.lookup_info(txn, start)[0], info))
            return find_differences(txn, before, after)

    def ops_log(self) -> Iterator[Update]:
        """Everything that was ever done to the repository, newest first."""
        before = operations.END
        while True:
            with self._catalog.read() as txn:
                updates, before = operations.list_operations(txn, before, AT_ONCE)
            if not updates:
                return
            yield from updates


def _reachable(txn: Transaction, tips: set[int]) -> dict[int, SnapshotInfo]:
    """The snapshots numbered in ``tips`` and all their ancestors, newest first."""
    found: dict[int, SnapshotInfo] = {}
    for tip in tips:
        seq: int | None = tip
        while seq is not None and seq not in found:
            info, parent = snapshots.lookup_info(txn, seq)
            found[seq] = info
            seq = parent
    return dict(sorted(found.items(), reverse=True))


def _line(infos: dict[int, SnapshotInfo], tip: int | None) -> set[str]:
    """Ids of a tip and its ancestors, as far as they are known."""
    by_id = {info.id: info for info in infos.values()}
    line: set[str] = set()
    current = None if tip is None else infos.get(tip)
    while current is not None:
        line.add(current.id)
        current = by_id.get(current.parent_id or "")
    return line
