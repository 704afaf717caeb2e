"""Which row versions the snapshots that are there still see, exactly, forks included.

Snapshots form a tree. Numbered in preorder, those at or behind any point of it are one interval, so every version
of a row has an interval: the snapshots that would see it if no newer version hid it. The intervals of the versions
of one key are nested or apart; what is left of one after taking out those nested in it are the snapshots that
really see it. A version for which nothing is left can go, whoever continues the history from wherever.

Points whose snapshot is gone have intervals too: only the segment and the number of a row count.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from icelite.catalog.database import Transaction
from icelite.catalog.values import OPTIONAL_INT, check_order, check_types, types
from icelite.errors import ErrorKind, FormatError

SELECT_SEGMENTS = "SELECT seg, parent_seg, fork_seq FROM segment ORDER BY seg"
SELECT_SNAPSHOTS = "SELECT seq, seg FROM snapshot ORDER BY seq"
SELECT_NODE_VERSIONS = """
SELECT path, seq, seg, node_id, metadata IS NULL FROM node WHERE (path, seq) > (?1, ?2) ORDER BY path, seq LIMIT ?3
"""

NODE_VERSION = types(str, int, int, int, int)
SEGMENT = types(int, OPTIONAL_INT, OPTIONAL_INT)
POINT = types(int, int)

NODES_AT_ONCE = 10_000

Interval = tuple[int, int]  # half-open, of snapshots in preorder


class Version(NamedTuple):
    """One version of a key: its number, whether it deletes the key, and the snapshots at or behind it."""

    seq: int
    deletes: bool
    interval: Interval


class NodeVersion(NamedTuple):
    """One row of ``node``, as far as it matters here."""

    path: str
    seq: int
    seg: int
    node_id: int
    deletes: bool


class SnapshotTree:
    """The tree of snapshots, in preorder.

    Parameters
    ----------
    segments
        Rows of ``segment`` in order of ``seg``, which puts parents before their children.
    snapshots
        ``(seq, seg)`` of the snapshots that are there, in order of ``seq``.
    """

    def __init__(
        self, segments: Sequence[tuple[int, int | None, int | None]], snapshots: Iterable[tuple[int, int]]
    ) -> None:
        # What hangs on a segment, by number: a snapshot of its own, or (not None) the segment that forks there.
        hanging: dict[int, list[tuple[int, int | None]]] = {seg: [] for seg, _, _ in segments}
        for seq, seg in snapshots:
            if seg not in hanging:
                raise FormatError(f"snapshot {seq} is in segment {seg}, which does not exist", ErrorKind.CORRUPT)
            hanging[seg].append((seq, None))
        sizes: dict[int, int] = {}
        for seg, parent, fork_seq in reversed(segments):
            sizes[seg] = sum(1 if child is None else sizes[child] for _, child in hanging[seg])
            if parent is not None and fork_seq is not None:
                if parent not in hanging or parent >= seg:
                    raise FormatError(f"segment {seg} forks from {parent}, which is not before it", ErrorKind.CORRUPT)
                hanging[parent].append((fork_seq, seg))
        self._points: dict[int, tuple[list[int], list[int]]] = {}
        self._ends: dict[int, int] = {}
        starts: dict[int, int] = {}
        free = 0
        for seg, parent, _ in segments:
            if parent is None:
                starts[seg], free = free, free + sizes[seg]
            place = starts[seg]
            numbers, places = [], []
            for seq, child in sorted(hanging[seg], key=lambda point: (point[0], point[1] or 0)):
                numbers.append(seq)
                places.append(place)
                if child is not None:
                    starts[child] = place
                place += 1 if child is None else sizes[child]
            self._points[seg] = numbers, places
            self._ends[seg] = place

    def interval(self, seg: int, seq: int) -> Interval:
        """The snapshots at or behind a point; empty when there are none, or when the segment is gone."""
        if seg not in self._ends:
            return 0, 0
        numbers, places = self._points[seg]
        end = self._ends[seg]
        index = bisect_left(numbers, seq)
        return (places[index] if index < len(places) else end), end

    def empty_segments(self) -> list[int]:
        """The segments that no snapshot sees."""
        return [seg for seg, (_, places) in self._points.items() if not places or places[0] == self._ends[seg]]


def load_tree(txn: Transaction) -> SnapshotTree:
    """The tree of the snapshots in the catalog.

    Raises
    ------
    FormatError
        ``corrupt`` when segments do not form a tree.
    """
    segments, points = txn.rows(SELECT_SEGMENTS), txn.rows(SELECT_SNAPSHOTS)
    for row in segments:
        check_types(row, SEGMENT, "a segment")
    for row in points:
        check_types(row, POINT, "a snapshot")
    return SnapshotTree(
        [(seg, parent, fork_seq) for seg, parent, fork_seq in segments], [(seq, seg) for seq, seg in points]
    )


def seen(versions: Sequence[Version]) -> list[tuple[list[Interval], int | None]]:
    """For each version, the snapshots that see it, and the index of the version it hides there.

    Parameters
    ----------
    versions
        All versions of one key in preorder (see `in_preorder`).
    """
    found: list[tuple[list[Interval], int | None]] = []
    open_: list[int] = []
    place = 0

    def reach_until(stop: int) -> None:
        nonlocal place
        if open_ and place < stop:
            found[open_[-1]][0].append((place, stop))
        place = max(place, stop)

    for index, version in enumerate(versions):
        start, _ = version.interval
        while open_ and versions[open_[-1]].interval[1] <= start:
            reach_until(versions[open_[-1]].interval[1])
            open_.pop()
        reach_until(start)
        found.append(([], open_[-1] if open_ else None))
        open_.append(index)
    while open_:
        reach_until(versions[open_[-1]].interval[1])
        open_.pop()
    return found


def in_preorder(versions: Iterable[Version]) -> list[Version]:
    """Versions sorted so that each stands before those that hide it; those behind which nothing is are left out."""
    return sorted(
        (version for version in versions if version.interval[0] < version.interval[1]),
        key=lambda version: (version.interval[0], -version.interval[1], version.seq),
    )


def needed(versions: Iterable[Version], alive: Sequence[Interval] | None = None) -> set[int]:
    """Numbers of the versions of one key that have to stay.

    A deletion stays only where it hides something that stays.

    Parameters
    ----------
    alive
        The snapshots that count; None: all.
    """
    ordered = in_preorder(versions)
    kept: set[int] = set()
    below: list[int | None] = []  # the nearest version hidden by each that stays
    for index, (places, hidden) in enumerate(seen(ordered)):
        while hidden is not None and ordered[hidden].seq not in kept:
            hidden = below[hidden]
        below.append(hidden)
        useful = hidden is not None and not ordered[hidden].deletes if ordered[index].deletes else True
        if useful and any(alive is None or overlaps(place, alive) for place in places):
            kept.add(ordered[index].seq)
    return kept


def overlaps(interval: Interval, others: Sequence[Interval]) -> bool:
    """Whether an interval has a snapshot in common with any of the others."""
    return any(max(interval[0], start) < min(interval[1], stop) for start, stop in others)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same snapshots in as few intervals as possible."""
    found: list[Interval] = []
    for start, stop in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


def scan_nodes(txn: Transaction) -> Iterator[list[NodeVersion]]:
    """The rows of ``node``, path by path; nothing is open between two of them."""
    path, seq = "", -1
    pending: list[NodeVersion] = []
    while rows := txn.rows(SELECT_NODE_VERSIONS, (path, seq, NODES_AT_ONCE)):
        for row in rows:
            check_types(row, NODE_VERSION, "a node")
            version = NodeVersion(row[0], row[1], row[2], row[3], bool(row[4]))
            if pending and pending[0].path != version.path:
                yield pending
                pending = []
            pending.append(version)
        path, seq = check_order((pending[-1].path, pending[-1].seq), (path, seq), "the table node")
    if pending:
        yield pending
