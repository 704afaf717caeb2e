"""The values that icelite hands out and passes between its floors; no behaviour beyond reading and printing them."""

from icelite.types.administration import FeatureFlag, RepoAvailability, RepoStatus, SpecVersion
from icelite.types.chunks import (
    ChunkRef,
    ChunkType,
    Location,
    SourceStamp,
    VirtualChunkSpec,
    chunk_name,
    chunk_position,
)
from icelite.types.maintenance import (
    Bundle,
    ChunkStorageStats,
    Compaction,
    GCSummary,
    Problem,
    Progress,
    Relocation,
    Repacking,
    ZarrExport,
)
from icelite.types.nodes import Diff, Node, NodeChange
from icelite.types.snapshots import (
    CROCKFORD,
    INITIAL_SNAPSHOT_ID,
    SessionMode,
    SnapshotInfo,
    View,
    new_snapshot_id,
    parse_snapshot_id,
)
from icelite.types.tables import ChunkRefs, SourceInfo, Sources
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
    "GCSummary",
    "Location",
    "Node",
    "NodeChange",
    "Problem",
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
    "new_snapshot_id",
    "parse_snapshot_id",
]
