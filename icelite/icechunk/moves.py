"""Moved nodes as a list of moves: every node of a moved subtree is listed, the subtree is moved once."""

from __future__ import annotations

from collections.abc import Iterable

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
