"""Uncommitted changes: `ChangeSet`, with its nodes and its chunks."""

from icelite.change_set.change_set import ChangeSet
from icelite.change_set.chunks import PENDING_BYTES, StagedRef
from icelite.change_set.merge import absorb, longer
from icelite.change_set.native import Native
from icelite.change_set.nodes import Entry
from icelite.change_set.places import ChunkPlace, take_places, write_bytes

__all__ = [
    "PENDING_BYTES",
    "ChangeSet",
    "ChunkPlace",
    "Entry",
    "Native",
    "StagedRef",
    "absorb",
    "longer",
    "take_places",
    "write_bytes",
]
