"""What snapshots are told by: the path under which code for Icechunk imports these names."""

from icelite.repository import AncestryGraph
from icelite.types import Diff, SnapshotInfo

__all__ = ["AncestryGraph", "Diff", "SnapshotInfo"]
