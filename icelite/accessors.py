"""VirtualiZarr's own accessors for icelite's stores: ``vds.vz.to_icechunk(session.store)``.

VirtualiZarr imports its writers when an accessor is called, and they take Icechunk's store only. So when they are
imported, be it years after icelite was, each is given a door before it, which leads icelite's stores to `to_icelite`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_WRITERS = "virtualizarr.writers.icechunk"
_NAMES = ("virtual_dataset_to_icechunk", "virtual_datatree_to_icechunk")


def accept_stores() -> None:
    """Let VirtualiZarr's accessors write to icelite's stores, now or when they are first called."""
    if _WRITERS in sys.modules:
        _wrap(sys.modules[_WRITERS])
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds VirtualiZarr's writers once, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _WRITERS:
            return None
        sys.meta_path.remove(self)  # the others find it
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _WrappingLoader(spec.loader)
        return spec


class _WrappingLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _wrap(module)


def _wrap(writers: ModuleType) -> None:
    for name in _NAMES:
        if hasattr(writers, name):
            setattr(writers, name, _for_both(getattr(writers, name)))


def _for_both(theirs: Callable[..., None]) -> Callable[..., None]:
    @wraps(theirs)
    def write(vds: Any, store: Any, **options: Any) -> None:
        from icelite.store import IceliteStore

        if not isinstance(store, IceliteStore):
            theirs(vds, store, **options)
            return
        from icelite.virtualizarr import to_icelite

        to_icelite(vds, store, **options)

    return write
