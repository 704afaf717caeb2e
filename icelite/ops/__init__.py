"""What is done to a repository as a whole: expire, collect, compact, repack, verify, measure, move, bundle, export.

The reports of it are of `icelite.types`; code for Icechunk imports some from here.
"""

from typing import Any

from icelite import types

__all__ = ["GCSummary", "Update", "UpdateType"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(types, name)
    raise AttributeError(f"module 'icelite.ops' has no attribute {name!r}")
