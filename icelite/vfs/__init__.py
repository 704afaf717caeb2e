"""Catalogs that are not on this machine: fetched whole, read by ranges, and published with conditional writes.

`objects` talks to the service, `blocks` lets SQLite read by ranges, `mirror` keeps what this process knows of one
remote catalog.
"""

from icelite.vfs.blocks import open_by_ranges
from icelite.vfs.mirror import Mirror, lookup_mirror

__all__ = ["Mirror", "lookup_mirror", "open_by_ranges"]
