"""Uncommitted changes: `ChangeSet`, with its nodes and its chunks."""

from icelite.change_set.change_set import ChangeSet
from icelite.change_set.chunks import StagedRef
from icelite.change_set.merge import absorb
from icelite.change_set.nodes import Entry

__all__ = ["ChangeSet", "Entry", "StagedRef", "absorb"]
