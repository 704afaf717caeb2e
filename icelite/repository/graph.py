"""`AncestryGraph`: the history as a picture, in text and as SVG.

One snapshot a line, newest first; each line of work has a column, and ``main`` the leftmost. Messages and names come
from the catalog, that is, perhaps from a stranger: nothing of them reaches a terminal or a page unescaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from icelite.catalog import refs, snapshots
from icelite.catalog.database import Catalog, Transaction
from icelite.repository.names import MAIN, resolve
from icelite.types import SnapshotInfo

COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#e377c2")  # by column
ANSI_COLORS = (34, 31, 32, 35, 33, 36)
RESET = "\x1b[0m"
ROW, COLUMN, RADIUS = 24, 18, 4.5  # pixels
CHARACTER = 7.5  # width of one, in pixels
SHOWN = 72  # characters of a message


def draw_ancestry(
    catalog: Catalog, branch: str | None, tag: str | None, snapshot_id: str | None, *, plain: bool
) -> AncestryGraph:
    """See `Repository.ancestry_graph`."""
    with catalog.read() as txn:
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
    return AncestryGraph(list(infos.values()), names, _line_of(infos, branches.get(MAIN)), plain=plain)


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


def _line_of(infos: dict[int, SnapshotInfo], tip: int | None) -> set[str]:
    """Ids of a tip and its ancestors, as far as they are known."""
    by_id = {info.id: info for info in infos.values()}
    line: set[str] = set()
    current = None if tip is None else infos.get(tip)
    while current is not None:
        line.add(current.id)
        current = by_id.get(current.parent_id or "")
    return line


@dataclass(frozen=True, slots=True)
class _Row:
    """One snapshot: its column, the columns of others that pass by, and those that end in it."""

    info: SnapshotInfo
    column: int
    passing: Set[int]
    ending: Set[int]


class AncestryGraph:
    """The snapshots of one or more lines of work: ``print`` it, or show it in a notebook.

    Parameters
    ----------
    infos
        Newest first; a parent that is not among them is left out.
    names
        Snapshot id to the names of the branches and tags there.
    first
        Ids of the snapshots in the leftmost column, as far as they are there.
    plain
        Without colours.
    """

    def __init__(
        self, infos: Sequence[SnapshotInfo], names: Mapping[str, Sequence[str]], first: Set[str], *, plain: bool
    ) -> None:
        self._rows = _arrange(infos, first)
        self._width = 1 + max((max({row.column, *row.passing, *row.ending}) for row in self._rows), default=0)
        self._names = names
        self._plain = plain

    # -- text --------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return "\n".join(self._line(row) for row in self._rows)

    __repr__ = __str__

    def _line(self, row: _Row) -> str:
        marks = [self._colored(self._mark(row, column), column) for column in range(self._width)]
        info = row.info
        names = ", ".join(_printable(name) for name in self._names.get(info.id, ()))
        names = f" ({self._colored(names, row.column)})" if names else ""
        return f"{''.join(marks)}{info.id} {info.written_at:%Y-%m-%d %H:%M}{names} {_headline(info)}".rstrip()

    def _mark(self, row: _Row, column: int) -> str:
        """Two characters: what stands in a column, and what joins it to the next."""
        last = max(row.ending, default=-1)
        inside = row.column < column < last
        dash = "─" if row.column <= column < last else " "
        if column == row.column:
            return "●" + dash
        if column in row.ending:
            return ("╯" if column == last else "┴") + dash
        if column in row.passing:
            return ("┼" if inside else "│") + dash
        return ("─" if inside else " ") + dash

    def _colored(self, text: str, column: int) -> str:
        if self._plain or not text.strip():
            return text
        return f"\x1b[{ANSI_COLORS[column % len(ANSI_COLORS)]}m{text}{RESET}"

    # -- SVG ---------------------------------------------------------------------------------------------------

    def _repr_svg_(self) -> str:
        labels = [self._label(row) for row in self._rows]
        left = self._width * COLUMN + 8
        width = left + max((int(len(plain) * CHARACTER) for plain, _ in labels), default=0) + 8
        height = len(self._rows) * ROW + 4
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
            f' viewBox="0 0 {width} {height}" font-family="monospace" font-size="12">'
        ]
        parts += self._edges()
        for number, (row, (_, label)) in enumerate(zip(self._rows, labels, strict=True)):
            x, y = _place(row.column, number)
            parts.append(f'<circle cx="{x}" cy="{y}" r="{RADIUS}" fill="{_color(row.column)}"/>')
            parts.append(f'<text x="{left}" y="{y + 4}" fill="#888">{label}</text>')
        return "\n".join([*parts, "</svg>"])

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x: auto">{self._repr_svg_()}</div>'

    def _label(self, row: _Row) -> tuple[str, str]:
        """The text beside a snapshot, plain and as SVG."""
        import html  # with its table of entities: only for a picture in a page

        info, names = row.info, ", ".join(_printable(name) for name in self._names.get(row.info.id, ()))
        before, after = f"{info.id} {info.written_at:%Y-%m-%d %H:%M} ", _headline(info)
        named = f'<tspan font-weight="bold" fill="{_color(row.column)}">{html.escape(names)}</tspan> ' if names else ""
        return before + names + " " + after, before + named + html.escape(after)

    def _edges(self) -> list[str]:
        numbers = {row.info.id: number for number, row in enumerate(self._rows)}
        edges = []
        for number, row in enumerate(self._rows):
            if row.info.parent_id not in numbers:
                continue
            below = numbers[row.info.parent_id]
            (x, y), (to_x, to_y) = _place(row.column, number), _place(self._rows[below].column, below)
            bend = "" if x == to_x else f"V {to_y - ROW} C {x} {to_y - ROW / 2}, {to_x} {to_y - ROW / 2}, "
            end = f"{bend}{to_x} {to_y}" if bend else f"V {to_y}"
            edges.append(f'<path d="M {x} {y} {end}" fill="none" stroke="{_color(row.column)}" stroke-width="2"/>')
        return edges


def _arrange(infos: Sequence[SnapshotInfo], first: Set[str]) -> list[_Row]:
    """Give each snapshot a column: that of a child that waits for it, or a free one."""
    known = {info.id for info in infos}
    waiting: dict[int, str] = {}  # column to the snapshot that it leads to
    reserved = bool(first & known)
    rows = []
    for info in infos:
        mine = {column for column, id_ in waiting.items() if id_ == info.id}
        column = min(mine, default=0 if info.id in first else _free_column(waiting, reserved))
        if info.id in first:
            column = 0
        ending = mine - {column}
        for ended in mine:
            del waiting[ended]
        rows.append(_Row(info, column, set(waiting) - {column}, ending))
        if info.parent_id is not None and info.parent_id in known:
            waiting[column] = info.parent_id
        elif column == 0:
            reserved = False
    return rows


def _free_column(waiting: Mapping[int, str], reserved: bool) -> int:
    column = int(reserved)
    while column in waiting:
        column += 1
    return column


def _place(column: int, number: int) -> tuple[float, float]:
    return 10 + column * COLUMN, 14 + number * ROW


def _color(column: int) -> str:
    return COLORS[column % len(COLORS)]


def _headline(info: SnapshotInfo) -> str:
    """The first line of a message, cut and printable."""
    line = _printable(info.message.partition("\n")[0])
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
