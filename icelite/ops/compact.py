"""Compaction: give the space of what was removed back to the file system."""

from __future__ import annotations

from icelite.catalog.database import Catalog
from icelite.catalog.permissions import check_online
from icelite.types import Compaction


def compact(catalog: Catalog) -> Compaction:
    """Rebuild the file without its free pages; see `Repository.compact`."""
    with catalog.read() as txn:
        check_online(txn)
    return Compaction(*catalog.vacuum())
