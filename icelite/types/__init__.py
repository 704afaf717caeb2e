"""The values that icelite hands out and passes between its floors; no behaviour beyond reading and printing them."""

import importlib
from typing import TYPE_CHECKING, Any

from icelite.types.nodes import (
    Chunk,
    ChunkType,
    Diff,
    Location,
    Node,
    NodeChange,
    SourceStamp,
    VirtualChunkSpec,
    chunk_name,
    chunk_position,
)
from icelite.types.repository import (
    CROCKFORD,
    INITIAL_SNAPSHOT_ID,
    FeatureFlag,
    RepoAvailability,
    RepoStatus,
    SessionMode,
    SnapshotInfo,
    SpecVersion,
    View,
    is_snapshot_id,
    new_snapshot_id,
    parse_snapshot_id,
)

if TYPE_CHECKING:
    from icelite.types.reports import (
        Bundle,
        ChunkRefs,
        ChunkStorageStats,
        Compaction,
        FileChange,
        GCSummary,
        Problem,
        Problems,
        Progress,
        Relocation,
        Repacking,
        SourceInfo,
        Sources,
        ZarrExport,
    )
    from icelite.types.updates import Update, UpdateType

__all__ = [
    "CROCKFORD",
    "INITIAL_SNAPSHOT_ID",
    "Bundle",
    "Chunk",
    "ChunkRefs",
    "ChunkStorageStats",
    "ChunkType",
    "Compaction",
    "Diff",
    "FeatureFlag",
    "FileChange",
    "GCSummary",
    "Location",
    "Node",
    "NodeChange",
    "Problem",
    "Problems",
    "Progress",
    "Relocation",
    "Repacking",
    "RepoAvailability",
    "RepoStatus",
    "SessionMode",
    "SnapshotInfo",
    "SourceInfo",
    "SourceStamp",
    "Sources",
    "SpecVersion",
    "Update",
    "UpdateType",
    "View",
    "VirtualChunkSpec",
    "ZarrExport",
    "chunk_name",
    "chunk_position",
    "is_snapshot_id",
    "new_snapshot_id",
    "parse_snapshot_id",
]


# What opening a repository does not need is imported when it is asked for: a dataclass takes 0.3 ms to make.
def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "updates" if name in ("Update", "UpdateType") else "reports"
        return getattr(importlib.import_module(f"icelite.types.{module}"), name)
    raise AttributeError(f"module 'icelite.types' has no attribute {name!r}")
