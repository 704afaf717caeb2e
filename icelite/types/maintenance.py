"""What maintenance of a repository found and did, as values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Progress = Callable[[int, int], None]  # called with (steps done, steps in all) while something long runs


@dataclass(frozen=True, slots=True)
class GCSummary:
    """What `Repository.garbage_collect` removed, or with ``dry_run`` would remove.

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
    """What `Repository.repack` did.

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
    """What `Repository.verify` found wrong: an empty list when all is well, with what it looked at.

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
    """What `Repository.relocate` rewrote, or with ``dry_run`` would rewrite.

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
    """What `Repository.bundle` wrote.

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
    """What `Repository.export_zarr` wrote.

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
