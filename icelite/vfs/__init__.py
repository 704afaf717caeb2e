"""Catalogs that are not on this machine: fetched whole, read by ranges, and published with conditional writes.

`objects` talks to the service, `mirror` keeps what this process knows of one remote catalog; `blocks` lets SQLite
read by ranges, which `pages` and `watchdog` look over.
"""

from icelite.vfs.blocks import BlockFile, open_by_ranges
from icelite.vfs.mirror import Mirror, VersionReader, lookup_mirror

__all__ = ["BlockFile", "Mirror", "VersionReader", "lookup_mirror", "open_by_ranges"]
