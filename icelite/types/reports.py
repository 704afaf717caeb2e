"""Reports of maintenance, and tables that answer questions to a repository.

A table has columns of one length, and can be iterated by row, printed, and given to pandas. Printing shows the first
rows only, with every text from a catalog made printable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from icelite.types.nodes import ChunkType

SHOWN = 20  # rows that are printed
WIDTH = 72  # characters of a text that are printed

Progress = Callable[[int, int], None]  # called with (steps done, steps in all) while something long runs


@dataclass(frozen=True, slots=True)
class GCSummary:
    """The work of `Repository.garbage_collect`: what it removed, or with ``dry_run`` would remove.

    Attributes
    ----------
    bytes_deleted
        Bytes of the chunks that were stored inline, and of objects; the file shrinks only when it is compacted.
    chunks_deleted
        Chunks stored inline whose bytes were removed.
    snapshots_deleted
        Snapshots that no branch or tag reached. Expired ones are gone before, and not counted.
    transaction_logs_deleted
        Notes of what a snapshot did to one node: rows of ``change``.
    chunk_refs_deleted, nodes_deleted
        Versions of references and of metadata that no snapshot sees.
    segments_deleted, locations_deleted
        Runs of snapshots without any left; files and objects that nothing refers to any more.
    objects_deleted
        Native objects that were removed: those nothing refers to, orphans of writers that failed included.
    """

    bytes_deleted: int = 0
    chunks_deleted: int = 0
    snapshots_deleted: int = 0
    transaction_logs_deleted: int = 0
    chunk_refs_deleted: int = 0
    nodes_deleted: int = 0
    segments_deleted: int = 0
    locations_deleted: int = 0
    objects_deleted: int = 0


@dataclass(frozen=True, slots=True)
class ChunkStorageStats:
    """Bytes of all chunks of a repository by where they are; each stored chunk counts once.

    Attributes
    ----------
    native_bytes
        In objects that icelite wrote.
    virtual_bytes
        In other people's files.
    inlined_bytes
        In the catalog file.
    """

    native_bytes: int = 0
    virtual_bytes: int = 0
    inlined_bytes: int = 0

    def non_virtual_bytes(self) -> int:
        """Bytes that the repository itself holds."""
        return self.native_bytes + self.inlined_bytes

    def total_bytes(self) -> int:
        """Bytes wherever they are."""
        return self.native_bytes + self.virtual_bytes + self.inlined_bytes

    def __add__(self, other: ChunkStorageStats) -> ChunkStorageStats:
        return ChunkStorageStats(
            self.native_bytes + other.native_bytes,
            self.virtual_bytes + other.virtual_bytes,
            self.inlined_bytes + other.inlined_bytes,
        )


@dataclass(frozen=True, slots=True)
class Compaction:
    """Size of the catalog file before and after `Repository.compact`, bytes."""

    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class Repacking:
    """The work of `Repository.repack`.

    Attributes
    ----------
    objects
        Objects whose needed part was written anew.
    bytes_kept, bytes_freed
        What of them was needed, and what was not; freed when the old objects are collected.
    """

    objects: int
    bytes_kept: int
    bytes_freed: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that `Repository.verify` found wrong.

    Attributes
    ----------
    check
        Name of the rule that is broken: the table, then what about it.
    subject
        The row at fault.
    detail
        What is wrong with it.
    """

    check: str
    subject: str
    detail: str


class Problems(list[Problem]):
    """The findings of `Repository.verify`: an empty list when all is well, with what it looked at.

    Attributes
    ----------
    branches, tags
        Name to the id of its snapshot, when the check began.
    snapshots
        The ids of all snapshots then, oldest first.
    objects
        The number of native objects that were looked at; None where that was not asked for.
    """

    branches: Mapping[str, str]
    tags: Mapping[str, str]
    snapshots: Sequence[str]
    objects: int | None

    def __init__(
        self,
        found: Iterable[Problem] = (),
        *,
        branches: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        snapshots: Sequence[str] = (),
        objects: int | None = None,
    ) -> None:
        super().__init__(found)
        self.branches = dict(branches or {})
        self.tags = dict(tags or {})
        self.snapshots = list(snapshots)
        self.objects = objects

    def __repr__(self) -> str:
        looked = f"{len(self.branches)} branches, {len(self.tags)} tags, {len(self.snapshots)} snapshots"
        return f"<icelite.Problems {list(self)!r} in {looked}>"


@dataclass(frozen=True, slots=True)
class Relocation:
    """The work of `Repository.relocate`: what it rewrote, or with ``dry_run`` would rewrite.

    Attributes
    ----------
    count
        Locations that changed, one for each file or object whatever the number of references to it.
    old_prefix, new_prefix
        As they were understood: with a ``/`` at the end; a directory below the catalog's own is relative.
    examples
        Some of the locations before and after, as URLs or relative paths.
    containers
        URL prefixes of the containers that were added or changed.
    """

    count: int
    old_prefix: str
    new_prefix: str
    examples: tuple[tuple[str, str], ...] = ()
    containers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """The catalog that `Repository.bundle` wrote.

    Attributes
    ----------
    path
        The new catalog.
    chunks, bytes
        Different chunks of files and objects that were copied into it, and their bytes.
    sources
        Files and objects they were read from.
    size
        Bytes of the new file.
    """

    path: str
    chunks: int
    bytes: int
    sources: int
    size: int


@dataclass(frozen=True, slots=True)
class ZarrExport:
    """The store that `Repository.export_zarr` wrote.

    Attributes
    ----------
    target
        Where it is: a path or a URL.
    snapshot_id
        What was exported.
    nodes, chunks
        Groups and arrays; chunks that were written.
    bytes
        Of all values, metadata included.
    """

    target: str
    snapshot_id: str
    nodes: int
    chunks: int
    bytes: int


# -- tables ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """One file or object that chunks of a snapshot are in.

    Attributes
    ----------
    url
        Absolute, for display.
    path, container
        As the catalog stores them: see `Location`.
    references, bytes
        How many chunks the snapshot has there, and the sum of their lengths.
    end
        The first byte behind all of them: the source has to be at least that long.
    size, etag, modified_at
        As recorded when it was referenced: bytes; nanoseconds since the epoch, UTC; None when not recorded.
    state
        ``unchecked``; or ``ok``, ``changed``, ``missing``, ``unreadable``, ``not authorised``.
    problem
        What is wrong with it, a sentence; "" when nothing is, or nobody looked.
    """

    url: str
    path: str
    container: str | None
    references: int
    bytes: int
    end: int
    size: int | None = None
    etag: str | None = None
    modified_at: int | None = None
    state: str = "unchecked"
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FileChange:
    """One entry of the history of a file: what a snapshot did about it.

    Attributes
    ----------
    change
        ``added``: it has the first references to the file; ``changed``: others than before, or the file was another
        one by then; ``dropped``: none any more.
    snapshot_id, written_at, message
        Of the snapshot; ``message`` is None where it was released.
    references
        How many chunks are in the file then.
    size, etag, modified_at
        The file as recorded then: see `Location` for the units; None when not recorded.
    """

    change: str
    snapshot_id: str
    written_at: datetime
    message: str | None
    references: int
    size: int | None
    etag: str | None
    modified_at: int | None


class Sources(Sequence[SourceInfo]):
    """The sources of a snapshot: a row for each, in the order of their URLs.

    A file that was referenced as it was at two times has two rows. ``pandas.DataFrame(sources.to_dict())`` makes a
    frame of it.
    """

    def __init__(self, rows: Sequence[SourceInfo]) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return Sources(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __iter__(self) -> Iterator[SourceInfo]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sources) and self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """The columns by name: counts as int64, times as datetime64[ns] (NaT when not recorded), the others lists."""
        columns: dict[str, Any] = {
            name: [getattr(row, name) for row in self._rows] for name in SourceInfo.__dataclass_fields__
        }
        for name in ("references", "bytes", "end"):
            columns[name] = np.array(columns[name], dtype=np.int64)
        times = [np.iinfo(np.int64).min if time is None else time for time in columns["modified_at"]]  # which is NaT
        columns["modified_at"] = np.array(times, dtype=np.int64).view("datetime64[ns]")
        return columns

    def _table(self) -> tuple[str, list[str], list[list[str]]]:
        title = f"{len(self)} sources, {sum(row.references for row in self):,} references"
        shown = [
            [_cut(row.url), f"{row.references:,}", f"{row.bytes:,}", row.state, _cut(row.problem)]
            for row in self._rows[:SHOWN]
        ]
        return title, ["url", "references", "bytes", "state", "problem"], shown

    def __repr__(self) -> str:
        return _as_text("icelite.Sources", *self._table(), len(self))

    def _repr_html_(self) -> str:
        return _as_html(*self._table(), len(self))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ChunkRefs:
    """The locations of the chunks of one array, as aligned columns in C order of the grid.

    Attributes
    ----------
    path
        The array.
    positions
        Grid positions: chunks x dimensions; of 64 bits where a number of 32 could not say one.
    kinds
        Numbers of `ChunkType`.
    source
        Index into ``urls`` and ``paths``; -1 for an inline chunk.
    offsets, lengths
        Bytes; the offset of an inline chunk is 0.
    urls, paths
        Of each source once: its absolute URL, for display; and as the catalog stores it, ``vcc://name/path`` if in
        a container.
    """

    path: str
    positions: npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
    kinds: npt.NDArray[np.uint8]
    source: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint64]
    urls: list[str]
    paths: list[str]

    def __len__(self) -> int:
        return len(self.lengths)

    def to_dict(self) -> dict[str, Any]:
        """Columns for ``pandas.DataFrame``: ``dim_0``, ``dim_1``, ..., ``kind``, ``url``, ``offset``, ``length``."""
        kinds = np.array([kind.name for kind in sorted(ChunkType)], dtype=object)
        urls = np.array([*self.urls, ""], dtype=object)  # -1 is the last
        return {
            **{f"dim_{axis}": self.positions[:, axis] for axis in range(self.positions.shape[1])},
            "kind": kinds[self.kinds],
            "url": urls[self.source],
            "offset": self.offsets,
            "length": self.lengths,
        }

    def _table(self) -> tuple[str, list[str], list[list[str]]]:
        shown = [
            [
                "/".join(map(str, self.positions[row].tolist())),
                ChunkType(int(self.kinds[row])).name,
                _cut("" if self.source[row] < 0 else self.urls[self.source[row]]),
                f"{self.offsets[row]:,}",
                f"{self.lengths[row]:,}",
            ]
            for row in range(min(SHOWN, len(self)))
        ]
        title = f"/{self.path}: {len(self):,} chunks, {len(self.urls):,} sources, {int(self.lengths.sum()):,} bytes"
        return title, ["chunk", "kind", "url", "offset", "length"], shown

    def __repr__(self) -> str:
        return _as_text("icelite.ChunkRefs", *self._table(), len(self))

    def _repr_html_(self) -> str:
        return _as_html(*self._table(), len(self))


def _cut(text: str) -> str:
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= WIDTH else "..." + shown[3 - WIDTH :]  # the end of a path tells more


def _more(shown: int, total: int) -> str:
    return f"... and {total - shown:,} more" if total > shown else ""


def _as_text(name: str, title: str, heads: list[str], rows: list[list[str]], total: int) -> str:
    if not rows:
        return f"<{name}> {title}"
    lines = [heads, *rows]
    used = [column for column in range(len(heads)) if any(row[column] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    right = {column for column in used if all(row[column].replace(",", "").isdigit() for row in rows)}
    cells = ([f"{line[c]:>{widths[c]}}" if c in right else f"{line[c]:<{widths[c]}}" for c in used] for line in lines)
    table = ["  ".join(line).rstrip() for line in cells]
    return "\n".join([f"<{name}> {title}", *table, *filter(None, [_more(len(rows), total)])])


def _as_html(title: str, heads: list[str], rows: list[list[str]], total: int) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    rest = f"<p>{_more(len(rows), total)}</p>" if total > len(rows) else ""
    caption = f"<caption>{escape(title)}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"
