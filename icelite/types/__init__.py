"""The values that icelite hands out and passes between its floors; no behaviour beyond reading and printing them."""

import importlib
from typing import TYPE_CHECKING, Any

from icelite.types.administration import FeatureFlag, RepoAvailability, RepoStatus, SpecVersion
from icelite.types.chunks import (
    ChunkRef,
    ChunkType,
    InlineChunk,
    Location,
    SourceStamp,
    VirtualChunkSpec,
    chunk_name,
    chunk_position,
)
from icelite.types.nodes import Diff, Node, NodeChange
from icelite.types.snapshots import (
    CROCKFORD,
    INITIAL_SNAPSHOT_ID,
    SessionMode,
    SnapshotInfo,
    View,
    is_snapshot_id,
    new_snapshot_id,
    parse_snapshot_id,
)

if TYPE_CHECKING:
    from icelite.types.maintenance import (
        Bundle,
        ChunkStorageStats,
        Compaction,
        GCSummary,
        Problem,
        Problems,
        Progress,
        Relocation,
        Repacking,
        ZarrExport,
    )
    from icelite.types.tables import ChunkRefs, FileChange, SourceInfo, Sources
    from icelite.types.updates import Update, UpdateType

__all__ = [
    "CROCKFORD",
    "INITIAL_SNAPSHOT_ID",
    "Bundle",
    "ChunkRef",
    "ChunkRefs",
    "ChunkStorageStats",
    "ChunkType",
    "Compaction",
    "Diff",
    "FeatureFlag",
    "FileChange",
    "GCSummary",
    "InlineChunk",
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
_LATE = {
    "icelite.types.maintenance": (
        "Bundle",
        "ChunkStorageStats",
        "Compaction",
        "GCSummary",
        "Problem",
        "Problems",
        "Progress",
        "Relocation",
        "Repacking",
        "ZarrExport",
    ),
    "icelite.types.tables": ("ChunkRefs", "FileChange", "SourceInfo", "Sources"),
    "icelite.types.updates": ("Update", "UpdateType"),
}


def __getattr__(name: str) -> Any:
    for module, names in _LATE.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'icelite.types' has no attribute {name!r}")
