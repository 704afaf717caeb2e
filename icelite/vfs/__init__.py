"""Catalogs that are not on this machine: fetched whole, read by ranges, and published with conditional writes.

`services` talks to a bucket or web server, `mirror` keeps what this process knows of one remote catalog; `blocks` lets
SQLite read by ranges, and looks over what comes.
"""

from icelite.vfs.blocks import BlockFile, open_by_ranges
from icelite.vfs.mirror import Mirror, VersionReader, lookup_mirror

__all__ = ["BlockFile", "Mirror", "VersionReader", "lookup_mirror", "open_by_ranges"]
