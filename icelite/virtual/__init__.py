"""Virtual chunks: bytes that live in somebody else's files and objects.

`access` decides what may be read (containers, authorisations), `urls` what a reference may look like, `local` and
`s3` read. A `Source` exists only after the gates were passed. `remote` is imported when the first of them is remote.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from icelite.virtual.access import VirtualAccess
from icelite.virtual.source import Source

if TYPE_CHECKING:
    from icelite.virtual import remote as remote

__all__ = ["Source", "VirtualAccess"]


def __getattr__(name: str) -> ModuleType:
    if name != "remote":
        raise AttributeError(f"module 'icelite.virtual' has no attribute {name!r}")
    return importlib.import_module("icelite.virtual.remote")
