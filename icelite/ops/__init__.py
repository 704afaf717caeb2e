"""What is done to a repository as a whole: expire, collect, compact, verify, measure.

Each is a module, imported when it is first asked for: most programs need none.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from icelite.ops import bundle, compact, expire, export_zarr, gc, relocate, repack, sources, stats, verify

__all__ = [
    "bundle",
    "compact",
    "expire",
    "export_zarr",
    "gc",
    "relocate",
    "repack",
    "sources",
    "stats",
    "verify",
]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module 'icelite.ops' has no attribute {name!r}")
    return importlib.import_module(f"icelite.ops.{name}")
