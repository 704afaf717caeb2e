"""Catalogs that are not on this machine: fetched whole, read by ranges, and published with conditional writes.

`objects` talks to the service, `blocks` lets SQLite read by ranges, `mirror` keeps what this process knows of one
remote catalog. Imported when the first such catalog is opened.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icelite.vfs.blocks import open_by_ranges
    from icelite.vfs.mirror import Mirror, lookup_mirror

__all__ = ["Mirror", "lookup_mirror", "open_by_ranges"]

_MODULES = {"Mirror": "mirror", "lookup_mirror": "mirror", "open_by_ranges": "blocks"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'icelite.vfs' has no attribute {name!r}")
    return getattr(importlib.import_module(f"icelite.vfs.{_MODULES[name]}"), name)
