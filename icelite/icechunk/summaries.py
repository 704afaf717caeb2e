"""What an export to Icechunk or an import from it did, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What `export_icechunk` wrote.

    Attributes
    ----------
    ids
        Id of every snapshot here to its id in the Icechunk repository; equal wherever the id could be kept.
    branches, tags
        How many.
    chunks
        References and bytes written, all snapshots together; each changed chunk once.
    copied_moves
        Nodes that moved in a snapshot which Icechunk cannot hold as a move, and were deleted and created instead.
    container_prefixes
        What a reader passes as ``authorize_virtual_chunk_access`` to read all virtual chunks.
    """

    ids: Mapping[str, str]
    branches: int
    tags: int
    chunks: int
    copied_moves: int
    container_prefixes: tuple[str, ...]

    @property
    def snapshots(self) -> int:
        """How many snapshots were written, the first one included."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """What `import_icechunk` read.

    Attributes
    ----------
    snapshots, branches, tags
        How many; the snapshots have the ids they had.
    chunks
        References and bytes written, all snapshots together; each changed chunk once.
    has_checksums
        Whether the checksums of virtual chunks, and the containers that they name, could be read.
    dropped_checksums
        References to local files with an ETag as checksum: files have none, so that it could never be compared.
    """

    snapshots: int
    branches: int
    tags: int
    chunks: int
    has_checksums: bool
    dropped_checksums: int
