"""Groups and arrays as values, and what changed about them between two states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

SHOWN = 10  # chunks of one array that a printed Diff lists


class NodeChange(IntEnum):
    """What a snapshot did to a node, its chunks apart; the numbers of ``change.node_change``."""

    none = 0
    created = 1
    updated = 2
    deleted = 3
    moved = 4


@dataclass(frozen=True, slots=True)
class Node:
    """A group or an array as one snapshot (or session) sees it.

    Attributes
    ----------
    documents
        Metadata file name to its text as written: ``zarr.json``, or ``.zarray``, ``.zgroup``, ``.zattrs``.
    """

    path: str
    node_id: int
    zarr_format: int
    documents: Mapping[str, str]


@dataclass(frozen=True, slots=True, repr=False)
class Diff:
    """What changed between two states; paths start with ``/``."""

    new_groups: set[str] = field(default_factory=set)
    new_arrays: set[str] = field(default_factory=set)
    deleted_groups: set[str] = field(default_factory=set)
    deleted_arrays: set[str] = field(default_factory=set)
    updated_groups: set[str] = field(default_factory=set)
    updated_arrays: set[str] = field(default_factory=set)
    updated_chunks: dict[str, list[list[int]]] = field(default_factory=dict)
    moved_nodes: list[tuple[str, str]] = field(default_factory=list)

    def is_empty(self) -> bool:
        """Whether nothing changed."""
        return not any(getattr(self, name) for name in self.__dataclass_fields__)

    def __repr__(self) -> str:
        """A heading for each kind of change there is, and below it what changed, sorted."""
        lines = ["<icelite.Diff>" if not self.is_empty() else "<icelite.Diff> nothing changed"]
        for name in self.__dataclass_fields__:
            changed = getattr(self, name)
            if changed:
                lines += [name.replace("_", " ") + ":", *("    " + line for line in _lines(changed))]
        return "\n".join(lines)


def _lines(changed: set[str] | dict[str, list[list[int]]] | list[tuple[str, str]]) -> list[str]:
    if isinstance(changed, set):
        return [_printable(path) for path in sorted(changed)]
    if isinstance(changed, list):
        return [f"{_printable(old)} -> {_printable(new)}" for old, new in changed]
    lines = []
    for path, chunks in sorted(changed.items()):
        more = f" and {len(chunks) - SHOWN} more" if len(chunks) > SHOWN else ""
        lines.append(f"{_printable(path)}: {' '.join(map(str, chunks[:SHOWN]))}{more}")
    return lines


def _printable(path: str) -> str:
    return path if path.isprintable() else repr(path)
