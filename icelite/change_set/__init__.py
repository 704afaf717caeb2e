"""Uncommitted changes: `ChangeSet`, with its nodes and its chunks."""

from icelite.change_set.change_set import ChangeSet
from icelite.change_set.chunks import PENDING_BYTES
from icelite.change_set.merge import Append, absorb, find_append, longer
from icelite.change_set.nodes import Entry
from icelite.change_set.writer import ObjectWriter

__all__ = [
    "PENDING_BYTES",
    "Append",
    "ChangeSet",
    "Entry",
    "ObjectWriter",
    "absorb",
    "find_append",
    "longer",
]
